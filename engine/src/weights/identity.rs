//! Which weights a source has, as 32 bytes: what was kept of one load can serve the next if, and only if,
//! both are of the same weights.
//!
//! Cheap, so not a digest of everything: 4 KiB of each tensor are read, spread over it. Models that were
//! trained apart differ there. Two folders that differ in a few other bytes only (one was damaged, or edited
//! by hand) are taken for the same; damage on the way is for the digests of blocks to find.

use super::{WeightError, WeightSource};
use flotilla_shared::tensor::TensorId;
use flotilla_shared::{ModelSpec, TensorSlice, WeightsId};

/// Bytes of a tensor that are looked at.
const SAMPLE_BYTES: usize = 4 << 10;
/// Places of a tensor that they lie at, the first at its beginning and the last at its end.
const SAMPLES: usize = 4;

/// Of the shape, and of every tensor's name, dtype, shape and samples.
pub(super) fn of_content(source: &(impl WeightSource + ?Sized)) -> Result<WeightsId, WeightError> {
    let spec = source.spec();
    let mut hasher = begin("flotilla weights by content 1", spec);
    for info in TensorId::all(spec).map(|tensor| tensor.info(spec)) {
        hasher.update(format!("{} {} {:?}\n", info.name, info.dtype.name(), info.shape).as_bytes());
        let slice = TensorSlice::whole(info.id, spec);
        for (offset, len) in samples(slice.bytes()) {
            let mut bytes = vec![0; len];
            source.read(&slice, offset, &mut bytes)?;
            hasher.update(&bytes);
        }
    }
    Ok(WeightsId(*hasher.finalize().as_bytes()))
}

/// Of the shape and the seed, which make every byte.
pub(super) fn of_seed(spec: &ModelSpec, seed: u64) -> WeightsId {
    let hasher = begin("flotilla weights by seed 1", spec).update(&seed.to_le_bytes()).finalize();
    WeightsId(*hasher.as_bytes())
}

fn begin(kind: &str, spec: &ModelSpec) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    let spec = serde_json::to_string(spec).expect("a spec is plain data");
    hasher.update(format!("{kind}\n{spec}\n").as_bytes());
    hasher
}

/// (offset, length) of what is looked at of a tensor of `bytes`.
pub(crate) fn samples(bytes: usize) -> impl Iterator<Item = (usize, usize)> {
    let (count, len) = if bytes <= SAMPLE_BYTES { (1, bytes) } else { (SAMPLES, SAMPLE_BYTES / SAMPLES) };
    (0..count).map(move |n| ((bytes - len) * n / (count - 1).max(1), len))
}

#[cfg(test)]
mod tests {
    use super::samples;

    #[test]
    fn samples_begin_a_tensor_and_end_it() {
        assert_eq!(samples(100).collect::<Vec<_>>(), [(0, 100)]);
        assert_eq!(samples(4096).collect::<Vec<_>>(), [(0, 4096)]);
        assert_eq!(samples(5024).collect::<Vec<_>>(), [(0, 1024), (1333, 1024), (2666, 1024), (4000, 1024)]);
    }
}
