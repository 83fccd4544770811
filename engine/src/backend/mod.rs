//! What computes: a dozen fused ops over weights, activations and a KV cache that the backend owns.
//! Backends stand side by side, with the same file names; `cpu` is also the specification.

pub mod cpu;
pub mod cuda;
mod rope;

use crate::batch::Batch;
use crate::sample::Shard;
use thiserror::Error;

/// What went wrong on the device in a step. The backend is of no more use.
#[derive(Clone, Debug, Error)]
#[error("{0}")]
pub struct BackendError(pub String);

/// Which of the model's norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Before a layer's attention.
    Attention(usize),
    /// Before a layer's experts.
    Mlp(usize),
    /// Before the unembedding; only the batch's logit rows are normed.
    Final,
}

/// One rank's part of every layer of its stage. Layers are numbered as the model's. Letters as in [`crate::model`]; a suffix `/R` is a rank's part.
///
/// The backend holds x, the residual stream, and h, its normed copy, whole and alike on every rank;
/// ops marked *partial* leave a sum over ranks to the caller. Ops may only be started when they return:
/// what fails in one is said by [`Backend::finish`].
pub trait Backend: Shard {
    /// Activations where the backend keeps them, for a collective to sum in place.
    type Activations: ?Sized;

    /// Runs `forward` over the batch, or what was recorded when it ran over a batch of this shape.
    fn run<E>(&mut self, _batch: &Batch, forward: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<(), E>
    where
        Self: Sized,
    {
        forward(self)
    }

    /// x = 0; y = E[token] where this rank has the row, else 0. Partial y: f32 [T, H].
    fn embed(&mut self, batch: &Batch) -> &mut Self::Activations;

    /// x = 0; y is for what the stage before hands on, in the place of an embedding: f32 [T, H].
    fn enter(&mut self, batch: &Batch) -> &mut Self::Activations;

    /// x + y, whole, for the next stage, after the last of this one's layers: f32 [T, H]. Neither x nor y is of use after it.
    fn leave(&mut self, batch: &Batch) -> &mut Self::Activations;

    /// x += y; h = x / rms(x) · w. The same bits on every rank and every machine.
    fn add_norm(&mut self, norm: Norm, batch: &Batch);

    /// q, k, v = W h + b, q and k rotated; k and v go into the cache. q: f32 [T, nq/R, D].
    fn qkv(&mut self, layer: usize, batch: &Batch);

    /// a = softmax(q·k / √D, with the sink) v over the keys that the layer's kind lets each row see.
    fn attend(&mut self, layer: usize, batch: &Batch);

    /// y = Wₒ a (+ bₒ on the rank that owns it). Partial y: f32 [T, H].
    fn project(&mut self, layer: usize, batch: &Batch) -> &mut Self::Activations;

    /// The top-k experts of each row, the same on every rank and every machine, and their weights:
    /// softmax over the k logits.
    fn route(&mut self, layer: usize, batch: &Batch);

    /// y = Σ w (W_d swiglu(W_gu h + b_gu) + b_d) over the row's experts. Partial y: f32 [T, H].
    fn experts(&mut self, layer: usize, batch: &Batch) -> &mut Self::Activations;

    /// Logits of the batch's logit rows over this rank's vocabulary.
    fn unembed(&mut self, batch: &Batch);

    /// Waits until everything that was started is done.
    fn finish(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// What was recorded of steps may go, before the group's collective does: recordings hold sums of it. No step follows.
    fn forget_recordings(&mut self) {}

    /// Reads all weights of the rank once and throws them away, for benchmarks: what a step could at best do. How many
    /// bytes that was; none where the backend has no way to.
    fn read_weights(&self) -> u64 {
        0
    }

    /// Taken of the device's memory, by whomever, where the device has its own and tells.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    /// u16 [L of the stage, K]: the experts that a row of the last batch took, if the batch kept its routing.
    fn routing(&mut self, row: usize) -> Result<Vec<u16>, BackendError>;
}
