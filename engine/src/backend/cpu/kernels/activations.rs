//! Activations as the products with grouped weights read them: f32 as they are, or blocks of 32 as whole numbers with a
//! scale each, in one plane of eight bits or in two of them.
//!
//! x ≈ scale · (128 · high + low), the numbers rounded to nearest: −127..=127 in one plane, −16319..=16319 in two.
//! Measured against f32 over blocks of normally distributed values, the root mean square of the error is 0.6 % of that of the
//! values with one plane and 0.005 % with two; rounding to bf16 makes 0.17 % (`tests/activations.rs`).
//! A NaN or an infinity makes the scale of its block one, so it reaches every sum that it should.

use super::simd::BLOCK;
use super::{Kernels, Op, simd::Simd};
use std::fmt;
use std::str::FromStr;

/// How activations enter a product with grouped weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As they are: for tests, and to measure others by.
    F32,
    /// Two planes of int8, fifteen bits and a sign.
    #[default]
    TwoPlanes,
    /// One plane of int8.
    OnePlane,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::TwoPlanes => "int8x2",
            Precision::OnePlane => "int8",
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Precision::F32, Precision::TwoPlanes, Precision::OnePlane];
        let found = all.into_iter().find(|precision| precision.to_string() == text);
        found.ok_or_else(|| format!("expected int8x2, int8 or f32, found {text:?}"))
    }
}

impl Precision {
    fn planes(self) -> usize {
        match self {
            Precision::F32 => 0,
            Precision::OnePlane => 1,
            Precision::TwoPlanes => 2,
        }
    }

    /// The largest number of a block.
    fn most(self) -> f32 {
        if self == Precision::TwoPlanes { 127.0 * 128.0 + 63.0 } else { 127.0 }
    }
}

/// x [T, K], in memory that is taken once. Numbers of a block lie together: high plane, then low.
#[derive(Debug)]
pub struct Activations {
    precision: Precision,
    tokens: usize,
    columns: usize,
    /// f32 [T, K], or nothing.
    values: Vec<f32>,
    /// i8 [T, K/32, planes, 32]
    planes: Vec<i8>,
    /// f32 [T, K/32]: of the numbers.
    scales: Vec<f32>,
    /// i32 [T, K/32]: Σ of the numbers of a block.
    sums: Vec<i32>,
}

/// One token's activations, for a product.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub values: *const f32,
    pub planes: *const i8,
    pub scales: *const f32,
    pub sums: *const i32,
}

impl Activations {
    /// Room for `tokens` rows of `columns`, a multiple of 32.
    pub fn with_room(precision: Precision, tokens: usize, columns: usize) -> Activations {
        assert!(columns.is_multiple_of(BLOCK), "{columns} columns are not whole blocks of {BLOCK}");
        let (values, planes) = (tokens * columns, precision.planes());
        let blocks = if planes > 0 { values / BLOCK } else { 0 };
        Activations {
            precision,
            tokens,
            columns,
            values: vec![0.0; if planes > 0 { 0 } else { values }],
            planes: vec![0; values * planes],
            scales: vec![0.0; blocks],
            sums: vec![0; blocks],
        }
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }
    pub fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// # Safety
    /// `token` is one of `tokens`. Only the pointers of the precision may be followed.
    #[inline(always)]
    pub(super) unsafe fn row(&self, token: usize) -> Row {
        let block = token * (self.columns / BLOCK);
        Row {
            values: self.values.as_ptr().wrapping_add(token * self.columns),
            planes: self.planes.as_ptr().wrapping_add(block * BLOCK * self.precision.planes()),
            scales: self.scales.as_ptr().wrapping_add(block),
            sums: self.sums.as_ptr().wrapping_add(block),
        }
    }

    /// For threads that set different blocks of it.
    pub fn shared(&mut self) -> SharedActivations<'_> {
        SharedActivations {
            precision: self.precision,
            columns: self.columns,
            tokens: self.tokens,
            values: self.values.as_mut_ptr(),
            planes: self.planes.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
            owner: std::marker::PhantomData,
        }
    }
}

/// Activations of which several threads set blocks, no two the same.
#[derive(Debug)]
pub struct SharedActivations<'a> {
    precision: Precision,
    columns: usize,
    tokens: usize,
    values: *mut f32,
    planes: *mut i8,
    scales: *mut f32,
    sums: *mut i32,
    owner: std::marker::PhantomData<&'a mut Activations>,
}

// SAFETY: it borrows the activations mutably, and who calls `set` answers for blocks that no other thread sets.
unsafe impl Sync for SharedActivations<'_> {}

impl SharedActivations<'_> {
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Sets x[token, from..from + len]; both are whole blocks.
    ///
    /// # Safety
    /// No other thread sets a block of it at the same time.
    pub unsafe fn set(&self, kernels: Kernels, token: usize, from: usize, x: &[f32]) {
        assert!(token < self.tokens && from.is_multiple_of(BLOCK) && x.len().is_multiple_of(BLOCK));
        assert!(from + x.len() <= self.columns);
        if self.precision == Precision::F32 {
            // SAFETY: within the values, and nobody else's, by the contract.
            unsafe {
                let to = self.values.add(token * self.columns + from);
                to.copy_from_nonoverlapping(x.as_ptr(), x.len());
            }
            return;
        }
        kernels.dispatch(Set { shared: self, first: (token * self.columns + from) / BLOCK, x });
    }
}

struct Set<'a> {
    shared: &'a SharedActivations<'a>,
    first: usize,
    x: &'a [f32],
}

impl Op for Set<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let SharedActivations { precision, planes, scales, sums, .. } = *self.shared;
        let most = precision.most();
        for (i, x) in self.x.as_chunks::<BLOCK>().0.iter().enumerate() {
            let block = self.first + i;
            let (numbers, scale) = numbers(x, most);
            let sum: i32 = numbers.iter().sum();
            // SAFETY: the block is within the activations, as `set` has checked, and this thread's alone.
            unsafe {
                *scales.add(block) = scale;
                *sums.add(block) = sum;
                let out = planes.add(block * BLOCK * precision.planes());
                if precision == Precision::TwoPlanes {
                    for (k, number) in numbers.into_iter().enumerate() {
                        let high = (number + 64) >> 7;
                        *out.add(k) = high as i8;
                        *out.add(BLOCK + k) = (number - (high << 7)) as i8;
                    }
                } else {
                    numbers.into_iter().enumerate().for_each(|(k, number)| *out.add(k) = number as i8);
                }
            }
        }
    }
}

/// x ≈ numbers · scale, the largest of them ±`most`.
#[inline(always)]
fn numbers(x: &[f32; BLOCK], most: f32) -> ([i32; BLOCK], f32) {
    // As whole numbers sizes are in the order of the values, with infinity and NaN above all.
    let size = x.iter().fold(0, |size, x| size.max(x.to_bits() & 0x7fff_ffff));
    let size = f32::from_bits(size);
    let inverse = if size > f32::MIN_POSITIVE * 32768.0 { most / size } else { 0.0 };
    let scale = if inverse > 0.0 || !size.is_finite() { size / most } else { 0.0 };
    // 1.5·2^23 leaves no bits for a fraction, so the sum rounds to the nearest.
    const MAGIC: f32 = 12_582_912.0;
    let inverse = if size.is_finite() { inverse } else { 0.0 };
    let number = |x: f32| (x * inverse + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32;
    let finite = |x: f32| if x.is_finite() { x } else { 0.0 };
    (std::array::from_fn(|k| number(finite(x[k]))), scale)
}
