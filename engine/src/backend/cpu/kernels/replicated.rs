//! Arithmetic that every rank does for itself and that must give the same bits on every machine, for
//! ranks that disagree in the last bit route a token to different experts.
//!
//! So the order is part of the definition: element i goes into lane i mod 16 by one fused multiply-add,
//! then lanes l and l + 8 are added, l and l + 4, l and l + 2, l and l + 1. The rest is elementwise, or f64.
//! NaN stays NaN everywhere, but its payload may differ.

use super::matrix::{Matrix, TileMut};
use super::simd::Simd;
use super::{Kernels, Op};

/// Lanes of a sum: those of the widest instruction set.
const LANES: usize = 16;

/// (16 sums in P vectors) → one.
#[inline(always)]
fn fold<S: Simd, const P: usize>(s: S, acc: [S::V; P]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for p in 0..P {
        // SAFETY: P · S::LANES is LANES, by `run` of the two ops below.
        unsafe { s.store(lanes.as_mut_ptr().add(p * S::LANES), acc[p]) };
    }
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
    }
    lanes[0]
}

/// How many of the `n` elements that are left belong to vector p.
#[inline(always)]
fn share<S: Simd>(p: usize, n: usize) -> usize {
    n.saturating_sub(p * S::LANES).min(S::LANES)
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [u16],
    eps: f32,
    y: &'a mut [f32],
}

impl Op for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: `Kernels::rms_norm` has checked that the three lengths are equal.
        unsafe { if S::LANES == 16 { self.lanes::<S, 1>(s) } else { self.lanes::<S, 2>(s) } }
    }
}

impl RmsNorm<'_> {
    #[inline(always)]
    unsafe fn lanes<S: Simd, const P: usize>(self, s: S) {
        let n = self.x.len();
        let (x, w, y) = (self.x.as_ptr(), self.weight.as_ptr(), self.y.as_mut_ptr());
        let whole = n / LANES * LANES;
        // SAFETY: every access is below n, the length of all three.
        unsafe {
            let mut acc = [s.zero(); P];
            for i in (0..whole).step_by(LANES) {
                for p in 0..P {
                    let x = s.load(x.add(i + p * S::LANES));
                    acc[p] = s.fused(x, x, acc[p]);
                }
            }
            for p in 0..P {
                let x = s.load_first(x.wrapping_add(whole + p * S::LANES), share::<S>(p, n - whole));
                acc[p] = s.fused(x, x, acc[p]);
            }
            let mean = fold(s, acc) as f64 / n as f64;
            let factor = s.splat((1.0 / (mean + self.eps as f64).sqrt()) as f32);

            let mut i = 0;
            while i + S::LANES <= n {
                let scaled = s.mul(s.load(x.add(i)), factor);
                s.store(y.add(i), s.mul(scaled, s.load_bf16(w.add(i))));
                i += S::LANES;
            }
            let scaled = s.mul(s.load_first(x.add(i), n - i), factor);
            s.store_first(y.add(i), s.mul(scaled, s.load_bf16_first(w.add(i), n - i)), n - i);
        }
    }
}

struct FixedOrderProduct<'a, 'y> {
    weights: Matrix<'a, u16>,
    x: Matrix<'a, f32>,
    bias: Option<&'a [u16]>,
    y: TileMut<'y>,
}

impl Op for FixedOrderProduct<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: `Kernels::fixed_order_product` has checked the shapes against each other.
        unsafe { if S::LANES == 16 { self.lanes::<S, 1>(s) } else { self.lanes::<S, 2>(s) } }
    }
}

impl FixedOrderProduct<'_, '_> {
    #[inline(always)]
    unsafe fn lanes<S: Simd, const P: usize>(self, s: S) {
        const ROWS: usize = 4;
        let rows = self.y.columns();
        let mut row = rows.start;
        while row < rows.end {
            let whole = row + ROWS <= rows.end;
            for token in 0..self.x.rows() {
                // SAFETY: these rows and this token exist.
                unsafe {
                    if whole {
                        self.tile::<S, P, ROWS>(s, row, token);
                    } else {
                        (row..rows.end).for_each(|row| self.tile::<S, P, 1>(s, row, token));
                    }
                }
            }
            row += ROWS;
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const P: usize, const R: usize>(&self, s: S, row: usize, token: usize) {
        let (n, stride) = (self.x.columns(), self.weights.stride());
        let (x, w) = (self.x.row_ptr(token), self.weights.row_ptr(row));
        let whole = n / LANES * LANES;
        let mut acc = [[s.zero(); P]; R];
        // SAFETY: every access is below n in rows that exist; y covers (token, row..row+R).
        unsafe {
            for i in (0..whole).step_by(LANES) {
                for p in 0..P {
                    let i = i + p * S::LANES;
                    let x = s.load(x.add(i));
                    for r in 0..R {
                        acc[r][p] = s.fused(s.load_bf16(w.add(r * stride + i)), x, acc[r][p]);
                    }
                }
            }
            for p in 0..P {
                let (i, count) = (whole + p * S::LANES, share::<S>(p, n - whole));
                let x = s.load_first(x.wrapping_add(i), count);
                for r in 0..R {
                    let w = s.load_bf16_first(w.wrapping_add(r * stride + i), count);
                    acc[r][p] = s.fused(w, x, acc[r][p]);
                }
            }
            for r in 0..R {
                let bias = self.bias.map(|bias| f32::from_bits((bias[row + r] as u32) << 16));
                let sum = fold(s, acc[r]);
                *self.y.ptr(token, row + r) = bias.map_or(sum, |bias| sum + bias);
            }
        }
    }
}

struct AddAssign<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
}

impl Op for AddAssign<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (n, y, x) = (self.y.len(), self.y.as_mut_ptr(), self.x.as_ptr());
        let mut i = 0;
        // SAFETY: every access is below n, the length of both.
        unsafe {
            while i + S::LANES <= n {
                s.store(y.add(i), s.add(s.load(y.add(i)), s.load(x.add(i))));
                i += S::LANES;
            }
            let sum = s.add(s.load_first(y.add(i), n - i), s.load_first(x.add(i), n - i));
            s.store_first(y.add(i), sum, n - i);
        }
    }
}

impl Kernels {
    /// y = x / sqrt(mean(x²) + eps) · w; x, y: f32 [H], weight: bf16 [H]. The same bits everywhere.
    pub fn rms_norm(&self, x: &[f32], weight: &[u16], eps: f32, y: &mut [f32]) {
        assert_eq!(x.len(), weight.len());
        assert_eq!(x.len(), y.len());
        self.dispatch(RmsNorm { x, weight, eps, y });
    }

    /// y[t, e] = Σ_k W[e, k] · x[t, k] + bias[e], for the router: the same bits everywhere.
    /// W: bf16 [E, K], x: f32 [T, K], bias: bf16 [E], y: f32 [T, columns of W's rows].
    pub fn fixed_order_product(
        &self,
        weights: Matrix<'_, u16>,
        x: Matrix<'_, f32>,
        bias: Option<&[u16]>,
        y: TileMut<'_>,
    ) {
        assert_eq!(weights.columns(), x.columns());
        assert_eq!(x.rows(), y.tokens());
        assert!(y.columns().end <= weights.rows());
        assert!(bias.is_none_or(|bias| bias.len() == weights.rows()));
        self.dispatch(FixedOrderProduct { weights, x, bias, y });
    }

    /// y += x; both f32 [n]. The same bits everywhere.
    pub fn add_assign(&self, y: &mut [f32], x: &[f32]) {
        assert_eq!(y.len(), x.len());
        self.dispatch(AddAssign { y, x });
    }
}
