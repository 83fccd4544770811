//! Sixteen lanes in AVX-512 F, BW and VL; with VNNI, four products of bytes are one instruction, and with VBMI, which
//! Cascade Lake and Cooper Lake lack though they have VNNI, a nibble needs no mask. One `vpermps` is the whole table of FP4.

use super::{FP4, FP4_UNSIGNED, GROUPS, Simd, nibble_shift};
use std::arch::x86_64::*;

/// `VNNI`, `VBMI`: whether these are there too.
#[derive(Clone, Copy)]
pub struct Avx512<const VNNI: bool, const VBMI: bool>(());

impl<const VNNI: bool, const VBMI: bool> Avx512<VNNI, VBMI> {
    /// # Safety
    /// The machine must have AVX-512 F, BW and VL, AVX2 and FMA, and VNNI and VBMI if so said.
    #[inline(always)]
    pub unsafe fn assume() -> Avx512<VNNI, VBMI> {
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

impl<const VNNI: bool, const VBMI: bool> Simd for Avx512<VNNI, VBMI> {
    type V = __m512;
    type I = __m512i;
    type B = __m512i;
    const LANES: usize = 16;
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
    fn prefetch_far(self, p: *const u8) {
        avx512!(_mm_prefetch::<_MM_HINT_T1>(p.cast()))
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
    unsafe fn load_bf16_pairs(self, p: *const u16) -> (__m512, __m512) {
        // SAFETY: the caller answers for 2·LANES values at `p`.
        unsafe {
            let bits = _mm512_loadu_si512(p.cast());
            let odd = _mm512_and_si512(bits, _mm512_set1_epi32(!0xffff));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)), _mm512_castsi512_ps(odd))
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
    unsafe fn load_f16(self, p: *const u16) -> __m512 {
        // SAFETY: the caller answers for LANES values at `p`.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
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
    fn to_f32(self, a: __m512i) -> __m512 {
        avx512!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn join_planes(self, high: __m512i, low: __m512i) -> __m512i {
        avx512!(_mm512_add_epi32(_mm512_slli_epi32::<7>(high), low))
    }
    #[inline(always)]
    unsafe fn nibbles(self, p: *const u8) -> (__m512i, __m512i) {
        // SAFETY: the caller answers for 64 bytes at `p`; the table has 16. VBMI is there where it is used.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(FP4_UNSIGNED.as_ptr().cast()));
            let bytes = _mm512_loadu_si512(p.cast());
            let shifted = _mm512_srli_epi16::<4>(bytes);
            if VBMI {
                // vpermb looks at six bits of an index; the table is there four times, so two of them do not matter.
                (_mm512_permutexvar_epi8(bytes, table), _mm512_permutexvar_epi8(shifted, table))
            } else {
                let low = _mm512_set1_epi8(15);
                let [low, high] = [bytes, shifted].map(|codes| _mm512_and_si512(codes, low));
                (_mm512_shuffle_epi8(table, low), _mm512_shuffle_epi8(table, high))
            }
        }
    }
    #[inline(always)]
    unsafe fn fp4(self, p: *const u8, e: usize) -> __m512 {
        // SAFETY: the caller answers for 64 bytes at `p`; the table is a static of 16 values.
        unsafe {
            // vpermps looks at the four low bits of an index.
            let shift = _mm512_set1_epi32(nibble_shift(e) as i32);
            let codes = _mm512_srlv_epi32(_mm512_loadu_si512(p.cast()), shift);
            _mm512_permutexvar_ps(codes, _mm512_loadu_ps(FP4.as_ptr()))
        }
    }
    #[inline(always)]
    unsafe fn scales(self, p: *const u8) -> __m512 {
        // SAFETY: the caller answers for 16 bytes at `p`.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(bytes))
        }
    }
    #[inline(always)]
    unsafe fn dot_small<const N: usize>(
        self,
        w: &[__m512i; GROUPS],
        x: [*const i8; N],
        init: [i32; N],
    ) -> [__m512i; N] {
        // SAFETY: the caller answers for 32 bytes at each of `x`. VNNI is there where it is used.
        unsafe {
            let mut sums = init.map(|init| _mm512_set1_epi32(init));
            if VNNI {
                for group in 0..GROUPS {
                    for n in 0..N {
                        let x = _mm512_set1_epi32(x[n].add(4 * group).cast::<i32>().read_unaligned());
                        sums[n] = _mm512_dpbusd_epi32(sums[n], w[group], x);
                    }
                }
                return sums;
            }
            for half in 0..2 {
                let mut words = [_mm512_setzero_si512(); N];
                for group in half * GROUPS / 2..(half + 1) * GROUPS / 2 {
                    for n in 0..N {
                        let x = _mm512_set1_epi32(x[n].add(4 * group).cast::<i32>().read_unaligned());
                        words[n] = _mm512_add_epi16(words[n], _mm512_maddubs_epi16(w[group], x));
                    }
                }
                for n in 0..N {
                    let pairs = _mm512_madd_epi16(words[n], _mm512_set1_epi16(1));
                    sums[n] = _mm512_add_epi32(sums[n], pairs);
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn bytes(self, p: *const u8) -> __m512i {
        // SAFETY: the caller answers for 64 bytes at `p`.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn int8(self, p: *const u8, e: usize) -> __m512 {
        // SAFETY: the caller answers for 64 bytes at `p`.
        unsafe {
            let left = _mm512_sllv_epi32(_mm512_loadu_si512(p.cast()), _mm512_set1_epi32(24 - 8 * e as i32));
            _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(left))
        }
    }
    #[inline(always)]
    unsafe fn dot_signed<const N: usize>(
        self,
        w: &[__m512i; GROUPS],
        x: [*const i8; N],
        sums: [i32; N],
    ) -> [__m512i; N] {
        // SAFETY: the caller answers for 32 bytes at each of `x`. VNNI is there where it is used.
        unsafe {
            if VNNI {
                // As unsigned bytes the weights are 128 more.
                let mut dots = sums.map(|sum| _mm512_set1_epi32(-128 * sum));
                for group in 0..GROUPS {
                    let w = _mm512_xor_si512(w[group], _mm512_set1_epi8(-128));
                    for n in 0..N {
                        let x = _mm512_set1_epi32(x[n].add(4 * group).cast::<i32>().read_unaligned());
                        dots[n] = _mm512_dpbusd_epi32(dots[n], w, x);
                    }
                }
                return dots;
            }
            let mut dots = [_mm512_setzero_si512(); N];
            for group in 0..GROUPS {
                let size = _mm512_abs_epi8(w[group]);
                for n in 0..N {
                    let x = _mm512_set1_epi32(x[n].add(4 * group).cast::<i32>().read_unaligned());
                    let x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w[group]), _mm512_setzero_si512(), x);
                    // Two products fit into 16 bits, and no more.
                    let pairs = _mm512_maddubs_epi16(size, x);
                    dots[n] = _mm512_add_epi32(dots[n], _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
                }
            }
            dots
        }
    }
}
