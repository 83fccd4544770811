//! What a step's launches read and write, in the card's memory.

use super::AttentionShape;
use crate::cuda::{Card, CudaError};
use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};

/// The rows of a step, in the card's memory. T is the bucket of the launch.
#[derive(Debug)]
pub struct StepRows<'a> {
    /// [1]: the rows that there are, at most T.
    pub rows: CudaView<'a, u32>,
    /// [T]
    pub positions: CudaView<'a, u32>,
    /// [T]: where in `blocks` the entry of position 0 of the row's sequence would lie, in u32 arithmetic that
    /// wraps. Entries before that of the row's first visible position need not be there.
    pub table_start: CudaView<'a, u32>,
    /// Block tables, in rising positions.
    pub blocks: CudaView<'a, u32>,
}

/// Which rows decode.
#[derive(Debug)]
pub struct DecodeRows<'a> {
    /// The most that there are.
    pub launched: usize,
    /// `None`: every row of the step, and T is `launched`.
    pub list: Option<DecodeList<'a>>,
}

#[derive(Debug)]
pub struct DecodeList<'a> {
    /// [launched], in any order.
    pub rows: CudaView<'a, u32>,
    /// [1]: how many of them are there.
    pub count: CudaView<'a, u32>,
}

/// Which rows are tiles.
#[derive(Debug)]
pub struct Tiles<'a> {
    /// The most that there are.
    pub launched: usize,
    /// [launched][4]: first row, rows (at most [`AttentionShape::tile_rows`]), 0, 0. The rows of a tile are
    /// consecutive positions of one sequence. Tiles with many keys are best put last: the last one starts first.
    pub tiles: CudaView<'a, u32>,
    /// [1]
    pub count: CudaView<'a, u32>,
}

/// cos and sin of each row's angles, the concentration in them: f32 [T, D/2] each.
#[derive(Debug)]
pub struct Rotation<'a> {
    pub cos: CudaView<'a, f32>,
    pub sin: CudaView<'a, f32>,
}

/// A layer's cache: bf16 [blocks, nk, BLOCK_TOKENS, D] each.
#[derive(Debug)]
pub struct Cache<'a> {
    pub keys: CudaView<'a, u16>,
    pub values: CudaView<'a, u16>,
}

#[derive(Debug)]
pub struct CacheMut<'a> {
    pub keys: CudaViewMut<'a, u16>,
    pub values: CudaViewMut<'a, u16>,
}

/// A layer's attention over the cache.
#[derive(Debug)]
pub struct Attend<'a> {
    /// act [T, nq, D], from `rope_store`.
    pub q: CudaView<'a, u16>,
    pub cache: Cache<'a>,
    /// bf16 [nq]
    pub sinks: CudaView<'a, u16>,
    /// Visible keys with the row's own; `None` for all.
    pub window: Option<u32>,
}

/// What the parts of decode rows leave to be combined.
#[derive(Debug)]
pub struct Partials {
    /// f32 [parts, nq, D]
    pub(super) out: CudaSlice<f32>,
    /// f32 [parts, nq, 2]: m and l.
    pub(super) state: CudaSlice<f32>,
}

impl Partials {
    /// `parts`: [`AttentionKernels::parts_max`], or the rows and spare blocks of the launch that has the most.
    pub fn new(card: &Card, shape: AttentionShape, parts: usize) -> Result<Self, CudaError> {
        let states = parts.max(1) * shape.q_heads();
        // SAFETY: what a launch of attend_combine reads was written by attend_split's before it.
        let (out, state) = unsafe { (card.unset(states * shape.head_dim)?, card.unset(states * 2)?) };
        Ok(Partials { out, state })
    }

    pub fn bytes(shape: AttentionShape, parts: usize) -> u64 {
        (parts.max(1) * shape.q_heads() * (shape.head_dim + 2) * size_of::<f32>()) as u64
    }

    pub(super) fn parts(&self, shape: AttentionShape) -> usize {
        self.state.len() / (2 * shape.q_heads())
    }
}
