//! MXFP4 weights, f32 activations, exact: element · x, added up over a block of 32, times the block's scale.
//! Scale 255 makes the row NaN, as the format says. In a GEMM the scale goes onto the elements first; that
//! differs by more than rounding only where 6 · 2^(scale − 127) overflows, from scale 252 on.
//!
//! Versions tried: see the table at the end of `mod.rs`.

use super::bf16::sums;
use super::matrix::Mxfp4Matrix;
use super::product::Weights;
use super::simd::{BLOCK, BLOCK_BYTES, E8M0, Simd};

/// Blocks in a cache line: what one prefetch fetches.
const LINE: usize = 4;

/// acc [R, C] += the dot products of one block of R rows with C tokens
/// # Safety
/// The block is readable in R rows, and x for BLOCK values in C rows.
#[inline(always)]
unsafe fn add_block<S: Simd, const R: usize, const C: usize>(
    s: S,
    acc: &mut [[S::V; C]; R],
    (block, scale): (*const u8, *const u8),
    blocks_per_row: usize,
    x: *const f32,
    x_stride: usize,
) {
    for r in 0..R {
        // SAFETY: the contract is this function's own.
        unsafe {
            let w = s.decode(block.add(r * blocks_per_row * BLOCK_BYTES));
            let w = w.as_ref();
            let scale = s.splat(E8M0[*scale.add(r * blocks_per_row) as usize]);
            for c in 0..C {
                let x = x.add(c * x_stride);
                let mut dot = s.mul(w[0], s.load(x));
                for v in 1..BLOCK / S::LANES {
                    dot = s.fma(w[v], s.load(x.add(v * S::LANES)), dot);
                }
                acc[r][c] = s.fma(dot, scale, acc[r][c]);
            }
        }
    }
}

impl Weights for Mxfp4Matrix<'_> {
    #[inline(always)]
    fn rows_shared(lanes: usize, tokens: usize) -> usize {
        match tokens {
            1 if lanes == 16 => 4,
            1 => 2,
            _ if lanes == 16 => 2,
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
        let at = |block| (self.block_ptr(row, block), self.scale_ptr(row, block));
        // SAFETY: blocks below `blocks` in rows that exist by the contract.
        unsafe {
            while block + LINE <= blocks {
                for r in 0..R {
                    s.prefetch(self.block_ptr(row + R + r, block));
                }
                for block in block..block + LINE {
                    add_block(s, &mut acc, at(block), blocks, x.add(block * BLOCK), x_stride);
                }
                block += LINE;
            }
            while block < blocks {
                add_block(s, &mut acc, at(block), blocks, x.add(block * BLOCK), x_stride);
                block += 1;
            }
        }
        sums(s, acc)
    }

    #[inline(always)]
    unsafe fn widen<S: Simd>(self, s: S, row: usize, from: usize, count: usize, out: *mut f32) {
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
