//! The two products of attention as register tiles: some rows against some vectors, a broadcast for each row and step.
//! The shapes in memory are the caller's; nothing here knows a mask.

use super::block::{KV_BLOCK, KvElement};
use super::room::Q_STRIDE;
use super::{KEYS_TILE, Simd};

/// Lines of the cache that will be read next. They are asked for one by one, between multiplications: all at once would
/// stand in line before what is needed now.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    runs: [Lines; 2 * KEYS_TILE / KV_BLOCK],
    count: usize,
    next: usize,
    /// They are asked for in every step whose number has none of these bits.
    pace: usize,
}

/// Lines behind each other. A register tile takes some for its own, so that they are in registers.
#[derive(Clone, Copy)]
struct Lines {
    at: *const u8,
    left: usize,
}

impl Ahead {
    pub(super) fn none() -> Ahead {
        let none = Lines { at: std::ptr::null(), left: 0 };
        Ahead { runs: [none; 2 * KEYS_TILE / KV_BLOCK], count: 0, next: 0, pace: 0 }
    }

    /// What lies behind the last joins it.
    pub(super) fn push<E>(&mut self, values: &[E]) {
        let lines = Lines { at: values.as_ptr().cast(), left: size_of_val(values) / 64 };
        match self.runs[..self.count].last_mut() {
            Some(last) if last.at.wrapping_add(64 * last.left) == lines.at => last.left += lines.left,
            _ => {
                self.runs[self.count] = lines;
                self.count += 1;
            }
        }
    }

    /// Spreads a tile's lines over the steps in which `rows` pass over the tile before.
    #[inline(always)]
    pub(super) fn spread<S: Simd>(&mut self, rows: usize) {
        let passes = rows.div_ceil(rows_at_once::<S>());
        let steps_a_line = (passes * 16 / S::LANES).max(1);
        self.pace = (1 << steps_a_line.ilog2()) - 1;
    }

    #[inline(always)]
    fn take(&self) -> Lines {
        self.runs[self.next]
    }

    /// What a register tile had no time for.
    #[inline(always)]
    fn give_back(&mut self, lines: Lines) {
        self.runs[self.next] = lines;
        if lines.left == 0 && self.next + 1 < self.count {
            self.next += 1;
        }
    }
}

impl Lines {
    /// One line of f16, two of f32: so a step that reads a vector of each has its share.
    #[inline(always)]
    fn ask<S: Simd, E>(&mut self, s: S) {
        for _ in 0..size_of::<E>() / 2 {
            if self.left > 0 {
                s.prefetch_far(self.at);
                self.at = self.at.wrapping_add(64);
                self.left -= 1;
            }
        }
    }
}

/// A product whose register tiles have R rows and V vectors.
pub(super) trait Product<S: Simd> {
    /// # Safety
    /// Rows row..row+R and vectors vector..vector+V exist in everything that the product points at.
    unsafe fn tile<const R: usize, const V: usize>(&mut self, s: S, row: usize, vector: usize);
}

/// As many as the registers hold beside two vectors.
const fn rows_at_once<S: Simd>() -> usize {
    if S::LANES == 16 { 8 } else { 4 }
}

/// Tiles of that many rows and vectors, or fewer, that cover all.
/// # Safety
/// As many rows and vectors exist in everything that the product points at.
#[inline(always)]
pub(super) unsafe fn in_registers<S: Simd>(s: S, rows: usize, vectors: usize, product: &mut impl Product<S>) {
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        let taken = match left {
            _ if left >= rows_at_once::<S>() => rows_at_once::<S>(),
            4.. => 4,
            _ => 1,
        };
        let mut vector = 0;
        while vector < vectors {
            let wide = (vectors - vector).min(2);
            // SAFETY: the rows and vectors of each tile are below their numbers.
            unsafe {
                match (taken, wide) {
                    (8, 2) => product.tile::<8, 2>(s, row, vector),
                    (8, _) => product.tile::<8, 1>(s, row, vector),
                    (4, 2) => product.tile::<4, 2>(s, row, vector),
                    (4, _) => product.tile::<4, 1>(s, row, vector),
                    (_, 2) => product.tile::<1, 2>(s, row, vector),
                    (_, _) => product.tile::<1, 1>(s, row, vector),
                }
            }
            vector += wide;
        }
        row += taken;
    }
}

/// p[r, v] = Σ_i q[r, i] · key_v[i]
pub(super) struct Scores<'a, E> {
    /// f32 [M, D], Q_STRIDE apart.
    pub q: *const f32,
    pub d: usize,
    /// Where the first of D vectors lies, `stride` apart: one a vector.
    pub keys: &'a [*const E],
    pub stride: usize,
    /// f32 [M, KEYS_TILE]
    pub p: *mut f32,
    pub ahead: &'a mut Ahead,
}

impl<S: Simd, E: KvElement> Product<S> for Scores<'_, E> {
    #[inline(always)]
    unsafe fn tile<const R: usize, const V: usize>(&mut self, s: S, row: usize, vector: usize) {
        let (d, stride, keys) = (self.d, self.stride, &self.keys[vector..vector + V]);
        let (mut acc, mut ahead, pace) = ([[s.zero(); V]; R], self.ahead.take(), self.ahead.pace);
        // SAFETY: i is below d; see the contract.
        unsafe {
            let q = self.q.add(row * Q_STRIDE);
            for i in 0..d {
                if i & pace == 0 {
                    ahead.ask::<S, E>(s);
                }
                let mut key = [s.zero(); V];
                for v in 0..V {
                    key[v] = E::load(s, keys[v].add(i * stride));
                }
                for r in 0..R {
                    let q = s.splat(*q.add(r * Q_STRIDE + i));
                    for v in 0..V {
                        acc[r][v] = s.fma(q, key[v], acc[r][v]);
                    }
                }
            }
            let p = self.p.add(row * KEYS_TILE + vector * S::LANES);
            for r in 0..R {
                for v in 0..V {
                    s.store(p.add(r * KEYS_TILE + v * S::LANES), acc[r][v]);
                }
            }
        }
        self.ahead.give_back(ahead);
    }
}

/// Values of a tile: those of `run` positions behind each other, `stride` apart.
pub(super) struct ValueRuns<'a, E> {
    pub runs: &'a [*const E],
    pub run: usize,
    pub stride: usize,
    /// The positions that count: from the first run's first on.
    pub first: usize,
    pub end: usize,
}

/// out[r, v] = out[r, v] · decay[r] + Σ_j p[r, j] · value[j, v]
pub(super) struct Sums<'a, E> {
    /// f32 [M, KEYS_TILE]
    pub p: *const f32,
    pub values: ValueRuns<'a, E>,
    /// f32 [M]
    pub decay: *const f32,
    /// f32 [M, …], and how far rows are apart.
    pub out: (*mut f32, usize),
    pub ahead: &'a mut Ahead,
}

impl<S: Simd, E: KvElement> Product<S> for Sums<'_, E> {
    #[inline(always)]
    unsafe fn tile<const R: usize, const V: usize>(&mut self, s: S, row: usize, vector: usize) {
        let (values, column, (out, width)) = (&self.values, vector * S::LANES, self.out);
        let (mut acc, mut ahead, pace) = ([[s.zero(); V]; R], self.ahead.take(), self.ahead.pace);
        // SAFETY: j is below `end`; see the contract.
        unsafe {
            let (out, p) = (out.add(row * width + column), self.p.add(row * KEYS_TILE));
            for r in 0..R {
                let decay = s.splat(*self.decay.add(row + r));
                for v in 0..V {
                    acc[r][v] = s.mul(s.load(out.add(r * width + v * S::LANES)), decay);
                }
            }
            for (index, base) in values.runs.iter().enumerate() {
                let before = index * values.run;
                for j in values.first.max(before)..values.end.min(before + values.run) {
                    if j & pace == 0 {
                        ahead.ask::<S, E>(s);
                    }
                    let mut value = [s.zero(); V];
                    for v in 0..V {
                        let at = (j - before) * values.stride + column + v * S::LANES;
                        value[v] = E::load(s, base.add(at));
                    }
                    for r in 0..R {
                        let p = s.splat(*p.add(r * KEYS_TILE + j));
                        for v in 0..V {
                            acc[r][v] = s.fma(p, value[v], acc[r][v]);
                        }
                    }
                }
            }
            for r in 0..R {
                for v in 0..V {
                    s.store(out.add(r * width + v * S::LANES), acc[r][v]);
                }
            }
        }
        self.ahead.give_back(ahead);
    }
}
