//! Where a rank's slices go: the host's memory, or a card's.

use super::{Synthetic, WeightError, WeightSource};
use flotilla_shared::TensorSlice;
use std::ops::Range;

/// Bytes that a source fills at once.
pub const FILL_BYTES: usize = 8 << 20;

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
            for start in (0..slice.bytes()).step_by(FILL_BYTES) {
                let range = start..slice.bytes().min(start + FILL_BYTES);
                self.fill(index, range.clone(), &mut |out| source.read(slice, start, out))?;
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
