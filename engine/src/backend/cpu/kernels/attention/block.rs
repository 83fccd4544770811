//! A block of the cache as kernels read it: 16 positions of one kv head, in f32 or f16. Where blocks lie, and which
//! sequence has them, is not known here.

use super::Simd;
use half::f16;

/// Positions of a block.
pub const KV_BLOCK: usize = 16;

/// The keys of a block, transposed, and its values. Lanes are positions in scores, and columns in sums of values.
#[derive(Debug)]
pub struct KvBlock<'a, E> {
    /// [D, KV_BLOCK]
    pub keys: &'a [E],
    /// [KV_BLOCK, D]
    pub values: &'a [E],
}

/// What the cache holds: f32, or the bits of an f16.
pub trait KvElement: bytemuck::Pod + Send + Sync {
    /// Rounded to the nearest; what is too large for f16 becomes ±65504, NaN stays.
    fn from_f32(value: f32) -> Self;
    fn to_f32(self) -> f32;
    /// # Safety
    /// `p` must be readable for LANES values.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;
}

impl KvElement for f32 {
    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: the caller answers for LANES values at `p`.
        unsafe { s.load(p) }
    }
}

impl KvElement for u16 {
    #[inline(always)]
    fn from_f32(value: f32) -> u16 {
        f16::from_f32(value.clamp(f16::MIN.to_f32_const(), f16::MAX.to_f32_const())).to_bits()
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::from_bits(self).to_f32()
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u16) -> S::V {
        // SAFETY: the caller answers for LANES values at `p`.
        unsafe { s.load_f16(p) }
    }
}
