//! Eight lanes in AVX2 and FMA.
//!
//! MXFP4 decoding, versions tried (instructions per block of 32, FMA apart; rates in `../mxfp4.rs`):
//! - `vpmovzxbd` and `vpermps` on the three low bits, the sign by shift, and, xor: 40.
//! - now: both nibbles of the 16 bytes side by side in one register, two `pshufb` for the high and the
//!   low byte of the value as bf16, interleaved; bf16 becomes f32 by a shift or a mask: 11. The price is an
//!   odd order of the elements, paid once by permuting the activations.

use super::{BLOCK, Simd};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The machine must have AVX2 and FMA.
    #[inline(always)]
    pub unsafe fn assume() -> Avx2 {
        Avx2(())
    }
}

/// Lane i is all ones where i < n.
#[inline(always)]
fn first(_: Avx2, n: usize) -> __m256i {
    // SAFETY: an `Avx2` exists, so its instructions do.
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

macro_rules! avx2 {
    ($body:expr) => {
        // SAFETY: `self` exists, so the machine has AVX2 and FMA; nothing here touches memory.
        unsafe { $body }
    };
}

impl Simd for Avx2 {
    type V = __m256;
    type Block = [__m256; 4];
    const LANES: usize = 8;
    const BLOCK_ORDER: [u8; BLOCK] = [
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, //
        16, 20, 24, 28, 17, 21, 25, 29, 18, 22, 26, 30, 19, 23, 27, 31,
    ];
    const TOKENS_SHARED: usize = 4;
    const GEMM_ROWS: usize = 6;

    #[inline(always)]
    fn splat(self, a: f32) -> __m256 {
        avx2!(_mm256_set1_ps(a))
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        avx2!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn fused(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        self.fma(a, b, c)
    }
    #[inline(always)]
    fn shift_to_exponent(self, a: __m256) -> __m256 {
        avx2!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(a))))
    }
    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        avx2!({
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
        })
    }
    #[inline(always)]
    fn largest(self, a: __m256) -> f32 {
        avx2!({
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
        })
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // A prefetch of any address is allowed: it never faults.
        avx2!(_mm_prefetch::<_MM_HINT_T0>(p.cast()))
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: the caller answers for LANES values at `p`.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> __m256 {
        // SAFETY: only the lanes below `n` are read; the caller answers for those.
        unsafe { _mm256_maskload_ps(p, first(self, n)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: __m256) {
        // SAFETY: the caller answers for LANES values at `p`.
        unsafe { _mm256_storeu_ps(p, a) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, a: __m256, n: usize) {
        // SAFETY: only the lanes below `n` are written; the caller answers for those.
        unsafe { _mm256_maskstore_ps(p, first(self, n), a) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m256 {
        // SAFETY: the caller answers for LANES values at `p`.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_first(self, p: *const u16, n: usize) -> __m256 {
        let mut bits = [0u16; 8];
        // SAFETY: the caller answers for n ≤ 8 values at `p`; `bits` has 8.
        unsafe {
            p.copy_to_nonoverlapping(bits.as_mut_ptr(), n);
            self.load_bf16(bits.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const f32) -> (__m256, __m256) {
        // SAFETY: the caller answers for 2·LANES values at `p`.
        unsafe {
            let (a, b) = (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8)));
            let in_order = |v| _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(v)));
            let even = _mm256_shuffle_ps::<0b10_00_10_00>(a, b);
            let odd = _mm256_shuffle_ps::<0b11_01_11_01>(a, b);
            (in_order(even), in_order(odd))
        }
    }
    #[inline(always)]
    unsafe fn decode(self, p: *const u8) -> [__m256; 4] {
        // SAFETY: the caller answers for 16 bytes at `p`.
        unsafe {
            // The values as bf16: 0, .5, 1, 1.5, 2, 3, 4, 6 are 0000 3f00 3f80 3fc0 4000 4040 4080 40c0.
            let low = _mm256_broadcastsi128_si256(_mm_setr_epi8(
                0, 0, -128, -64, 0, 64, -128, -64, 0, 0, -128, -64, 0, 64, -128, -64,
            ));
            let high = _mm256_broadcastsi128_si256(_mm_setr_epi8(
                0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, -128, -65, -65, -65, -64, -64, -64, -64,
            ));
            let bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast()));
            let nibbles = _mm256_and_si256(
                _mm256_srlv_epi32(bytes, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)),
                _mm256_set1_epi8(15),
            );
            let low = _mm256_shuffle_epi8(low, nibbles);
            let high = _mm256_shuffle_epi8(high, nibbles);
            let a = _mm256_unpacklo_epi8(low, high);
            let b = _mm256_unpackhi_epi8(low, high);
            let odd = _mm256_set1_epi32(0xffff_0000u32 as i32);
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
                _mm256_castsi256_ps(_mm256_and_si256(a, odd)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
                _mm256_castsi256_ps(_mm256_and_si256(b, odd)),
            ]
        }
    }
}
