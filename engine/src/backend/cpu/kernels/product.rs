//! y = W·x (+ bias) with bf16 weights: which rows and tokens are taken together, and the GEMM for many tokens.
//! How bf16 is read is in `bf16.rs`; MXFP4 has products of its own.
//!
//! GEMM: a panel of PANEL_ROWS × PANEL_COLUMNS weights is widened to f32 and stays in L2; against it pass
//! tiles of tokens that stay in L1. Lanes are tokens, weights are broadcast, so neither the weights nor the
//! sums are ever transposed inside the loop.
//!
//! Versions tried: see the tables in `mod.rs`.

use super::Op;
use super::bf16::{rows_shared, tile, widen_row};
use super::input::{GEMM_TOKENS, Input};
use super::matrix::{Matrix, TileMut};
use super::scratch::Scratch;
use super::simd::Simd;

/// What becomes of the old y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// y = W·x + bias
    Set,
    /// y += W·x + bias
    Add,
}

/// A product, checked by `Kernels` against the shapes of its parts.
pub(super) struct Product<'a, 'y> {
    pub weights: Matrix<'a, u16>,
    pub x: &'a Input<'a>,
    pub bias: Option<&'a [u16]>,
    pub y: TileMut<'y>,
    pub write: Write,
    pub scratch: &'a mut Scratch,
}

impl Op for Product<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        // SAFETY: `Kernels::product` has checked that the weights have the rows of y's columns, that x and
        // the weights have the same K, that the bias has a value per row and that x and y have as
        // many tokens.
        unsafe {
            if self.x.tokens() < GEMM_TOKENS { few_tokens(s, &mut self) } else { many_tokens(s, &mut self) }
        }
    }
}

impl Product<'_, '_> {
    /// # Safety
    /// token < T, and row is in y's columns.
    #[inline(always)]
    unsafe fn put(&self, token: usize, row: usize, sum: f32) {
        let bias = self.bias.map_or(0.0, |bias| f32::from_bits((bias[row] as u32) << 16));
        let y = self.y.ptr(token, row);
        // SAFETY: the tile covers (token, row), by this function's contract.
        unsafe {
            *y = match self.write {
                Write::Set => sum + bias,
                Write::Add => *y + (sum + bias),
            }
        }
    }
}

/// Rows that stay in the caches while the tokens pass in groups of TOKENS_SHARED.
const ROWS_HELD: usize = 4;

#[inline(always)]
unsafe fn few_tokens<S: Simd>(s: S, p: &mut Product<'_, '_>) {
    let rows = p.y.columns();
    let mut row = rows.start;
    while row < rows.end {
        let end = rows.end.min(row + ROWS_HELD);
        let mut token = 0;
        while token < p.x.tokens() {
            let count = S::TOKENS_SHARED.min(p.x.tokens() - token);
            // SAFETY: row..end are y's columns and token..token+count are tokens; the contract goes on.
            unsafe {
                match count {
                    1 => rows_of::<S, 1>(s, p, row, end, token),
                    2 => rows_of::<S, 2>(s, p, row, end, token),
                    3 => rows_of::<S, 3>(s, p, row, end, token),
                    4 => rows_of::<S, 4>(s, p, row, end, token),
                    5 => rows_of::<S, 5>(s, p, row, end, token),
                    6 => rows_of::<S, 6>(s, p, row, end, token),
                    7 => rows_of::<S, 7>(s, p, row, end, token),
                    _ => rows_of::<S, 8>(s, p, row, end, token),
                }
            }
            token += count;
        }
        row = end;
    }
}

#[inline(always)]
unsafe fn rows_of<S: Simd, const C: usize>(s: S, p: &Product<'_, '_>, row: usize, end: usize, token: usize) {
    // The arms that this instruction set cannot reach are gone after constant folding.
    if C > S::TOKENS_SHARED {
        return;
    }
    // SAFETY: the contract is this function's own.
    unsafe {
        match rows_shared(S::LANES, C) {
            4 => row_tiles::<S, 4, C>(s, p, row, end, token),
            2 => row_tiles::<S, 2, C>(s, p, row, end, token),
            _ => row_tiles::<S, 1, C>(s, p, row, end, token),
        }
    }
}

#[inline(always)]
unsafe fn row_tiles<S: Simd, const R: usize, const C: usize>(
    s: S,
    p: &Product<'_, '_>,
    mut row: usize,
    end: usize,
    token: usize,
) {
    let (x, x_stride) = p.x.rows();
    let x = x.wrapping_add(token * x_stride);
    // SAFETY: row..end and token..token+C exist by the contract; x is the first of C rows.
    unsafe {
        while row + R <= end {
            let sums = tile::<S, R, C>(s, p.weights, row, x, x_stride);
            for r in 0..R {
                for c in 0..C {
                    p.put(token + c, row + r, sums[r][c]);
                }
            }
            row += R;
        }
        while row < end {
            let [sums] = tile::<S, 1, C>(s, p.weights, row, x, x_stride);
            for c in 0..C {
                p.put(token + c, row, sums[c]);
            }
            row += 1;
        }
    }
}

pub(super) const PANEL_ROWS: usize = 48;
/// Row to row in the panel: 16 more than is used, for rows a power of two apart would share cache sets.
pub(super) const PANEL_COLUMNS: usize = PANEL_WIDTH + 16;
const PANEL_WIDTH: usize = 256;
/// Tokens that pass against one widening of a panel.
const TOKENS_PASS: usize = 256;
pub(super) const SUMS_STRIDE: usize = TOKENS_PASS + 16;

const _: () = assert!(PANEL_WIDTH.is_multiple_of(32));
const _: () = assert!(PANEL_ROWS.is_multiple_of(12) && PANEL_ROWS.is_multiple_of(6));

#[inline(always)]
unsafe fn many_tokens<S: Simd>(s: S, p: &mut Product<'_, '_>) {
    let (tokens, columns, rows) = (p.x.tokens(), p.x.columns(), p.y.columns());
    let tiles = p.x.tiles();
    let (panel, sums) = p.scratch.panel_and_sums();
    let (panel, sums) = (panel.as_mut_ptr(), sums.as_mut_ptr());
    for token in (0..tokens).step_by(TOKENS_PASS) {
        let token_end = tokens.min(token + TOKENS_PASS);
        for row in rows.clone().step_by(PANEL_ROWS) {
            let row_end = rows.end.min(row + PANEL_ROWS);
            // SAFETY: panel and sums have PANEL_ROWS rows of their strides; the tiles hold the tokens up to the
            // next multiple of LANES; rows and columns exist.
            unsafe {
                sums.write_bytes(0, PANEL_ROWS * SUMS_STRIDE);
                for from in (0..columns).step_by(PANEL_WIDTH) {
                    let count = PANEL_WIDTH.min(columns - from);
                    for r in row..row_end {
                        let out = panel.add((r - row) * PANEL_COLUMNS);
                        widen_row(s, p.weights, r, from, count, out);
                    }
                    let tile = tiles.add(token * columns + from * S::LANES);
                    let tile_count = (token_end - token).div_ceil(S::LANES);
                    panel_product(s, panel, row_end - row, count, tile, columns, tile_count, sums);
                }
                for t in token..token_end {
                    for r in row..row_end {
                        p.put(t, r, *sums.add((r - row) * SUMS_STRIDE + t - token));
                    }
                }
            }
        }
    }
}

/// sums f32 [rows, tokens] += panel f32 [rows, count] · x f32 [tile_count, columns, LANES]
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the six sizes of a product, and nowhere else needed together")]
unsafe fn panel_product<S: Simd>(
    s: S,
    panel: *const f32,
    rows: usize,
    count: usize,
    x: *const f32,
    columns: usize,
    tile_count: usize,
    sums: *mut f32,
) {
    let apart = columns * S::LANES;
    let mut tile = 0;
    // SAFETY: the contract is `many_tokens`'; a row group may pass `rows` but not PANEL_ROWS, a multiple of it:
    // it then multiplies what an earlier panel left, into sums that nobody reads.
    unsafe {
        while tile < tile_count {
            let pair = tile + 2 <= tile_count;
            let x = x.add(tile * apart);
            for row in (0..rows).step_by(S::GEMM_ROWS) {
                let w = panel.add(row * PANEL_COLUMNS);
                let sums = sums.add(row * SUMS_STRIDE + tile * S::LANES);
                match (S::GEMM_ROWS, pair) {
                    (12, true) => micro::<S, 12, 2>(s, w, count, x, apart, sums),
                    (12, false) => micro::<S, 12, 1>(s, w, count, x, apart, sums),
                    (6, true) => micro::<S, 6, 2>(s, w, count, x, apart, sums),
                    (6, false) => micro::<S, 6, 1>(s, w, count, x, apart, sums),
                    (_, true) => micro::<S, 3, 2>(s, w, count, x, apart, sums),
                    (_, false) => micro::<S, 3, 1>(s, w, count, x, apart, sums),
                }
            }
            tile += 1 + pair as usize;
        }
    }
}

/// sums f32 [R, V · LANES] += w f32 [R, count] · x f32 [V, count, LANES], all of it in registers.
#[inline(always)]
unsafe fn micro<S: Simd, const R: usize, const V: usize>(
    s: S,
    w: *const f32,
    count: usize,
    x: *const f32,
    x_apart: usize,
    sums: *mut f32,
) {
    let mut acc = [[s.zero(); V]; R];
    // SAFETY: the contract is `panel_product`'s.
    unsafe {
        for i in 0..count {
            let mut xs = [s.zero(); V];
            for v in 0..V {
                xs[v] = s.load(x.add(v * x_apart + i * S::LANES));
            }
            for r in 0..R {
                let w = s.splat(*w.add(r * PANEL_COLUMNS + i));
                for v in 0..V {
                    acc[r][v] = s.fma(w, xs[v], acc[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                let sum = sums.add(r * SUMS_STRIDE + v * S::LANES);
                s.store(sum, s.add(s.load(sum), acc[r][v]));
            }
        }
    }
}
