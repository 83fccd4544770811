//! Where weights come from and where a rank keeps its own: one trait over a checkpoint folder, a seed,
//! or a stream; the buffers that a rank fills from it; and the way back to a folder.
//!
//! Everything moves as the bytes that a published checkpoint holds: nothing here converts, repacks or
//! pads. A backend that wants another layout makes it from [`RankWeights`].

mod checkpoint;
mod chunk;
mod config;
mod error;
mod files;
mod held;
mod identity;
mod kept;
mod rate;
mod rectangle;
mod shard;
mod sink;
mod synthetic;
mod write;

pub use checkpoint::Checkpoint;
pub use chunk::{CHUNK_BYTES, Digest, Extent, extents_of, read_chunk};
pub use config::{GenerationConfig, config_like};
pub use error::{ShardFault, WeightError};
pub use files::{FileBytes, Files, Folder};
pub use held::{HeldTensor, RankWeights};
pub use kept::{Kept, Need, Several};
pub use rate::Throttle;
pub use rectangle::ByteRuns;
pub(crate) use sink::chunks_to_fill;
pub use sink::{FILL_BYTES, WeightSink};
pub use synthetic::Synthetic;
pub use write::{SHARD_BYTES_MAX, Written, write_checkpoint};
pub(crate) use {rectangle::Comb, synthetic::Draw, synthetic::PALETTE, synthetic::Recipe};

use flotilla_shared::tensor::TensorId;
use flotilla_shared::{ModelSpec, TensorSlice, WeightsId};
use std::ops::Range;

/// For fuzzers: a file of tensors, of which none may reach out of it.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_shard(file: &[u8]) {
    shard::fuzz(file);
}

/// A model whose slices can be read in any order, as the bytes that a checkpoint holds.
pub trait WeightSource: Send + Sync {
    fn spec(&self) -> &ModelSpec;

    /// Fills `out` with the bytes of `slice` (row-major order of the slice) from byte `offset` on.
    ///
    /// # Panics
    /// If `offset + out.len()` is past the slice's end: a mistake of ours, not of the checkpoint.
    fn read(&self, slice: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<(), WeightError>;

    /// Says that these bytes of `slice` will be read soon: a source may begin to bring them.
    fn will_read(&self, _slice: &TensorSlice, _bytes: Range<usize>) {}

    /// The same for equal weights on any host, and another for others.
    fn identity(&self) -> Result<WeightsId, WeightError> {
        let read = |sample: identity::Sample, out: &mut [u8]| {
            self.read(&TensorSlice::whole(sample.tensor, self.spec()), sample.offset, out)
        };
        identity::of_content(self.spec(), read)
    }
}

/// Whether `slice` lies in its tensor of this model: to be asked of slices that others name, since
/// [`WeightSource::read`] panics where one does not.
pub fn lies_within(slice: &TensorSlice, spec: &ModelSpec) -> bool {
    if let TensorId::Layer(layer, _) = slice.tensor
        && usize::from(layer) >= spec.layer_count()
    {
        return false;
    }
    let shape = slice.tensor.shape(spec);
    let inside = |(range, &size): (&Range<usize>, &usize)| range.start <= range.end && range.end <= size;
    slice.ranges.len() == shape.len() && slice.ranges.iter().zip(&shape).all(inside)
}
