//! One tile of keys and the rows that pass over it. Few rows read the blocks as they lie; for many, f16 is widened once.

use super::block::{KV_BLOCK, KvBlock, KvElement};
use super::multiply::{Ahead, Scores, Sums, ValueRuns, in_registers};
use super::room::{LANES_MAX, Room};
use super::{KEYS_TILE, Queries, Simd, softmax};
use std::ops::Range;

const BLOCKS: usize = KEYS_TILE / KV_BLOCK;
/// Vectors of a tile at most: an instruction set has eight lanes or more.
const VECTORS: usize = KEYS_TILE / 8;

/// Rows up to which a block is widened again for each register tile rather than written out.
const ROWS_DIRECT: usize = 8;

pub(super) struct Tile<'a, E> {
    keys: Range<usize>,
    /// The position of the first block.
    base: usize,
    blocks: [&'a [E]; BLOCKS],
    values: [&'a [E]; BLOCKS],
    count: usize,
    ahead: Ahead,
}

impl<'a, E: KvElement> Tile<'a, E> {
    /// `keys` do not cross a multiple of KEYS_TILE.
    #[inline(always)]
    pub(super) fn new(
        queries: &Queries<'_>,
        keys: Range<usize>,
        blocks: impl Fn(usize) -> KvBlock<'a, E>,
    ) -> Self {
        let first = keys.start / KV_BLOCK;
        let count = keys.end.div_ceil(KV_BLOCK) - first;
        let none: &[E] = &[];
        let mut tile = Tile {
            base: first * KV_BLOCK,
            keys,
            blocks: [none; BLOCKS],
            values: [none; BLOCKS],
            count,
            ahead: Ahead::none(),
        };
        for i in 0..count {
            let block = blocks(first + i);
            let len = queries.head_dim * KV_BLOCK;
            assert!(block.keys.len() == len && block.values.len() == len, "a block of another shape");
            (tile.blocks[i], tile.values[i]) = (block.keys, block.values);
        }
        tile
    }

    /// The keys that come next, to be fetched meanwhile.
    #[inline(always)]
    pub(super) fn look_ahead(&mut self, next: Range<usize>, blocks: impl Fn(usize) -> KvBlock<'a, E>) {
        if next.is_empty() {
            return;
        }
        for block in next.start / KV_BLOCK..next.end.div_ceil(KV_BLOCK) {
            let block = blocks(block);
            self.ahead.push(block.keys);
            self.ahead.push(block.values);
        }
    }

    /// Scores, softmax and sums of all rows.
    #[inline(always)]
    pub(super) fn pass<S: Simd>(self, s: S, queries: &Queries<'_>, room: &mut Room<'_>) {
        let (d, rows) = (queries.head_dim, queries.rows());
        let wide = size_of::<E>() == size_of::<f32>();
        let (first, end) = (self.keys.start - self.base, self.keys.end - self.base);
        if d.is_multiple_of(S::LANES) && (wide || rows <= ROWS_DIRECT) {
            let vector = |v: usize| {
                let at = v * S::LANES;
                if at < self.count * KV_BLOCK {
                    self.blocks[at / KV_BLOCK][at % KV_BLOCK..].as_ptr()
                } else {
                    std::ptr::null()
                }
            };
            let keys: [*const E; VECTORS] = std::array::from_fn(vector);
            let values = self.values.map(<[E]>::as_ptr);
            let values = ValueRuns { runs: &values[..self.count], run: KV_BLOCK, stride: d, first, end };
            // SAFETY: `new` has checked the blocks: keys [D, KV_BLOCK], values [KV_BLOCK, D], D whole vectors.
            unsafe { self.products(s, queries, room, (&keys, KV_BLOCK), values) };
        } else {
            self.widen(s, d, room);
            let (k, v, width) = (room.keys.as_ptr(), room.values.as_ptr(), room.width);
            let keys: [*const f32; VECTORS] = std::array::from_fn(|i| k.wrapping_add(i * S::LANES));
            let values = ValueRuns { runs: &[v], run: KEYS_TILE, stride: width, first, end };
            // SAFETY: the room has keys [D, KEYS_TILE] and values [KEYS_TILE, width], width whole vectors.
            unsafe { self.products(s, queries, room, (&keys, KEYS_TILE), values) };
        }
    }

    /// The tile's keys and values as f32, with zeros beyond D.
    #[inline(always)]
    fn widen<S: Simd>(&self, s: S, d: usize, room: &mut Room<'_>) {
        let width = room.width;
        for block in 0..self.count {
            let keys = self.blocks[block];
            for i in 0..d {
                for lane in (0..KV_BLOCK).step_by(S::LANES) {
                    let to = &mut room.keys[i * KEYS_TILE + block * KV_BLOCK + lane..][..S::LANES];
                    let from = &keys[i * KV_BLOCK + lane..][..S::LANES];
                    // SAFETY: both have LANES values.
                    unsafe { s.store(to.as_mut_ptr(), E::load(s, from.as_ptr())) };
                }
            }
            for j in 0..KV_BLOCK {
                let from = &self.values[block][j * d..][..d];
                let to = &mut room.values[(block * KV_BLOCK + j) * width..][..width];
                let whole = d / S::LANES * S::LANES;
                for i in (0..whole).step_by(S::LANES) {
                    // SAFETY: i + LANES ≤ d ≤ width.
                    unsafe { s.store(to.as_mut_ptr().add(i), E::load(s, from.as_ptr().add(i))) };
                }
                to[d..].fill(0.0);
                to[whole..].iter_mut().zip(&from[whole..]).for_each(|(to, from)| *to = from.to_f32());
            }
        }
    }

    /// # Safety
    /// keys are readable for D vectors each, as many as the tile has; values for KV_BLOCK rows each of `room.width`
    /// values, or of D where that is whole vectors.
    #[inline(always)]
    unsafe fn products<S: Simd, K: KvElement>(
        mut self,
        s: S,
        queries: &Queries<'_>,
        room: &mut Room<'_>,
        keys: (&[*const K], usize),
        values: ValueRuns<'_, K>,
    ) {
        let (rows, d) = (queries.rows(), queries.head_dim);
        self.ahead.spread::<S>(rows);
        let columns = self.count * KV_BLOCK;
        let (q, p) = (room.q.as_ptr(), room.p.as_mut_ptr());
        let mut work = Scores { q, d, keys: keys.0, stride: keys.1, p, ahead: &mut self.ahead };
        // SAFETY: the room has M rows of q and p; the caller answers for the keys.
        unsafe { in_registers(s, rows, columns / S::LANES, &mut work) };
        self.powers(s, queries, room, columns);
        let out = (room.out.as_mut_ptr(), room.width);
        let (p, decay) = (room.p.as_ptr(), room.decay.as_ptr());
        let mut work = Sums { p, values, decay, out, ahead: &mut self.ahead };
        // SAFETY: D in whole vectors is at most the room's width, and what the caller answers for.
        unsafe { in_registers(s, rows, d.div_ceil(S::LANES), &mut work) };
    }

    /// Scores become powers; of keys that a row does not see, exactly zero.
    #[inline(always)]
    fn powers<S: Simd>(&self, s: S, queries: &Queries<'_>, room: &mut Room<'_>, columns: usize) {
        let mut row = 0;
        for token in 0..queries.tokens {
            let seen = queries.visible(token);
            let start = seen.start.saturating_sub(self.base).min(columns);
            let end = seen.end.saturating_sub(self.base).min(columns);
            for _ in 0..queries.group {
                let p = &mut room.p[row * KEYS_TILE..][..columns];
                p[..start].fill(f32::NEG_INFINITY);
                p[end..].fill(f32::NEG_INFINITY);
                let lanes = &mut room.l[row * LANES_MAX..][..LANES_MAX];
                let (m, decay) = (&mut room.m[row], &mut room.decay[row]);
                // Of a length that is known, the scores stay in registers.
                match <&mut [f32; KEYS_TILE]>::try_from(&mut *p) {
                    Ok(whole) => softmax::go_on(s, whole, m, lanes, decay),
                    Err(_) => softmax::go_on(s, p, m, lanes, decay),
                }
                row += 1;
            }
        }
    }
}
