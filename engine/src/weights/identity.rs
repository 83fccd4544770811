//! Which weights a source has, as 32 bytes: what was kept of one load can serve the next if, and only if,
//! both are of the same weights.
//!
//! Cheap, so not a digest of everything: 4 KiB of each tensor are read, spread over it. Models that were
//! trained apart differ there. Two folders that differ in a few other bytes only (one was damaged, or edited
//! by hand) are taken for the same; damage on the way is for the digests of blocks to find.

use super::WeightError;
use flotilla_shared::tensor::TensorId;
use flotilla_shared::{ModelSpec, WeightsId};

/// Bytes of a tensor that are looked at.
const SAMPLE_BYTES: usize = 4 << 10;
/// Places of a tensor that they lie at, the first at its beginning and the last at its end.
const SAMPLES: usize = 4;

/// Places are read at once by so many threads: a disk far away answers many as fast as one.
const READERS: usize = 16;

/// A place of a tensor: its first byte, and how many.
#[derive(Clone, Copy)]
pub(super) struct Sample {
    pub(super) tensor: TensorId,
    pub(super) offset: usize,
    len: usize,
}

/// Of the shape, and of every tensor's name, dtype, shape and samples, as `read` gives them.
pub(super) fn of_content(
    spec: &ModelSpec,
    read: impl Fn(Sample, &mut [u8]) -> Result<(), WeightError> + Sync,
) -> Result<WeightsId, WeightError> {
    let of_tensor = |tensor: TensorId| {
        let bytes = tensor.info(spec).bytes() as usize;
        samples(bytes).map(move |(offset, len)| Sample { tensor, offset, len })
    };
    let places: Vec<Sample> = TensorId::all(spec).flat_map(of_tensor).collect();
    let bytes = read_all(&places, read)?;
    let mut hasher = begin("flotilla weights by content 1", spec);
    for info in TensorId::all(spec).map(|tensor| tensor.info(spec)) {
        hasher.update(format!("{} {} {:?}\n", info.name, info.dtype.name(), info.shape).as_bytes());
        let own = places.iter().zip(&bytes).filter(|(place, _)| place.tensor == info.id);
        for (_, bytes) in own {
            hasher.update(bytes);
        }
    }
    Ok(WeightsId(*hasher.finalize().as_bytes()))
}

fn read_all(
    places: &[Sample],
    read: impl Fn(Sample, &mut [u8]) -> Result<(), WeightError> + Sync,
) -> Result<Vec<Vec<u8>>, WeightError> {
    let one = |place: &Sample| {
        let mut bytes = vec![0; place.len];
        read(*place, &mut bytes).map(|()| bytes)
    };
    let share = places.len().div_ceil(READERS).max(1);
    std::thread::scope(|scope| {
        let part =
            |part| scope.spawn(move || -> Result<Vec<_>, _> { <[Sample]>::iter(part).map(one).collect() });
        let readers: Vec<_> = places.chunks(share).map(part).collect();
        let mut all = Vec::with_capacity(places.len());
        for reader in readers {
            all.extend(reader.join().expect("a source does not panic")?);
        }
        Ok(all)
    })
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
fn samples(bytes: usize) -> impl Iterator<Item = (usize, usize)> {
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
