//! bf16 weights, f32 activations. W: bf16 [N, K].
//!
//! Versions tried: see the tables in `mod.rs`.

use super::matrix::Matrix;
use super::simd::Simd;
use super::{Kernels, Op};

/// Weights in a cache line: what one prefetch fetches.
const LINE: usize = 32;
/// How far ahead it fetches, in weights: 2 KiB.
const AHEAD: usize = 1024;
/// Lines that one turn of the loop takes with one token: the fewer instructions between two, the more are under way.
const LINES: usize = 6;

/// Rows that share one reading of the activations, which L1 does not hold for many tokens: 1, 2 or 4.
#[inline(always)]
pub(super) fn rows_shared(lanes: usize, tokens: usize) -> usize {
    match (lanes, tokens) {
        // One stream through memory, as the processor's own prefetching likes it best.
        (_, 1) => 1,
        (16, 5..) => 2,
        (16, _) => 4,
        (_, 2) => 4,
        _ => 2,
    }
}

/// The dot products of rows row..row+R with C tokens.
///
/// A line of weights is taken as pairs: two shifts and masks where widening in order takes two shuffles, and half the
/// loads. So fewer instructions lie between two lines, and more lines are under way: with one token that is the limit.
/// # Safety
/// The rows exist; x is readable for C rows of K values, `x_stride` apart, as [`super::input`] arranges few tokens.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, const R: usize, const C: usize>(
    s: S,
    weights: Matrix<'_, u16>,
    row: usize,
    x: *const f32,
    x_stride: usize,
) -> [[f32; C]; R] {
    let (w, w_stride, columns) = (weights.row_ptr(row), weights.stride(), weights.columns());
    let mut acc = [[[s.zero(); C]; R]; 2];
    let mut i = 0;
    // SAFETY: reads stay below `columns` in rows that exist by the contract.
    unsafe {
        // What the processor fetches ahead of one stream is best left alone.
        while C == 1 && i + LINES * LINE <= columns {
            for line in 0..LINES {
                line_of(s, w.add(i + line * LINE), w_stride, x.add(i + line * LINE), x_stride, &mut acc);
            }
            i += LINES * LINE;
        }
        while i + LINE <= columns {
            // So far ahead in these rows or, behind their end, in the next R.
            let ahead = i + AHEAD;
            let ahead = if ahead < columns { ahead } else { ahead + (R - 1) * w_stride };
            for r in 0..if C == 1 { 0 } else { R } {
                s.prefetch(w.wrapping_add(r * w_stride + ahead).cast());
            }
            line_of(s, w.add(i), w_stride, x.add(i), x_stride, &mut acc);
            i += LINE;
        }
        while i + 2 * S::LANES <= columns {
            pairs_of(s, w.add(i), w_stride, x.add(i), x_stride, &mut acc);
            i += 2 * S::LANES;
        }
        while i < columns {
            let n = S::LANES.min(columns - i);
            for r in 0..R {
                let w = s.load_bf16_first(w.add(r * w_stride + i), n);
                for c in 0..C {
                    acc[0][r][c] = s.fma(w, s.load_first(x.add(c * x_stride + i), n), acc[0][r][c]);
                }
            }
            i += n;
        }
    }
    let [mut even, odd] = acc;
    if chains(C) == 2 {
        for r in 0..R {
            for c in 0..C {
                even[r][c] = s.add(even[r][c], odd[r][c]);
            }
        }
    }
    s.sums(even)
}

/// A row alone would wait for its own additions, so its even and odd places are summed apart.
const fn chains(tokens: usize) -> usize {
    if tokens == 1 { 2 } else { 1 }
}

/// One line of each of R rows.
/// # Safety
/// As `tile` says, for a line at each pointer.
#[inline(always)]
unsafe fn line_of<S: Simd, const R: usize, const C: usize>(
    s: S,
    w: *const u16,
    w_stride: usize,
    x: *const f32,
    x_stride: usize,
    acc: &mut [[[S::V; C]; R]; 2],
) {
    for i in (0..LINE).step_by(2 * S::LANES) {
        // SAFETY: the contract is this function's own.
        unsafe { pairs_of(s, w.add(i), w_stride, x.add(i), x_stride, acc) }
    }
}

/// 2·LANES weights of each of R rows.
/// # Safety
/// As `tile` says, for so many at each pointer.
#[inline(always)]
unsafe fn pairs_of<S: Simd, const R: usize, const C: usize>(
    s: S,
    w: *const u16,
    w_stride: usize,
    x: *const f32,
    x_stride: usize,
    acc: &mut [[[S::V; C]; R]; 2],
) {
    // SAFETY: the contract is this function's own.
    unsafe {
        for r in 0..R {
            let (even, odd) = s.load_bf16_pairs(w.add(r * w_stride));
            for (half, w) in [even, odd].into_iter().enumerate() {
                let acc = &mut acc[half % chains(C)][r];
                for c in 0..C {
                    acc[c] = s.fma(w, s.load(x.add(c * x_stride + half * S::LANES)), acc[c]);
                }
            }
        }
    }
}

/// W[row, from..from+count] as f32.
/// # Safety
/// The row and columns exist, and `out` is writable for `count` values.
#[inline(always)]
pub(super) unsafe fn widen_row<S: Simd>(
    s: S,
    weights: Matrix<'_, u16>,
    row: usize,
    from: usize,
    count: usize,
    out: *mut f32,
) {
    // The next panel begins here; no hardware prefetcher follows runs this short.
    for line in (0..count).step_by(LINE) {
        s.prefetch(weights.row_ptr(row).wrapping_add(from + count + line).cast());
    }
    // SAFETY: the contract is this function's own.
    unsafe { widen(s, weights.row_ptr(row).add(from), out, count) }
}

/// # Safety
/// `from` is readable and `to` writable for `count` values.
#[inline(always)]
unsafe fn widen<S: Simd>(s: S, from: *const u16, to: *mut f32, count: usize) {
    let whole = count / S::LANES * S::LANES;
    // SAFETY: every access is below `count`.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            s.store(to.add(i), s.load_bf16(from.add(i)));
        }
        let rest = count - whole;
        s.store_first(to.add(whole), s.load_bf16_first(from.add(whole), rest), rest);
    }
}

struct Widen<'a> {
    from: &'a [u16],
    to: &'a mut [f32],
}

impl Op for Widen<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: `Kernels::bf16_widen` has checked that the lengths are equal.
        unsafe { widen(s, self.from.as_ptr(), self.to.as_mut_ptr(), self.from.len()) }
    }
}

impl Kernels {
    /// to f32 [n] = from bf16 [n]: the embedding, or a bias kept in f32.
    pub fn bf16_widen(&self, from: &[u16], to: &mut [f32]) {
        assert_eq!(from.len(), to.len());
        self.dispatch(Widen { from, to });
    }
}
