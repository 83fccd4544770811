//! A slice in chunks, as it goes over the wire and into caches: each has its own digest, so that one that is
//! damaged is known at once, and is the only one that is read again.

use super::{WeightError, WeightSource, lies_within};
use flotilla_shared::{ModelSpec, TensorSlice};
use std::fmt;
use std::ops::Range;

/// Bytes of a chunk: they begin at multiples of this in their slice, and only the last is shorter.
pub const CHUNK_BYTES: usize = 1 << 20;

/// blake3 of the bytes of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }
}

/// In hexadecimal, as b3sum prints it.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whole chunks of one of a rank's slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Which slice, in the rank's order.
    pub slice: usize,
    /// From a chunk's beginning to a chunk's end.
    pub bytes: Range<usize>,
}

impl Extent {
    /// All of slice number `slice`.
    pub fn whole(slice: usize, of: &TensorSlice) -> Extent {
        Extent { slice, bytes: 0..of.bytes() }
    }

    /// Whether it is some chunks of a slice of `bytes` bytes.
    pub fn fits(&self, bytes: usize) -> bool {
        let Range { start, end } = self.bytes;
        let at_chunk = end == bytes || end.is_multiple_of(CHUNK_BYTES);
        start < end && end <= bytes && start.is_multiple_of(CHUNK_BYTES) && at_chunk
    }

    /// Its chunks' bytes, in order.
    pub fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        self.parts(CHUNK_BYTES).map(|part| part.bytes)
    }

    /// Itself in parts that begin at multiples of `part_bytes`, a multiple of a chunk's.
    pub fn parts(&self, part_bytes: usize) -> impl Iterator<Item = Extent> + use<> {
        let Extent { slice, bytes } = self.clone();
        let first = bytes.start / part_bytes * part_bytes;
        (first..bytes.end).step_by(part_bytes).map(move |start| Extent {
            slice,
            bytes: start.max(bytes.start)..(start + part_bytes).min(bytes.end),
        })
    }
}

/// What is asked for of `slices`, if each lies in the model, and each part, by number of its slice and bytes, is whole
/// chunks of it. What is wrong is told in words for whoever asked.
pub fn extents_of(
    spec: &ModelSpec,
    slices: &[TensorSlice],
    parts: Vec<(usize, Range<usize>)>,
) -> Result<Vec<Extent>, String> {
    if let Some(slice) = slices.iter().find(|slice| !lies_within(slice, spec) || slice.is_empty()) {
        return Err(format!("{slice} does not lie in the model"));
    }
    let check = |(slice, bytes): (usize, Range<usize>)| {
        let extent = Extent { slice, bytes };
        let good = slices.get(slice).is_some_and(|slice| extent.fits(slice.bytes()));
        let Range { start, end } = extent.bytes;
        good.then_some(extent).ok_or_else(|| format!("bytes {start}..{end} are no chunks of slice {slice}"))
    };
    parts.into_iter().map(check).collect()
}

/// The bytes of one chunk, and their digest.
pub fn read_chunk(
    source: &dyn WeightSource,
    slice: &TensorSlice,
    chunk: Range<usize>,
) -> Result<(Vec<u8>, Digest), WeightError> {
    let mut bytes = vec![0; chunk.len()];
    source.read(slice, chunk.start, &mut bytes)?;
    let digest = Digest::of(&bytes);
    Ok((bytes, digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_whole_chunks() {
        let mib = CHUNK_BYTES;
        let fits = |bytes: Range<usize>| Extent { slice: 0, bytes }.fits(3 * mib + 5);
        for good in [0..mib, 0..3 * mib + 5, mib..3 * mib, 3 * mib..3 * mib + 5] {
            assert!(fits(good.clone()), "{good:?}");
        }
        #[allow(clippy::reversed_empty_ranges)]
        for bad in [0..0, 2 * mib..mib, 5..mib, 0..mib + 1, 3 * mib..4 * mib, 0..usize::MAX] {
            assert!(!fits(bad.clone()), "{bad:?}");
        }
    }

    #[test]
    fn chunks_and_parts_cover_an_extent() {
        let mib = CHUNK_BYTES;
        let extent = Extent { slice: 7, bytes: mib..4 * mib + 9 };
        let chunks: Vec<_> = extent.chunks().collect();
        assert_eq!(chunks, [mib..2 * mib, 2 * mib..3 * mib, 3 * mib..4 * mib, 4 * mib..4 * mib + 9]);
        let parts: Vec<_> = extent.parts(2 * mib).map(|part| part.bytes).collect();
        assert_eq!(parts, [mib..2 * mib, 2 * mib..4 * mib, 4 * mib..4 * mib + 9]);
    }
}
