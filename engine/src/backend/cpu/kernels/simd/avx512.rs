//! Sixteen lanes in AVX-512 F, BW and VL. One `vpermps` is the whole table of FP4.

use super::{BLOCK, FP4, Simd};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The machine must have AVX-512 F, BW and VL, AVX2 and FMA.
    #[inline(always)]
    pub unsafe fn assume() -> Avx512 {
        Avx512(())
    }
}

#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

macro_rules! avx512 {
    ($body:expr) => {
        // SAFETY: `self` exists, so the machine has AVX-512 F, BW and VL; nothing here touches memory.
        unsafe { $body }
    };
}

impl Simd for Avx512 {
    type V = __m512;
    type Block = [__m512; 2];
    const LANES: usize = 16;
    const BLOCK_ORDER: [u8; BLOCK] = [
        0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, //
        1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
    ];
    const TOKENS_SHARED: usize = 8;
    const GEMM_ROWS: usize = 12;

    #[inline(always)]
    fn splat(self, a: f32) -> __m512 {
        avx512!(_mm512_set1_ps(a))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        avx512!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn fused(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        self.fma(a, b, c)
    }
    #[inline(always)]
    fn shift_to_exponent(self, a: __m512) -> __m512 {
        avx512!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(a))))
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        avx512!(_mm512_reduce_add_ps(a))
    }
    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        avx512!(_mm512_reduce_max_ps(a))
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // A prefetch of any address is allowed: it never faults.
        avx512!(_mm_prefetch::<_MM_HINT_T0>(p.cast()))
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the caller answers for LANES values at `p`.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> __m512 {
        // SAFETY: only the lanes below `n` are read; the caller answers for those.
        unsafe { _mm512_maskz_loadu_ps(first(n), p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: __m512) {
        // SAFETY: the caller answers for LANES values at `p`.
        unsafe { _mm512_storeu_ps(p, a) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, a: __m512, n: usize) {
        // SAFETY: only the lanes below `n` are written; the caller answers for those.
        unsafe { _mm512_mask_storeu_ps(p, first(n), a) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m512 {
        // SAFETY: the caller answers for LANES values at `p`.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_first(self, p: *const u16, n: usize) -> __m512 {
        // SAFETY: only the lanes below `n` are read; the caller answers for those.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const f32) -> (__m512, __m512) {
        // SAFETY: the caller answers for 2·LANES values at `p`.
        unsafe {
            let (a, b) = (_mm512_loadu_ps(p), _mm512_loadu_ps(p.add(16)));
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
            (_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b))
        }
    }
    #[inline(always)]
    unsafe fn decode(self, p: *const u8) -> [__m512; 2] {
        // SAFETY: the caller answers for 16 bytes at `p`; the table is a static of 16 values.
        unsafe {
            let table = _mm512_loadu_ps(FP4.as_ptr());
            // vpermps looks at the four low bits of an index, so a low nibble needs no mask.
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            let even = _mm512_permutexvar_ps(bytes, table);
            let odd = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), table);
            [even, odd]
        }
    }
}
