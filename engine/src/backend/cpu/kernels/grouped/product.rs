//! y = W·x with weights in groups of rows: a lane is a row, so sums are never moved between lanes.
//!
//! *Planes*: the bytes of a block's weights are multiplied with the planes of the activations and summed over the 32 as whole
//! numbers, exactly; then one FMA with both scales. The decoded block serves up to
//! eight tokens. A token's sum does not depend on which tokens are with it: the same bits alone and in any batch.
//!
//! *f32*: elements are widened into a panel of columns that stays in L1; every token passes it. The same holds for its bits.
//!
//! Versions tried: see the tables in `mod.rs`.

use super::super::activations::{Activations, Precision, Row};
use super::super::scratch::Scratch;
use super::super::simd::{BLOCK, Simd};
use super::super::{Kernels, Op};
use super::{GroupedInt8, GroupedMxfp4, LANES_MAX, ROOM, Weights};
use std::ops::Range;

/// How far ahead of a block weights are fetched where a block has little arithmetic.
const AHEAD_BYTES: usize = 4096;
/// Where it has more: from memory that far ahead, and from there into the first cache shortly before.
const FAR_BYTES: usize = 16384;
const NEAR_BYTES: usize = 1024;
/// Bytes of weights for one of scales, of all kinds here.
const BYTES_OF_SCALES: usize = 16;
/// Multiplications of bytes for each byte of weights from which on it has more. Below, many blocks are under way at once by
/// themselves, and what is fetched far ahead is in the way.
const FAR_FROM: usize = 4;

struct Product<'a, W> {
    weights: W,
    x: &'a Activations,
    tokens: &'a [u32],
    rows: Range<usize>,
    /// f32 [tokens, rows]
    y: &'a mut [f32],
    panel: &'a mut [f32],
    sums: &'a mut [f32],
}

impl<W: Weights> Op for Product<'_, W> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        // SAFETY: `Kernels::grouped_product` has checked rows, tokens, columns and the room in y.
        unsafe {
            match self.x.precision() {
                Precision::F32 => self.by_panels(s),
                Precision::OnePlane => self.by_planes::<S, 1>(s),
                Precision::TwoPlanes => self.by_planes::<S, 2>(s),
            }
        }
    }
}

/// Asks for what lies behind a block and its scales. Addresses need not exist.
#[inline(always)]
fn fetch_ahead<S: Simd, W: Weights>(s: S, bytes: *const u8, scales: *const u8, far: bool) {
    for line in (0..S::LANES * W::ROW_BYTES).step_by(64) {
        if far {
            s.prefetch_far(bytes.wrapping_add(FAR_BYTES + line));
            s.prefetch(bytes.wrapping_add(NEAR_BYTES + line));
        } else {
            s.prefetch(bytes.wrapping_add(AHEAD_BYTES + line));
        }
    }
    if far {
        s.prefetch(scales.wrapping_add(FAR_BYTES / BYTES_OF_SCALES));
    }
}

impl<W: Weights> Product<'_, W> {
    /// # Safety
    /// As `run` says.
    #[inline(always)]
    unsafe fn by_planes<S: Simd, const P: usize>(&mut self, s: S) {
        for row in self.rows.clone().step_by(S::LANES) {
            let mut token = 0;
            while token < self.tokens.len() {
                // SAFETY: as many tokens are left; the contract goes on.
                token += unsafe {
                    match (P, self.tokens.len() - token) {
                        (1, 8..) => self.group::<S, P, 8, 8, 8>(s, row, token),
                        (1, 4..) => self.group::<S, P, 4, 4, 4>(s, row, token),
                        (1, 2..) => self.group::<S, P, 2, 2, 2>(s, row, token),
                        (1, _) => self.group::<S, P, 1, 1, 1>(s, row, token),
                        (_, 8..) => self.group::<S, P, 8, 4, 8>(s, row, token),
                        (_, 4..) => self.group::<S, P, 4, 4, 8>(s, row, token),
                        (_, 2..) => self.group::<S, P, 2, 2, 4>(s, row, token),
                        (_, _) => self.group::<S, P, 1, 1, 2>(s, row, token),
                    }
                }
            }
        }
    }

    /// y of one group of rows and C tokens, Q of them at a time with their N = P · Q planes; C.
    /// # Safety
    /// As `run` says.
    #[inline(always)]
    unsafe fn group<S: Simd, const P: usize, const C: usize, const Q: usize, const N: usize>(
        &mut self,
        s: S,
        row: usize,
        token: usize,
    ) -> usize {
        // The arms of the other P are gone after constant folding.
        if P * Q != N {
            return C;
        }
        let (mut acc, mut room) = ([s.zero(); C], ROOM);
        // SAFETY: rows, blocks and tokens exist by the contract.
        unsafe {
            let x: [Row; C] = std::array::from_fn(|c| self.x.row(self.tokens[token + c] as usize));
            for block in 0..self.weights.shape().blocks_per_row {
                let (bytes, scales) = self.weights.block(row, block, &mut room);
                if token == 0 {
                    fetch_ahead::<S, W>(s, bytes, scales, C * P * BLOCK >= FAR_FROM * W::ROW_BYTES);
                }
                let w = W::decode(s, bytes);
                let scales = self.weights.scales(s, scales);
                for q in (0..C).step_by(Q) {
                    // Of each token the high plane, then the low one, which takes away what an offset of the weights adds
                    // to both.
                    let planes =
                        std::array::from_fn(|n| x[q + n / P].planes.add((block * P + n % P) * BLOCK));
                    let sum = |n: usize| *x[q + n / P].sums.add(block);
                    let offsets = std::array::from_fn(|n| if n % P == P - 1 { sum(n) } else { 0 });
                    let sums: [S::I; N] = W::dot(s, &w, planes, offsets);
                    for c in q..q + Q {
                        let at = (c - q) * P;
                        let sum = if P == 2 { s.join_planes(sums[at], sums[at + 1]) } else { sums[at] };
                        // In this order nothing is too small for f32 before it must be.
                        let sum = s.mul(s.to_f32(sum), s.splat(*x[c].scales.add(block)));
                        acc[c] = s.fma(sum, scales, acc[c]);
                    }
                }
            }
            for c in 0..C {
                self.put(s, token + c, row, s.mul(acc[c], s.splat(W::UNIT)));
            }
        }
        C
    }

    /// # Safety
    /// As `run` says.
    #[inline(always)]
    unsafe fn put<S: Simd>(&mut self, s: S, token: usize, row: usize, sum: S::V) {
        let count = self.weights.shape().rows_of_group(row);
        let at = token * self.rows.len() + row - self.rows.start;
        debug_assert!(at + count <= self.y.len());
        // SAFETY: y has room for all rows of all tokens.
        unsafe { s.store_first(self.y.as_mut_ptr().add(at), sum, count) }
    }

    /// # Safety
    /// As `run` says.
    #[inline(always)]
    unsafe fn by_panels<S: Simd>(&mut self, s: S) {
        let columns = self.weights.shape().blocks_per_row * BLOCK;
        for tokens in (0..self.tokens.len()).step_by(TOKENS_PASS) {
            let tokens = tokens..self.tokens.len().min(tokens + TOKENS_PASS);
            for row in self.rows.clone().step_by(2 * S::LANES) {
                let (panel, sums) = (self.panel.as_mut_ptr(), self.sums.as_mut_ptr());
                let groups = if row + S::LANES < self.rows.end { 2 } else { 1 };
                // SAFETY: the scratch holds a panel and the sums of TOKENS_PASS tokens; the contract goes on.
                unsafe {
                    sums.write_bytes(0, tokens.len() * 2 * S::LANES);
                    for from in (0..columns).step_by(PANEL_COLUMNS) {
                        let count = PANEL_COLUMNS.min(columns - from);
                        for group in 0..groups {
                            let to = panel.add(group * PANEL_COLUMNS * S::LANES);
                            widen(s, &self.weights, row + group * S::LANES, from..from + count, to);
                        }
                        self.pass(s, tokens.clone(), from, count, panel, sums);
                    }
                    for token in tokens.clone() {
                        for group in 0..groups {
                            let at = ((token - tokens.start) * 2 + group) * S::LANES;
                            self.put(s, token, row + group * S::LANES, s.load(sums.add(at)));
                        }
                    }
                }
            }
        }
    }

    /// sums f32 [tokens, 2, LANES] += panel f32 [2, PANEL_COLUMNS, LANES] · x[tokens, from..from + count]
    /// # Safety
    /// As `by_panels` says.
    #[inline(always)]
    unsafe fn pass<S: Simd>(
        &self,
        s: S,
        tokens: Range<usize>,
        from: usize,
        count: usize,
        panel: *const f32,
        sums: *mut f32,
    ) {
        let mut token = tokens.start;
        while token < tokens.end {
            let left = tokens.end - token;
            // SAFETY: as many tokens are left.
            unsafe {
                let sums = sums.add((token - tokens.start) * 2 * S::LANES);
                token += match left {
                    12.. if S::GEMM_ROWS >= 12 => self.tile::<S, 12>(s, token, from, count, panel, sums),
                    6.. if S::GEMM_ROWS >= 6 => self.tile::<S, 6>(s, token, from, count, panel, sums),
                    3.. => self.tile::<S, 3>(s, token, from, count, panel, sums),
                    _ => self.tile::<S, 1>(s, token, from, count, panel, sums),
                }
            }
        }
    }

    /// C tokens of `pass`; C.
    /// # Safety
    /// As `by_panels` says.
    #[inline(always)]
    unsafe fn tile<S: Simd, const C: usize>(
        &self,
        s: S,
        token: usize,
        from: usize,
        count: usize,
        panel: *const f32,
        sums: *mut f32,
    ) -> usize {
        let mut acc = [[s.zero(); 2]; C];
        // SAFETY: C tokens, `count` columns and the panel are there.
        unsafe {
            let x: [*const f32; C] =
                std::array::from_fn(|c| self.x.row(self.tokens[token + c] as usize).values.add(from));
            for i in 0..count {
                let w = [0, 1].map(|group| s.load(panel.add((group * PANEL_COLUMNS + i) * S::LANES)));
                for c in 0..C {
                    let x = s.splat(*x[c].add(i));
                    acc[c] = [s.fma(w[0], x, acc[c][0]), s.fma(w[1], x, acc[c][1])];
                }
            }
            for c in 0..C {
                for group in 0..2 {
                    let sum = sums.add((c * 2 + group) * S::LANES);
                    s.store(sum, s.add(s.load(sum), acc[c][group]));
                }
            }
        }
        C
    }
}

/// Columns of a panel: with two groups 32 KiB.
const PANEL_COLUMNS: usize = 256;
/// Tokens that pass against one widening of a panel.
const TOKENS_PASS: usize = 256;
const _: () = assert!(PANEL_COLUMNS.is_multiple_of(BLOCK));
/// f32 of a panel and of its sums, at most.
pub(in super::super) const PANEL: usize = 2 * PANEL_COLUMNS * LANES_MAX;
pub(in super::super) const SUMS: usize = 2 * TOKENS_PASS * LANES_MAX;

/// to f32 [columns, LANES] = the group's rows as f32.
/// # Safety
/// The group and whole blocks of columns exist; `to` has room.
#[inline(always)]
unsafe fn widen<S: Simd, W: Weights>(s: S, w: &W, row: usize, columns: Range<usize>, to: *mut f32) {
    let mut room = ROOM;
    for column in columns.clone().step_by(BLOCK) {
        // SAFETY: the contract is this function's own; LANES scales are readable.
        unsafe {
            let (bytes, scales) = w.block(row, column / BLOCK, &mut room);
            let scale = s.mul(w.scales(s, scales), s.splat(W::UNIT));
            let to = to.add((column - columns.start) * S::LANES);
            for k in 0..BLOCK {
                s.store(to.add(k * S::LANES), s.mul(W::element(s, bytes, k), scale));
            }
        }
    }
}

impl Kernels {
    /// y[t, n] = Σ_k W[rows.start + n, k] · x[tokens[t], k]
    /// W: MXFP4 [N, K] in groups, x [T, K], `rows` whole groups; returns y: f32 [tokens, rows], at most TILE values.
    pub fn mxfp4_product<'s>(
        &self,
        weights: GroupedMxfp4<'_>,
        x: &Activations,
        tokens: &[u32],
        rows: Range<usize>,
        scratch: &'s mut Scratch,
    ) -> &'s mut [f32] {
        self.grouped_product(weights, x, tokens, rows, scratch)
    }

    /// The same with W: int8 [N, K] in groups.
    pub fn int8_product<'s>(
        &self,
        weights: GroupedInt8<'_>,
        x: &Activations,
        tokens: &[u32],
        rows: Range<usize>,
        scratch: &'s mut Scratch,
    ) -> &'s mut [f32] {
        self.grouped_product(weights, x, tokens, rows, scratch)
    }

    fn grouped_product<'s, W: Weights>(
        &self,
        weights: W,
        x: &Activations,
        tokens: &[u32],
        rows: Range<usize>,
        scratch: &'s mut Scratch,
    ) -> &'s mut [f32] {
        let shape = weights.shape();
        assert_eq!(shape.lanes, self.isa().lanes(), "the weights were grouped for another instruction set");
        assert_eq!(shape.blocks_per_row * BLOCK, x.columns());
        shape.check_rows(&rows);
        assert!(tokens.iter().all(|token| (*token as usize) < x.tokens()));
        let (y, panel, sums) = scratch.tile_and_work(tokens.len() * rows.len());
        self.dispatch(Product { weights, x, tokens, rows, y: &mut *y, panel, sums });
        y
    }
}
