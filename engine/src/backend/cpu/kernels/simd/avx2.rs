//! Eight lanes in AVX2, FMA and F16C.

use super::{FP4_UNSIGNED, GROUPS, Simd, nibble_shift};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The machine must have AVX2, FMA and F16C.
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
        // SAFETY: `self` exists, so the machine has AVX2, FMA and F16C; nothing here touches memory.
        unsafe { $body }
    };
}

impl Simd for Avx2 {
    type V = __m256;
    type I = __m256i;
    type B = __m256i;
    const LANES: usize = 8;
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
    fn prefetch_far(self, p: *const u8) {
        avx2!(_mm_prefetch::<_MM_HINT_T1>(p.cast()))
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
    unsafe fn load_bf16_pairs(self, p: *const u16) -> (__m256, __m256) {
        // SAFETY: the caller answers for 2·LANES values at `p`.
        unsafe {
            let bits = _mm256_loadu_si256(p.cast());
            let odd = _mm256_and_si256(bits, _mm256_set1_epi32(!0xffff));
            (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)), _mm256_castsi256_ps(odd))
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
    unsafe fn load_f16(self, p: *const u16) -> __m256 {
        // SAFETY: the caller answers for LANES values at `p`.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
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
    fn to_f32(self, a: __m256i) -> __m256 {
        avx2!(_mm256_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn join_planes(self, high: __m256i, low: __m256i) -> __m256i {
        avx2!(_mm256_add_epi32(_mm256_slli_epi32::<7>(high), low))
    }
    #[inline(always)]
    unsafe fn nibbles(self, p: *const u8) -> (__m256i, __m256i) {
        // SAFETY: the caller answers for 32 bytes at `p`; the table has 16.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(FP4_UNSIGNED.as_ptr().cast()));
            let (bytes, low) = (_mm256_loadu_si256(p.cast()), _mm256_set1_epi8(15));
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low);
            let low = _mm256_and_si256(bytes, low);
            (_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high))
        }
    }
    #[inline(always)]
    unsafe fn fp4(self, p: *const u8, e: usize) -> __m256 {
        // SAFETY: the caller answers for 32 bytes at `p`.
        unsafe {
            // vpermps looks at the three low bits of an index; the fourth is the sign.
            let sizes = _mm256_setr_ps(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0);
            let code =
                _mm256_srlv_epi32(_mm256_loadu_si256(p.cast()), _mm256_set1_epi32(nibble_shift(e) as i32));
            let sign = _mm256_slli_epi32::<28>(_mm256_and_si256(code, _mm256_set1_epi32(8)));
            _mm256_xor_ps(_mm256_permutevar8x32_ps(sizes, code), _mm256_castsi256_ps(sign))
        }
    }
    #[inline(always)]
    unsafe fn scales(self, p: *const u8) -> __m256 {
        // SAFETY: the caller answers for 8 bytes at `p`.
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(bytes))
        }
    }
    #[inline(always)]
    unsafe fn dot_small<const N: usize>(
        self,
        w: &[__m256i; GROUPS],
        x: [*const i8; N],
        init: [i32; N],
    ) -> [__m256i; N] {
        // SAFETY: the caller answers for 32 bytes at each of `x`.
        unsafe {
            let mut sums = init.map(|init| _mm256_set1_epi32(init));
            for half in 0..2 {
                let mut words = [_mm256_setzero_si256(); N];
                for group in half * GROUPS / 2..(half + 1) * GROUPS / 2 {
                    for n in 0..N {
                        let x = _mm256_set1_epi32(x[n].add(4 * group).cast::<i32>().read_unaligned());
                        words[n] = _mm256_add_epi16(words[n], _mm256_maddubs_epi16(w[group], x));
                    }
                }
                for n in 0..N {
                    let pairs = _mm256_madd_epi16(words[n], _mm256_set1_epi16(1));
                    sums[n] = _mm256_add_epi32(sums[n], pairs);
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn bytes(self, p: *const u8) -> __m256i {
        // SAFETY: the caller answers for 32 bytes at `p`.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn int8(self, p: *const u8, e: usize) -> __m256 {
        // SAFETY: the caller answers for 32 bytes at `p`.
        unsafe {
            let left = _mm256_sllv_epi32(_mm256_loadu_si256(p.cast()), _mm256_set1_epi32(24 - 8 * e as i32));
            _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(left))
        }
    }
    #[inline(always)]
    unsafe fn dot_signed<const N: usize>(
        self,
        w: &[__m256i; GROUPS],
        x: [*const i8; N],
        sums: [i32; N],
    ) -> [__m256i; N] {
        // SAFETY: the caller answers for 32 bytes at each of `x`.
        unsafe {
            let _ = sums;
            let mut dots = [_mm256_setzero_si256(); N];
            for group in 0..GROUPS {
                let size = _mm256_abs_epi8(w[group]);
                for n in 0..N {
                    let x = _mm256_set1_epi32(x[n].add(4 * group).cast::<i32>().read_unaligned());
                    let x = _mm256_sign_epi8(x, w[group]);
                    // Two products fit into 16 bits, and no more.
                    let pairs = _mm256_maddubs_epi16(size, x);
                    dots[n] = _mm256_add_epi32(dots[n], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                }
            }
            dots
        }
    }
}
