//! Where weights come from: one trait over a checkpoint folder, a seed, or a stream.

use flotilla_shared::{ModelSpec, TensorSlice};

/// A model whose slices can be read in any order, as the bytes that a checkpoint holds.
pub trait WeightSource: Send + Sync {
    fn spec(&self) -> &ModelSpec;

    /// Fills `out` with the bytes of `slice` (row-major order of the slice) from byte `offset` on.
    ///
    /// # Panics
    /// If `offset + out.len()` is past the slice's end: a mistake of ours, not of the checkpoint.
    fn read(&self, slice: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<(), WeightError>;
}

/// Why weights cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {}
