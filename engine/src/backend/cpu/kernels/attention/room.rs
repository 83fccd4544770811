//! What the rows of one call work in, cut out of a thread's scratch.

use super::KEYS_TILE;
use crate::backend::cpu::kernels::Scratch;

/// Vectors are padded to so many values: one of the widest instruction set.
pub(super) const LANES_MAX: usize = 16;

/// From row to row of the queries: a constant, so that the rows of a register tile are one pointer and constants, and no
/// multiple of 4 KiB, so that they do not meet in the same lines of L1.
pub(super) const Q_STRIDE: usize = 272;

/// The largest head that there is room for.
pub(super) const HEAD_DIM_MAX: usize = flotilla_shared::spec::HEAD_DIM_MAX;
const _: () = assert!(HEAD_DIM_MAX <= Q_STRIDE);

/// M rows.
pub(super) struct Room<'a> {
    /// f32 [M, D], scaled, Q_STRIDE apart.
    pub q: &'a mut [f32],
    /// Scores, then their powers: f32 [M, KEYS_TILE].
    pub p: &'a mut [f32],
    /// A tile's keys and values, where they are not read as they lie: f32 [D, KEYS_TILE] and [KEYS_TILE, width].
    pub keys: &'a mut [f32],
    pub values: &'a mut [f32],
    /// f32 [M, width]
    pub out: &'a mut [f32],
    /// D, padded to whole vectors; what is beyond D is zero or of no importance.
    pub width: usize,
    /// f32 [M] each.
    pub m: &'a mut [f32],
    pub decay: &'a mut [f32],
    /// f32 [M, LANES_MAX]: sums lane by lane, of which an instruction set uses the first.
    pub l: &'a mut [f32],
}

impl<'a> Room<'a> {
    pub(super) fn new(scratch: &'a mut Scratch, rows: usize, d: usize) -> Room<'a> {
        let width = d.next_multiple_of(LANES_MAX);
        let padded = rows.next_multiple_of(LANES_MAX);
        let lens = [
            padded * Q_STRIDE,
            padded * KEYS_TILE,
            d * KEYS_TILE,
            width * KEYS_TILE,
            padded * width,
            padded,
            padded,
            padded * LANES_MAX,
        ];
        let mut rest = scratch.attention(lens.iter().sum());
        let mut take = |len: usize| rest.split_off_mut(..len).expect("the lengths add up");
        let [q, p, keys, values, out, m, decay, l] = lens.map(&mut take);
        Room { q, p, keys, values, out, width, m, decay, l }
    }

    /// No key has been seen.
    pub(super) fn begin(&mut self) {
        self.out.fill(0.0);
        self.m.fill(f32::NEG_INFINITY);
        self.l.fill(0.0);
    }

    /// l of a row.
    pub(super) fn lanes(&self, row: usize) -> &[f32] {
        &self.l[row * LANES_MAX..][..LANES_MAX]
    }
}
