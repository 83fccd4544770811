//! Small parts of the forward that pass once over a vector: rotation, weighted sums, a softmax, a dot product.
//! What belongs to one op alone (norms, the activation of experts, attention) is not here.

use super::simd::Simd;
use super::swiglu::exp;
use super::{Kernels, Op};

/// a f32 [R, n] · b f32 [C, n]
/// # Safety
/// Both are readable for their rows of n values.
#[inline(always)]
unsafe fn dots<S: Simd, const R: usize, const C: usize>(
    s: S,
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    b_stride: usize,
    n: usize,
) -> [[f32; C]; R] {
    let mut acc = [[s.zero(); C]; R];
    let whole = n / S::LANES * S::LANES;
    // SAFETY: every access is below n.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            for r in 0..R {
                let a = s.load(a.add(r * a_stride + i));
                for c in 0..C {
                    acc[r][c] = s.fma(a, s.load(b.add(c * b_stride + i)), acc[r][c]);
                }
            }
        }
        if whole < n {
            for r in 0..R {
                let a = s.load_first(a.add(r * a_stride + whole), n - whole);
                for c in 0..C {
                    let b = s.load_first(b.add(c * b_stride + whole), n - whole);
                    acc[r][c] = s.fma(a, b, acc[r][c]);
                }
            }
        }
    }
    s.sums(acc)
}

/// The largest of whole vectors; −∞ of none.
#[inline(always)]
fn largest<S: Simd>(s: S, row: &[f32]) -> f32 {
    let mut m = s.splat(f32::NEG_INFINITY);
    for chunk in row.chunks_exact(S::LANES) {
        // SAFETY: a chunk has LANES values.
        m = s.max(m, unsafe { s.load(chunk.as_ptr()) });
    }
    s.largest(m)
}

/// row = exp(row − m) over whole vectors; their sum.
#[inline(always)]
fn exp_and_sum<S: Simd>(s: S, row: &mut [f32], m: f32) -> f32 {
    let mut sum = s.zero();
    for chunk in row.chunks_exact_mut(S::LANES) {
        // SAFETY: a chunk has LANES values.
        unsafe {
            let e = exp(s, s.sub(s.load(chunk.as_ptr()), s.splat(m)));
            s.store(chunk.as_mut_ptr(), e);
            sum = s.add(sum, e);
        }
    }
    s.sum(sum)
}

struct Softmax<'a>(&'a mut [f32]);

impl Op for Softmax<'_> {
    /// (the largest value, the sum of the exponentials)
    type Out = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let whole = self.0.len() / S::LANES * S::LANES;
        let (head, tail) = self.0.split_at_mut(whole);
        let mut rest = [f32::NEG_INFINITY; 16];
        rest[..tail.len()].copy_from_slice(tail);
        let rest = &mut rest[..S::LANES];
        let m = largest(s, head).max(largest(s, rest));
        let sum = exp_and_sum(s, head, m) + exp_and_sum(s, rest, m);
        tail.copy_from_slice(&rest[..tail.len()]);
        (m, sum)
    }
}

struct Dot<'a>(&'a [f32], &'a [f32]);

impl Op for Dot<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let n = self.0.len();
        // SAFETY: `Kernels::dot` has checked that both have n values.
        let [[dot]] = unsafe { dots(s, self.0.as_ptr(), n, self.1.as_ptr(), n, n) };
        dot
    }
}

struct Axpy<'a> {
    a: f32,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Op for Axpy<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (n, a, x, y) = (self.x.len(), s.splat(self.a), self.x.as_ptr(), self.y.as_mut_ptr());
        let mut i = 0;
        // SAFETY: every access is below n, the length of both.
        unsafe {
            while i + S::LANES <= n {
                s.store(y.add(i), s.fma(a, s.load(x.add(i)), s.load(y.add(i))));
                i += S::LANES;
            }
            let sum = s.fma(a, s.load_first(x.add(i), n - i), s.load_first(y.add(i), n - i));
            s.store_first(y.add(i), sum, n - i);
        }
    }
}

struct Rope<'a> {
    x: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Op for Rope<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.cos.len();
        for head in self.x.chunks_exact_mut((2 * half).max(1)) {
            for i in (0..half).step_by(S::LANES) {
                let n = S::LANES.min(half - i);
                // SAFETY: i + n ≤ half, the length of both tables and of both halves of the head.
                unsafe {
                    let (a, b) = (head.as_mut_ptr().add(i), head.as_mut_ptr().add(half + i));
                    let cos = s.load_first(self.cos.as_ptr().add(i), n);
                    let sin = s.load_first(self.sin.as_ptr().add(i), n);
                    let (x, y) = (s.load_first(a, n), s.load_first(b, n));
                    s.store_first(a, s.sub(s.mul(x, cos), s.mul(y, sin)), n);
                    s.store_first(b, s.add(s.mul(y, cos), s.mul(x, sin)), n);
                }
            }
        }
    }
}

impl Kernels {
    /// x = exp(x − max x), in place; (max x, Σ). The caller divides. Of no values: (−∞, 0).
    pub fn exp_shifted(&self, x: &mut [f32]) -> (f32, f32) {
        if x.is_empty() {
            return (f32::NEG_INFINITY, 0.0);
        }
        self.dispatch(Softmax(x))
    }

    /// Σ a·b; both f32 [n]
    pub fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        self.dispatch(Dot(a, b))
    }

    /// y += a · x; both f32 [n]
    pub fn axpy(&self, a: f32, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len());
        self.dispatch(Axpy { a, x, y });
    }

    /// Half-split rotation in place: (x_j, x_{j+D/2}) by the angle whose cos and sin are at j.
    /// x: f32 [heads, D], cos, sin: f32 [D/2]
    pub fn rope(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert_eq!(cos.len(), sin.len());
        assert!(x.is_empty() || x.len().is_multiple_of(2 * cos.len()));
        self.dispatch(Rope { x, cos, sin });
    }
}
