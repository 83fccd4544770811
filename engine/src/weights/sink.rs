//! Where a rank's slices go: the host's memory, or a card's.

use super::{Synthetic, WeightError, WeightSource};
use flotilla_shared::TensorSlice;
use std::ops::Range;

/// Bytes that a source fills at once.
pub const FILL_BYTES: usize = 8 << 20;

/// A slice in parts that are filled at once.
pub(crate) fn chunks_to_fill(slice: &TensorSlice) -> impl Iterator<Item = Range<usize>> + use<> {
    let len = slice.bytes();
    (0..len).step_by(FILL_BYTES).map(move |start| start..len.min(start + FILL_BYTES))
}

/// Memory for the slices of one rank.
pub trait WeightSink: Send {
    /// In the order of the forward; none empty.
    fn slices(&self) -> &[TensorSlice];

    /// Lets `write` fill bytes `range` of slice number `index`: at most [`FILL_BYTES`].
    fn fill(
        &mut self,
        index: usize,
        range: Range<usize>,
        write: &mut dyn FnMut(&mut [u8]) -> Result<(), WeightError>,
    ) -> Result<(), WeightError>;

    /// As [`fill`](WeightSink::fill), but `write` finds what is there. In the host's memory it always does.
    fn update(
        &mut self,
        index: usize,
        range: Range<usize>,
        write: &mut dyn FnMut(&mut [u8]) -> Result<(), WeightError>,
    ) -> Result<(), WeightError> {
        self.fill(index, range, write)
    }

    /// Everything was filled.
    fn finish(&mut self) -> Result<(), WeightError> {
        Ok(())
    }

    /// Reads everything from a source on this machine; `progress` is told (bytes done, bytes in all).
    fn load_from(
        &mut self,
        source: &dyn WeightSource,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), WeightError> {
        let slices = self.slices().to_vec();
        let total = slices.iter().map(|slice| slice.bytes() as u64).sum();
        let mut done = 0;
        for (index, slice) in slices.iter().enumerate() {
            for range in chunks_to_fill(slice) {
                self.fill(index, range.clone(), &mut |out| source.read(slice, range.start, out))?;
                done += range.len() as u64;
                progress(done, total);
            }
        }
        self.finish()
    }

    /// Makes everything from a seed, where the memory is if it can compute; `progress` as above.
    fn make_from(
        &mut self,
        source: &Synthetic,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), WeightError> {
        self.load_from(source, progress)
    }
}
