//! The activation of an expert, and the exponential that it shares with attention.

use super::matrix::{Matrix, TileMut};
use super::simd::Simd;
use super::{Kernels, Op};

/// e^a, to 2 units in the last place; 0 and ∞ where f32 ends, subnormals between, NaN stays.
///
/// a = n·ln 2 + r with |r| ≤ ln 2 / 2; ln 2 in two parts and the polynomial as in Cephes' `expf`. 2^n is applied
/// in two halves, so that neither overflows: that alone makes the ends of the range right.
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, a: S::V) -> S::V {
    let a = s.max(s.splat(-104.5), s.min(s.splat(89.0), a));
    let n = round(s, s.mul(a, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), a);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.add(s.fma(p, s.mul(r, r), r), s.splat(1.0));
    let half = round(s, s.mul(n, s.splat(0.5)));
    s.mul(s.mul(p, two_to(s, half)), two_to(s, s.sub(n, half)))
}

/// To the nearest integer, for |a| < 2^22: 1.5·2^23 leaves no bits for a fraction.
#[inline(always)]
fn round<S: Simd>(s: S, a: S::V) -> S::V {
    let magic = s.splat(12_582_912.0);
    s.sub(s.add(a, magic), magic)
}

/// 2^n for whole n in −126..=127: 2^23 + 127 + n holds n + 127 in its low bits.
#[inline(always)]
fn two_to<S: Simd>(s: S, n: S::V) -> S::V {
    s.shift_to_exponent(s.add(n, s.splat((1 << 23) as f32 + 127.0)))
}

/// ALPHA in σ(ALPHA · g).
const ALPHA: f32 = 1.702;

/// g = min(gate, limit), u = clip(up, −limit, limit): (u + 1) · g · σ(1.702 g)
#[inline(always)]
fn activation<S: Simd>(s: S, gate: S::V, up: S::V, limit: f32) -> S::V {
    let g = s.min(s.splat(limit), gate);
    let u = s.max(s.splat(-limit), s.min(s.splat(limit), up));
    let one = s.splat(1.0);
    let sigmoid = s.div(one, s.add(one, exp(s, s.mul(g, s.splat(-ALPHA)))));
    s.mul(s.mul(s.add(u, one), g), sigmoid)
}

struct Swiglu<'a, 'y> {
    gate_up: Matrix<'a, f32>,
    limit: f32,
    y: TileMut<'y>,
}

impl Op for Swiglu<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.y.columns();
        for token in 0..self.y.tokens() {
            let from = self.gate_up.row_ptr(token);
            let mut j = columns.start;
            // SAFETY: `Kernels::swiglu` has checked that gate_up has two columns for each of y's.
            unsafe {
                while j + S::LANES <= columns.end {
                    let (gate, up) = s.load_pairs(from.add(2 * j));
                    s.store(self.y.ptr(token, j), activation(s, gate, up, self.limit));
                    j += S::LANES;
                }
                let mut rest = [0.0f32; 32];
                let count = columns.end - j;
                from.add(2 * j).copy_to_nonoverlapping(rest.as_mut_ptr(), 2 * count);
                let (gate, up) = s.load_pairs(rest.as_ptr());
                s.store_first(self.y.ptr(token, j), activation(s, gate, up, self.limit), count);
            }
        }
    }
}

impl Kernels {
    /// y[t, j] = (u + 1) · g · σ(1.702 g) with g = min(gate, limit), u = clip(up, −limit, limit).
    /// gate_up: f32 [T, 2I], gate at 2j and up at 2j + 1; y: f32 [T, columns of I].
    pub fn swiglu(&self, gate_up: Matrix<'_, f32>, limit: f32, y: TileMut<'_>) {
        assert_eq!(gate_up.rows(), y.tokens());
        assert!(2 * y.columns().end <= gate_up.columns());
        self.dispatch(Swiglu { gate_up, limit, y });
    }
}
