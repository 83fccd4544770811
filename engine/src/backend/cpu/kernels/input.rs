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
pub(super) enum Layout {
    Rows { stride: usize },
    Tiles { lanes: usize },
}

impl Layout {
    /// Values of a row with the gap behind it, or of a tile.
    pub fn unit(self, columns: usize) -> usize {
        match self {
            Layout::Rows { stride } => stride,
            Layout::Tiles { lanes } => (columns * lanes).max(1),
        }
    }
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
    /// Where x is to be arranged, and how.
    pub(super) fn room(x: Matrix<'_, f32>, buffer: &'a mut InputBuffer, isa: Isa) -> (&'a mut [f32], Layout) {
        let (tokens, columns) = (x.rows(), x.columns());
        if tokens < GEMM_TOKENS {
            let stride = row_stride(columns);
            return (buffer.take(tokens * stride), Layout::Rows { stride });
        }
        let lanes = isa.lanes();
        (buffer.take(tokens.next_multiple_of(lanes) * columns), Layout::Tiles { lanes })
    }

    /// x, of which all units lie in `data`.
    pub(super) fn arranged(x: Matrix<'_, f32>, data: &'a [f32], layout: Layout, isa: Isa) -> Input<'a> {
        Input { data, tokens: x.rows(), columns: x.columns(), layout, isa }
    }

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
            Layout::Tiles { .. } => unreachable!("many tokens are in tiles"),
        }
    }
    /// f32 [tiles, K, LANES], from GEMM_TOKENS tokens on.
    pub(super) fn tiles(&self) -> *const f32 {
        match self.layout {
            Layout::Tiles { .. } => self.data.as_ptr(),
            Layout::Rows { .. } => unreachable!("few tokens are in rows"),
        }
    }
}

/// The arranging of some units, as an op of its own: the order and the width are the instruction set's.
pub(super) struct Arrange<'a, 'o> {
    pub x: Matrix<'a, f32>,
    pub layout: Layout,
    /// The number of the unit with which `out` begins.
    pub first: usize,
    pub out: &'o mut [f32],
}

impl Op for Arrange<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Arrange { x, layout, first, out } = self;
        let units = out.chunks_exact_mut(layout.unit(x.columns())).enumerate();
        match layout {
            Layout::Rows { .. } => {
                units.for_each(|(i, row)| in_pairs(s, x.row(first + i), &mut row[..x.columns()]));
            }
            Layout::Tiles { lanes } => {
                assert_eq!(lanes, S::LANES);
                units.for_each(|(i, tile)| tile_of::<S>(x, (first + i) * S::LANES, tile));
            }
        }
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
