//! Activations, arranged once for the products that will read them; any number of threads may share one.
//! Nothing is computed here: values only move.
//!
//! Few tokens: rows, in which every 2·LANES values are those at even places, then those at odd ones, as weights are taken;
//! what is left at the end of a row stays in order. From GEMM_TOKENS on: tiles of LANES tokens, [tiles, K, LANES], so that one load takes one element of LANES tokens;
//! the tokens missing in the last tile are zeros.

use super::matrix::Matrix;
use super::scratch::InputBuffer;
use super::simd::Simd;
use super::{Isa, Op};

/// From this many tokens on, weights are widened into a panel first and multiplied as f32.
pub const GEMM_TOKENS: usize = 16;

#[derive(Clone, Copy, Debug)]
enum Layout {
    Rows { stride: usize },
    Tiles,
}

/// x: f32 [T, K], arranged for one instruction set.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    data: &'a [f32],
    tokens: usize,
    columns: usize,
    layout: Layout,
    isa: Isa,
}

const LANES_MAX: usize = 16;

pub(super) const fn len_packed_max(tokens: usize, columns: usize) -> usize {
    tokens.next_multiple_of(LANES_MAX) * row_stride(columns)
}

/// From row to row: whole cache lines, and one more, for rows a power of two apart would share cache sets.
const fn row_stride(columns: usize) -> usize {
    columns.next_multiple_of(LANES_MAX) + LANES_MAX
}

impl<'a> Input<'a> {
    pub fn tokens(&self) -> usize {
        self.tokens
    }
    pub fn columns(&self) -> usize {
        self.columns
    }
    pub(super) fn is_for(&self, isa: Isa) -> bool {
        self.isa == isa
    }
    /// (x[0, 0], stride), for fewer than GEMM_TOKENS tokens.
    pub(super) fn rows(&self) -> (*const f32, usize) {
        match self.layout {
            Layout::Rows { stride } => (self.data.as_ptr(), stride),
            Layout::Tiles => unreachable!("many tokens are in tiles"),
        }
    }
    /// f32 [tiles, K, LANES], from GEMM_TOKENS tokens on.
    pub(super) fn tiles(&self) -> *const f32 {
        match self.layout {
            Layout::Tiles => self.data.as_ptr(),
            Layout::Rows { .. } => unreachable!("few tokens are in rows"),
        }
    }
}

/// The arranging, as an op of its own: the order and the width are the instruction set's.
pub(super) struct Arrange<'a> {
    pub x: Matrix<'a, f32>,
    pub buffer: &'a mut InputBuffer,
    pub isa: Isa,
}

impl<'a> Op for Arrange<'a> {
    type Out = Input<'a>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Input<'a> {
        let Arrange { x, buffer, isa } = self;
        let (tokens, columns) = (x.rows(), x.columns());
        let (data, layout): (&'a [f32], _) = if tokens < GEMM_TOKENS {
            let stride = row_stride(columns);
            let rows = buffer.take(tokens * stride);
            for token in 0..tokens {
                in_pairs(s, x.row(token), &mut rows[token * stride..][..columns]);
            }
            (rows, Layout::Rows { stride })
        } else {
            let tiles = buffer.take(tokens.next_multiple_of(S::LANES) * columns);
            for (i, tile) in tiles.chunks_exact_mut((columns * S::LANES).max(1)).enumerate() {
                tile_of::<S>(x, i * S::LANES, tile);
            }
            (tiles, Layout::Tiles)
        };
        Input { data, tokens, columns, layout, isa }
    }
}

/// Every 2·LANES values as those at even places, then those at odd ones.
#[inline(always)]
fn in_pairs<S: Simd>(s: S, from: &[f32], to: &mut [f32]) {
    let (mut from, mut to) = (from.chunks_exact(2 * S::LANES), to.chunks_exact_mut(2 * S::LANES));
    for (from, to) in from.by_ref().zip(to.by_ref()) {
        // SAFETY: both are 2·LANES values long.
        unsafe {
            let (even, odd) = s.load_pairs(from.as_ptr());
            s.store(to.as_mut_ptr(), even);
            s.store(to.as_mut_ptr().add(S::LANES), odd);
        }
    }
    to.into_remainder().copy_from_slice(from.remainder());
}

/// x f32 [T, K] from token `first` on → tile f32 [K, LANES]
#[inline(always)]
fn tile_of<S: Simd>(x: Matrix<'_, f32>, first: usize, tile: &mut [f32]) {
    for lane in 0..S::LANES {
        let out = tile[lane..].iter_mut().step_by(S::LANES);
        match x.rows() - first {
            here if lane >= here => out.for_each(|out| *out = 0.0),
            _ => out.zip(x.row(first + lane)).for_each(|(out, x)| *out = *x),
        }
    }
}
