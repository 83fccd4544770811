//! The softmax of a row that goes on from tile to tile, in powers of two.

use super::Simd;
use std::f32::consts::LN_2;

/// 2^a for a ≤ 0, to 1 unit in the last place; exactly 0 below −126.5, exactly 1 at 0; NaN stays.
///
/// a = n + r with |r| ≤ 1/2. Adding 1.5·2^23 + 127 rounds to n and leaves n + 127 in the low bits, which is 2^n
/// once they are the exponent. The polynomial is the best of degree 6 for the relative error, 1.6e-8 in f32.
#[inline(always)]
fn power_of_two<S: Simd>(s: S, a: S::V) -> S::V {
    let magic = s.splat(12_582_912.0 + 127.0);
    let a = s.max(s.splat(-127.0), a);
    let n = s.add(a, magic);
    let r = s.sub(a, s.sub(n, magic));
    let mut p = s.splat(1.534_581_2e-4);
    for c in [1.339_993_1e-3, 9.618_489e-3, 5.550_328_6e-2, 0.240_226_46, LN_2, 1.0] {
        p = s.fma(p, r, s.splat(c));
    }
    s.mul(p, s.shift_to_exponent(n))
}

/// p = 2^(p − m) over whole vectors, with m, the sums l (lane by lane), and the decay of what was summed before.
#[inline(always)]
pub(super) fn go_on<S: Simd>(s: S, p: &mut [f32], m: &mut f32, l: &mut [f32], decay: &mut f32) {
    let mut top = s.splat(f32::NEG_INFINITY);
    for scores in p.chunks_exact(S::LANES) {
        // SAFETY: a chunk has LANES values.
        top = s.max(top, unsafe { s.load(scores.as_ptr()) });
    }
    let (before, top) = (*m, s.largest(top).max(*m));
    if top == f32::NEG_INFINITY {
        // −∞ − −∞ would be NaN: no key has been seen yet, and none of these is.
        *decay = 1.0;
        return p.fill(0.0);
    }
    *m = top;
    *decay = weight(before, top);
    let l = &mut l[..S::LANES];
    // SAFETY: l has LANES values.
    let mut sum = s.mul(unsafe { s.load(l.as_ptr()) }, s.splat(*decay));
    for scores in p.chunks_exact_mut(S::LANES) {
        // SAFETY: a chunk has LANES values.
        unsafe {
            let power = power_of_two(s, s.sub(s.load(scores.as_ptr()), s.splat(top)));
            s.store(scores.as_mut_ptr(), power);
            sum = s.add(sum, power);
        }
    }
    // SAFETY: l has LANES values.
    unsafe { s.store(l.as_mut_ptr(), sum) };
}

/// 2^(m − top): mostly the largest stays the largest, and costs nothing.
#[inline(always)]
pub(super) fn weight(m: f32, top: f32) -> f32 {
    if m == top { 1.0 } else { (m - top).exp2() }
}
