//! Memory the kernels work in, taken at start and owned by the caller, so that a step allocates nothing.

use super::grouped;
use super::product::{PANEL_COLUMNS, PANEL_ROWS, SUMS_STRIDE};

/// A cache line, for the alignment.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

// SAFETY: sixteen f32 and nothing else, for 64 bytes aligned to 64 have no padding.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above; every bit pattern is a value.
unsafe impl bytemuck::Pod for Line {}

/// f32 values that begin on a cache line.
#[derive(Debug, Default)]
struct Lines(Vec<Line>);

impl Lines {
    fn grow_to(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, bytemuck::Zeroable::zeroed());
        }
        &mut bytemuck::cast_slice_mut(&mut self.0)[..len]
    }
}

const PANEL: usize = larger(PANEL_ROWS * PANEL_COLUMNS, grouped::PANEL);
const SUMS: usize = larger(PANEL_ROWS * SUMS_STRIDE, grouped::SUMS);

const fn larger(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

/// Values of one tile of an MXFP4 product, at most: 64 tokens of 96 rows.
pub const TILE: usize = 64 * 96;

/// What one thread works in: 150 KiB for products, of fixed size; for attention as much as its largest tile takes.
#[derive(Debug)]
pub struct Scratch {
    work: Lines,
    tile: Lines,
    attention: Lines,
}

impl Scratch {
    pub fn new() -> Scratch {
        let [mut work, mut tile] = [Lines::default(), Lines::default()];
        work.grow_to(PANEL + SUMS);
        tile.grow_to(TILE);
        Scratch { work, tile, attention: Lines::default() }
    }

    /// (f32 [len] for what comes out, the weights f32 [PANEL] and sums f32 [SUMS] as below)
    pub(super) fn tile_and_work(&mut self, len: usize) -> (&mut [f32], &mut [f32], &mut [f32]) {
        assert!(len <= TILE, "a tile of {len} values, {TILE} are the most");
        let (panel, sums) = self.work.grow_to(PANEL + SUMS).split_at_mut(PANEL);
        (self.tile.grow_to(len), panel, sums)
    }

    /// (weights f32 [PANEL_ROWS, PANEL_COLUMNS], sums f32 [PANEL_ROWS, SUMS_STRIDE])
    pub(super) fn panel_and_sums(&mut self) -> (&mut [f32], &mut [f32]) {
        self.work.grow_to(PANEL + SUMS).split_at_mut(PANEL)
    }

    /// Rows, a tile of keys and its values, and sums: f32, cut by whoever uses it.
    pub(super) fn attention(&mut self, len: usize) -> &mut [f32] {
        self.attention.grow_to(len)
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

/// Where activations are rearranged for a product; grows to the largest input seen.
#[derive(Debug, Default)]
pub struct InputBuffer(Lines);

impl InputBuffer {
    /// Room for `tokens` activations of `columns` values, so that no step grows it.
    pub fn with_room(tokens: usize, columns: usize) -> InputBuffer {
        let mut buffer = InputBuffer::default();
        buffer.take(super::input::len_packed_max(tokens, columns));
        buffer
    }

    pub(super) fn take(&mut self, len: usize) -> &mut [f32] {
        self.0.grow_to(len)
    }
}
