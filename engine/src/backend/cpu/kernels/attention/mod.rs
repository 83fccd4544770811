//! Attention of some consecutive tokens over the keys of one kv head, tile by tile.
//!
//! A row is one query head of one token. Rows of all tokens pass over the keys together, 64 keys at a time:
//! scores = q K, a softmax that goes on from tile to tile (m is the largest score so far, l = Σ 2^(s − m)),
//! out = out · decay + p V. Both products are one broadcast and some vectors, because a block of the cache has its keys
//! transposed (`block.rs`): no sum across lanes is ever taken. Tiles that no row sees are not visited; tiles that some
//! row sees in part are masked. Which blocks hold which positions is the caller's knowledge, and so are threads.
//!
//! **A row has the same bits in every batch.** Tiles lie at multiples of 64 positions and parts at multiples of
//! [`KEYS_SPLIT`], wherever a prompt is cut, whoever computes a part, and however many rows pass together; a masked
//! key adds exactly nothing. Parts are put together in rising order (`part.rs`), where the sink comes in, too.
//!
//! A NaN in a value spreads to the rows beside which it was computed, though they do not see it; all of them are
//! of one sequence. What was in a block before, of another sequence, is never multiplied with.
//!
//! # Measured
//!
//! 2-vCPU Xeon (family 6, model 207), 2026-11-28, one thread, G 8, D 64; of the read rate, 11.2 GB/s, or of the FMA peak, 47.9
//! and 89.1 G/s, in one run. Expected: 0.8 of both.
//!
//! | f16 | AVX2 | AVX-512 |
//! |---|---|---|
//! | 1 row, 512 / 2048 / 32768 keys | 0.53 / 0.58 / 0.59 | 0.78 / 0.88 / 0.92 |
//! | 512 tokens up to 512 / 2048 / 8192 keys | 0.58 / 0.65 / 0.65 | 0.53 / 0.66 / 0.66 |
//! | 512 tokens with a window of 128 | 0.47 | 0.38 |
//!
//! Versions that were slower, 1 row and 32768 keys, in runs of their own: lines of the next tile asked for two a step, as early
//! as can be, 3.9 to 4.1 and 8.1 GB/s, for what is needed now stands behind them (spread, now: 6.6 and 10.4); with AVX2,
//! register tiles of 4 rows and 3 vectors, 6.2 GB/s, and 26 GMAC/s of a prompt (2 vectors, now: 31).

mod block;
mod multiply;
mod part;
mod room;
mod softmax;
mod tile;

use super::simd::Simd;
use super::{Kernels, Op, Scratch};
pub use block::{KV_BLOCK, KvBlock, KvElement};
pub use part::PartShape;
use room::{HEAD_DIM_MAX, Q_STRIDE, Room};
use std::f32::consts::LOG2_E;
use std::ops::Range;
use tile::Tile;

/// Keys whose scores are held at once: as f32 they are 16 KiB at D = 64, their values as much, and one of the two is in
/// L1 while all rows pass over it.
pub(super) const KEYS_TILE: usize = 64;

/// Keys of one part: a sum of its own, that another thread may take.
pub const KEYS_SPLIT: usize = 1024;

const _: () = assert!(KEYS_SPLIT.is_multiple_of(KEYS_TILE) && KEYS_TILE.is_multiple_of(KV_BLOCK));

/// Query heads of one kv head, of tokens behind each other.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// f32 [G, D] of a token, `stride` values from token to token.
    pub q: &'a [f32],
    pub stride: usize,
    pub tokens: usize,
    /// G
    pub group: usize,
    /// D
    pub head_dim: usize,
    /// Of the first token.
    pub position: usize,
    /// Keys that a token sees, its own with them; `usize::MAX` for all.
    pub window: usize,
    /// Of the scores: 1/√D.
    pub scale: f32,
}

impl Queries<'_> {
    /// One a query head of a token.
    pub fn rows(&self) -> usize {
        self.tokens * self.group
    }

    /// The keys that a token sees.
    pub fn visible(&self, token: usize) -> Range<usize> {
        let end = self.position + token + 1;
        end.saturating_sub(self.window)..end
    }

    /// The keys that any of the tokens sees.
    pub fn keys(&self) -> Range<usize> {
        self.visible(0).start..self.position + self.tokens
    }

    fn check(&self) {
        assert!(self.tokens > 0 && self.group > 0 && self.head_dim > 0 && self.window > 0);
        assert!(self.head_dim <= HEAD_DIM_MAX, "heads of {} are wider than {HEAD_DIM_MAX}", self.head_dim);
        let row = self.group * self.head_dim;
        assert!(self.q.len() >= (self.tokens - 1) * self.stride + row, "q is shorter than its tokens");
    }
}

struct Attend<'a, 'q, B> {
    queries: &'a Queries<'q>,
    keys: Range<usize>,
    blocks: &'a B,
    room: Room<'a>,
    shape: PartShape,
    part: &'a mut [f32],
}

impl<'k, E: KvElement, B: Fn(usize) -> KvBlock<'k, E>> Op for Attend<'_, '_, B> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (out, m, l) = self.shape.split(self.part);
        m.fill(f32::NEG_INFINITY);
        if self.keys.is_empty() {
            out.fill(0.0);
            l.fill(0.0);
        }
        self.take_queries();
        let mut from = self.keys.start;
        while from < self.keys.end {
            let end = next_multiple(from, KEYS_SPLIT).min(self.keys.end);
            self.sum_up(s, from..end);
            part::add(s, self.shape, self.part, &self.room);
            from = end;
        }
    }
}

/// The first multiple of `step` beyond `from`.
fn next_multiple(from: usize, step: usize) -> usize {
    (from / step + 1) * step
}

impl<'k, E: KvElement, B: Fn(usize) -> KvBlock<'k, E>> Attend<'_, '_, B> {
    /// q · scale · log₂e, so that the softmax is one of powers of two.
    #[inline(always)]
    fn take_queries(&mut self) {
        let Queries { q, stride, tokens, group, head_dim, scale, .. } = *self.queries;
        let (width, scale) = (group * head_dim, scale * LOG2_E);
        for token in 0..tokens {
            let heads = q[token * stride..][..width].chunks_exact(head_dim);
            for (to, q) in self.room.q[token * group * Q_STRIDE..].chunks_mut(Q_STRIDE).zip(heads) {
                to.iter_mut().zip(q).for_each(|(to, q)| *to = q * scale);
            }
        }
    }

    /// m, l and out of the rows over `keys` alone.
    #[inline(always)]
    fn sum_up<S: Simd>(&mut self, s: S, keys: Range<usize>) {
        self.room.begin();
        let mut from = keys.start;
        while from < keys.end {
            let end = next_multiple(from, KEYS_TILE).min(keys.end);
            let mut tile = Tile::new(self.queries, from..end, self.blocks);
            tile.look_ahead(end..next_multiple(end, KEYS_TILE).min(self.keys.end), self.blocks);
            tile.pass(s, self.queries, &mut self.room);
            from = end;
        }
    }
}

impl Kernels {
    /// Sums the values that the rows see within `keys`, into a part: f32 [`PartShape::len`].
    /// `blocks` gives the block of the cache that holds positions KV_BLOCK · i and on.
    pub fn attend<'k, E: KvElement>(
        &self,
        queries: &Queries<'_>,
        keys: Range<usize>,
        blocks: &impl Fn(usize) -> KvBlock<'k, E>,
        part: &mut [f32],
        scratch: &mut Scratch,
    ) {
        queries.check();
        let seen = queries.keys();
        let keys = keys.start.max(seen.start)..keys.end.min(seen.end);
        let shape = PartShape::new(queries.rows(), queries.head_dim);
        let room = Room::new(scratch, queries.rows(), queries.head_dim);
        assert_eq!(part.len(), shape.len());
        self.dispatch(Attend { queries, keys, blocks, room, shape, part });
    }
}
