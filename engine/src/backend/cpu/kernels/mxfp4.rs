//! MXFP4 weights, f32 activations, exact: element · x, added up over a block of 32, times the block's scale.
//! Scale 255 makes the row NaN, as the format says. In a GEMM the scale goes onto the elements first; that
//! differs by more than rounding only where 6 · 2^(scale − 127) overflows, from scale 252 on.
//!
//! Versions tried: see the tables in `mod.rs`.

use super::matrix::Mxfp4Matrix;
use super::product::Weights;
use super::simd::{BLOCK, BLOCK_BYTES, E8M0, Simd};

/// Blocks in a cache line: what one prefetch fetches.
const LINE: usize = 4;
/// How far ahead it fetches: 2 KiB.
const AHEAD: usize = 128;

/// acc [R, C] += the dot products of `count` ≤ LINE blocks of R rows with C tokens.
///
/// They are summed among themselves first: through `acc` runs a chain over the whole row, and one link
/// for each block would be slower than all the rest.
/// # Safety
/// The blocks and scales are readable in R rows, and x for `count` blocks in C rows.
#[inline(always)]
unsafe fn add_blocks<S: Simd, const R: usize, const C: usize>(
    s: S,
    acc: &mut [[S::V; C]; R],
    (block, scale, blocks_per_row): (*const u8, *const u8, usize),
    count: usize,
    x: *const f32,
    x_stride: usize,
) {
    let mut sums = [[s.zero(); C]; R];
    for b in 0..count {
        for r in 0..R {
            // SAFETY: the contract is this function's own.
            unsafe {
                let w = s.decode(block.add((r * blocks_per_row + b) * BLOCK_BYTES));
                let w = w.as_ref();
                let scale = s.splat(E8M0[*scale.add(r * blocks_per_row + b) as usize]);
                for c in 0..C {
                    let x = x.add(c * x_stride + b * BLOCK);
                    let mut dot = s.mul(w[0], s.load(x));
                    for v in 1..BLOCK / S::LANES {
                        dot = s.fma(w[v], s.load(x.add(v * S::LANES)), dot);
                    }
                    sums[r][c] = s.fma(dot, scale, sums[r][c]);
                }
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            acc[r][c] = s.add(acc[r][c], sums[r][c]);
        }
    }
}

impl Weights for Mxfp4Matrix<'_> {
    #[inline(always)]
    fn rows_shared(lanes: usize, tokens: usize) -> usize {
        match (lanes, tokens) {
            (_, 1) => 1,
            (16, _) => 2,
            _ => 1,
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const C: usize>(
        self,
        s: S,
        row: usize,
        x: *const f32,
        x_stride: usize,
    ) -> [[f32; C]; R] {
        let blocks = self.blocks_per_row();
        let mut acc = [[s.zero(); C]; R];
        let mut block = 0;
        // SAFETY: blocks below `blocks` in rows that exist by the contract.
        unsafe {
            while block + LINE <= blocks {
                let at = (self.block_ptr(row, block), self.scale_ptr(row, block), blocks);
                for r in 0..R {
                    s.prefetch(self.block_ptr(row + r, block + AHEAD));
                }
                add_blocks(s, &mut acc, at, LINE, x.add(block * BLOCK), x_stride);
                block += LINE;
            }
            let at = (self.block_ptr(row, block), self.scale_ptr(row, block), blocks);
            add_blocks(s, &mut acc, at, blocks - block, x.wrapping_add(block * BLOCK), x_stride);
        }
        s.sums(acc)
    }

    #[inline(always)]
    unsafe fn widen<S: Simd>(self, s: S, row: usize, from: usize, count: usize, out: *mut f32) {
        // The next panel begins here; no hardware prefetcher follows runs this short.
        for block in (0..count / BLOCK).step_by(LINE) {
            s.prefetch(self.block_ptr(row, (from + count) / BLOCK + block));
        }
        for block in 0..count / BLOCK {
            // SAFETY: the blocks from..from+count exist and `out` has room for them, by the contract.
            unsafe {
                let scale = s.splat(E8M0[*self.scale_ptr(row, from / BLOCK + block) as usize]);
                let w = s.decode(self.block_ptr(row, from / BLOCK + block));
                for v in 0..BLOCK / S::LANES {
                    s.store(out.add(block * BLOCK + v * S::LANES), s.mul(w.as_ref()[v], scale));
                }
            }
        }
    }
}
