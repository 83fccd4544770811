//! Attention of one token over the keys of one kv head, and its small parts. KV is f32 here.
//!
//! Which keys are visible, and where their blocks lie, is the caller's knowledge: it passes slabs.
//! One slab after the other, online: m is the largest score so far, l = Σ exp(s − m), out = Σ exp(s − m)·v.
//! The sink is a key with a score and no value, so it is where m and l begin.

use super::scratch::{GROUP_MAX, Scratch};
use super::simd::Simd;
use super::swiglu::exp;
use super::{Kernels, Op};

/// Keys whose scores are held at once: with their values 16 KiB at D = 64, so values are in L1 for all heads.
pub(super) const KEYS_TILE: usize = 64;

/// The keys and values of `rows` consecutive positions: f32 [rows, D], `stride` values from row to row.
#[derive(Clone, Copy, Debug)]
pub struct KvSlab<'a> {
    pub keys: &'a [f32],
    pub values: &'a [f32],
    pub rows: usize,
    pub stride: usize,
}

struct Attend<'a> {
    /// f32 [G, D]
    q: &'a [f32],
    group: usize,
    d: usize,
    scale: f32,
    slab: KvSlab<'a>,
    /// f32 [G, KEYS_TILE]
    scores: &'a mut [f32],
    /// f32 [G] each
    m: &'a mut [f32],
    l: &'a mut [f32],
    decay: &'a mut [f32],
    /// f32 [G, D]
    out: &'a mut [f32],
}

impl Op for Attend<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for from in (0..self.slab.rows).step_by(KEYS_TILE) {
            let keys = KEYS_TILE.min(self.slab.rows - from);
            // SAFETY: `Kernels::attend_row` has checked the shapes; from..from+keys are rows of the slab.
            unsafe {
                self.scores(s, from, keys);
                self.softmax(s, keys);
                self.values(s, from, keys);
            }
        }
    }
}

impl Attend<'_> {
    /// scores[g, j] = q[g] · key[from + j] · scale
    #[inline(always)]
    unsafe fn scores<S: Simd>(&mut self, s: S, from: usize, keys: usize) {
        const KEYS: usize = 2;
        const HEADS: usize = 4;
        let mut j = 0;
        while j < keys {
            let pair = j + KEYS <= keys;
            let mut g = 0;
            while g < self.group {
                let four = g + HEADS <= self.group;
                // SAFETY: the keys and heads that the tile reads exist.
                unsafe {
                    match (pair, four) {
                        (true, true) => self.score_tile::<S, KEYS, HEADS>(s, from, j, g),
                        (true, false) => self.score_tile::<S, KEYS, 1>(s, from, j, g),
                        (false, true) => self.score_tile::<S, 1, HEADS>(s, from, j, g),
                        (false, false) => self.score_tile::<S, 1, 1>(s, from, j, g),
                    }
                }
                g += if four { HEADS } else { 1 };
            }
            j += if pair { KEYS } else { 1 };
        }
    }

    #[inline(always)]
    unsafe fn score_tile<S: Simd, const R: usize, const C: usize>(
        &mut self,
        s: S,
        from: usize,
        j: usize,
        g: usize,
    ) {
        let (d, stride) = (self.d, self.slab.stride);
        // SAFETY: rows from+j..+R of the slab and heads g..g+C exist, by the contract.
        let dots: [[f32; C]; R] = unsafe {
            let key = self.slab.keys.as_ptr().add((from + j) * stride);
            dots(s, key, stride, self.q.as_ptr().add(g * d), d, d)
        };
        for r in 0..R {
            for c in 0..C {
                self.scores[(g + c) * KEYS_TILE + j + r] = dots[r][c] * self.scale;
            }
        }
    }

    /// scores → exp(scores − m), with m, l and the decay of what is already in `out`.
    #[inline(always)]
    unsafe fn softmax<S: Simd>(&mut self, s: S, keys: usize) {
        for g in 0..self.group {
            let row = &mut self.scores[g * KEYS_TILE..][..KEYS_TILE];
            row[keys..].fill(f32::NEG_INFINITY);
            let row = &mut row[..keys.next_multiple_of(S::LANES)];
            let before = self.m[g];
            let m = largest(s, row).max(before);
            self.m[g] = m;
            // −∞ − −∞ would be NaN: nothing has been seen yet, so nothing decays.
            self.decay[g] = if before == m { 1.0 } else { (before - m).exp() };
            self.l[g] = self.l[g] * self.decay[g] + exp_and_sum(s, row, m);
        }
    }

    /// out[g] = out[g] · decay[g] + Σ_j scores[g, j] · value[from + j]
    #[inline(always)]
    unsafe fn values<S: Simd>(&mut self, s: S, from: usize, keys: usize) {
        const HEADS: usize = 4;
        let mut g = 0;
        while g < self.group {
            let four = g + HEADS <= self.group;
            let mut i = 0;
            while i < self.d {
                // SAFETY: head(s) g and the columns from i on exist; the last vector is cut at d.
                unsafe {
                    let pair = i + 2 * S::LANES <= self.d;
                    match (four, pair) {
                        (true, true) => self.value_tile::<S, HEADS, 2>(s, from, keys, g, i),
                        (true, false) => self.value_tile::<S, HEADS, 1>(s, from, keys, g, i),
                        (false, true) => self.value_tile::<S, 1, 2>(s, from, keys, g, i),
                        (false, false) => self.value_tile::<S, 1, 1>(s, from, keys, g, i),
                    }
                    i += if pair { 2 * S::LANES } else { S::LANES };
                }
            }
            g += if four { HEADS } else { 1 };
        }
    }

    /// V = 2 takes two whole vectors of columns; V = 1 takes one, cut at d.
    #[inline(always)]
    unsafe fn value_tile<S: Simd, const C: usize, const V: usize>(
        &mut self,
        s: S,
        from: usize,
        keys: usize,
        g: usize,
        i: usize,
    ) {
        let (d, stride) = (self.d, self.slab.stride);
        let count = S::LANES.min(d - i);
        let whole = V == 2 || count == S::LANES;
        // SAFETY: heads g..g+C, rows from..from+keys and columns i..i+V·LANES (or ..d) exist.
        unsafe {
            let out = self.out.as_mut_ptr().add(g * d + i);
            let value = self.slab.values.as_ptr().add(from * stride + i);
            let scores = self.scores.as_ptr().add(g * KEYS_TILE);
            let mut acc = [[s.zero(); V]; C];
            for c in 0..C {
                for v in 0..V {
                    let out = out.add(c * d + v * S::LANES);
                    let old = if whole { s.load(out) } else { s.load_first(out, count) };
                    acc[c][v] = s.mul(old, s.splat(self.decay[g + c]));
                }
            }
            for j in 0..keys {
                for v in 0..V {
                    let value = value.add(j * stride + v * S::LANES);
                    let value = if whole { s.load(value) } else { s.load_first(value, count) };
                    for c in 0..C {
                        acc[c][v] = s.fma(s.splat(*scores.add(c * KEYS_TILE + j)), value, acc[c][v]);
                    }
                }
            }
            for c in 0..C {
                for v in 0..V {
                    let out = out.add(c * d + v * S::LANES);
                    if whole { s.store(out, acc[c][v]) } else { s.store_first(out, acc[c][v], count) }
                }
            }
        }
    }
}

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
    /// out[g] = Σ_j p_j v_j, p = softmax over the scores q[g]·k_j·scale *and* sinks[g], which has no value.
    ///
    /// q, out: f32 [G, D], the query heads of one kv head; sinks: f32 [G], −∞ for none (then there must be a
    /// key). The slabs are the visible keys, in any order; each of their rows is read from memory once.
    pub fn attend_row<'a>(
        &self,
        q: &[f32],
        sinks: &[f32],
        scale: f32,
        slabs: impl IntoIterator<Item = KvSlab<'a>>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let group = sinks.len();
        assert!((1..=GROUP_MAX).contains(&group), "{group} query heads, 1 to {GROUP_MAX} are possible");
        assert_eq!(q.len(), out.len());
        assert!(q.len().is_multiple_of(group));
        let d = q.len() / group;
        let (scores, [m, l, decay]) = scratch.scores_and_state();
        m[..group].copy_from_slice(sinks);
        for (l, sink) in l.iter_mut().zip(sinks) {
            *l = if *sink == f32::NEG_INFINITY { 0.0 } else { 1.0 };
        }
        out.fill(0.0);
        for slab in slabs {
            assert!(slab.stride >= d);
            let len = slab.rows.checked_sub(1).map_or(0, |last| last * slab.stride + d);
            assert!(slab.keys.len() >= len && slab.values.len() >= len, "a slab is shorter than its rows");
            self.dispatch(Attend { q, group, d, scale, slab, scores, m, l, decay, out });
        }
        for (head, l) in out.chunks_exact_mut(d.max(1)).zip(l) {
            head.iter_mut().for_each(|out| *out /= *l);
        }
    }

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
