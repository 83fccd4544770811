//! Eight lanes in plain Rust, for any architecture; the compiler makes of them what it can.

use super::{FP4, FP4_UNSIGNED, GROUPS, Simd, nibble_shift};

#[derive(Clone, Copy)]
pub struct Portable;

type V = [f32; 8];

/// Where `mul_add` is an instruction and not a call into the C library.
const FUSED_IS_FAST: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    let mut out = [0.0; 8];
    for i in 0..8 {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(always)]
fn widen(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

impl Simd for Portable {
    type V = V;
    type I = [i32; 8];
    type B = [u8; 32];
    const LANES: usize = 8;
    const TOKENS_SHARED: usize = 4;
    const GEMM_ROWS: usize = 3;

    #[inline(always)]
    fn splat(self, a: f32) -> V {
        [a; 8]
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        if FUSED_IS_FAST { self.fused(a, b, c) } else { self.add(self.mul(a, b), c) }
    }
    #[inline(always)]
    fn fused(self, a: V, b: V, c: V) -> V {
        let mut out = c;
        for i in 0..8 {
            out[i] = a[i].mul_add(b[i], c[i]);
        }
        out
    }
    #[inline(always)]
    fn shift_to_exponent(self, a: V) -> V {
        a.map(|a| f32::from_bits(a.to_bits() << 23))
    }
    #[inline(always)]
    fn sum(self, a: V) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }
    #[inline(always)]
    fn largest(self, a: V) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
    #[inline(always)]
    fn prefetch_far(self, _: *const u8) {}

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> V {
        // SAFETY: the caller answers for LANES values at `p`; f32 is aligned by its type.
        unsafe { p.cast::<V>().read() }
    }
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> V {
        let mut out = [0.0; 8];
        // SAFETY: the caller answers for n ≤ 8 values at `p`; `out` has 8.
        unsafe { p.copy_to_nonoverlapping(out.as_mut_ptr(), n) };
        out
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: V) {
        // SAFETY: the caller answers for LANES values at `p`.
        unsafe { p.cast::<V>().write(a) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, a: V, n: usize) {
        // SAFETY: the caller answers for n ≤ 8 values at `p`; `a` has 8.
        unsafe { p.copy_from_nonoverlapping(a.as_ptr(), n) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> V {
        // SAFETY: the caller answers for LANES values at `p`.
        unsafe { p.cast::<[u16; 8]>().read_unaligned() }.map(widen)
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(self, p: *const u16) -> (V, V) {
        // SAFETY: the caller answers for 2·LANES values at `p`.
        let pairs = unsafe { p.cast::<[[u16; 2]; 8]>().read_unaligned() };
        (pairs.map(|pair| widen(pair[0])), pairs.map(|pair| widen(pair[1])))
    }
    #[inline(always)]
    unsafe fn load_bf16_first(self, p: *const u16, n: usize) -> V {
        let mut bits = [0u16; 8];
        // SAFETY: the caller answers for n ≤ 8 values at `p`; `bits` has 8.
        unsafe { p.copy_to_nonoverlapping(bits.as_mut_ptr(), n) };
        bits.map(widen)
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> V {
        // SAFETY: the caller answers for LANES values at `p`.
        unsafe { p.cast::<[u16; 8]>().read_unaligned() }.map(|bits| half::f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const f32) -> (V, V) {
        // SAFETY: the caller answers for 2·LANES values at `p`.
        let pairs = unsafe { p.cast::<[[f32; 2]; 8]>().read() };
        (pairs.map(|pair| pair[0]), pairs.map(|pair| pair[1]))
    }
    #[inline(always)]
    fn to_f32(self, a: [i32; 8]) -> V {
        a.map(|a| a as f32)
    }
    #[inline(always)]
    fn join_planes(self, high: [i32; 8], low: [i32; 8]) -> [i32; 8] {
        std::array::from_fn(|i| 128 * high[i] + low[i])
    }
    #[inline(always)]
    unsafe fn nibbles(self, p: *const u8) -> ([u8; 32], [u8; 32]) {
        // SAFETY: the caller answers for 32 bytes at `p`.
        let bytes: [u8; 32] = unsafe { p.cast::<[u8; 32]>().read() };
        (bytes.map(|b| FP4_UNSIGNED[b as usize & 15]), bytes.map(|b| FP4_UNSIGNED[b as usize >> 4]))
    }
    #[inline(always)]
    unsafe fn fp4(self, p: *const u8, e: usize) -> V {
        // SAFETY: the caller answers for 32 bytes at `p`.
        let bytes = unsafe { p.cast::<[[u8; 4]; 8]>().read() };
        bytes.map(|bytes| FP4[(u32::from_le_bytes(bytes) >> nibble_shift(e) & 15) as usize])
    }
    #[inline(always)]
    unsafe fn scales(self, p: *const u8) -> V {
        // SAFETY: the caller answers for 8 bytes at `p`.
        unsafe { p.cast::<[u8; 8]>().read() }.map(|byte| f32::from_bits((byte as u32) << 23))
    }
    #[inline(always)]
    unsafe fn dot_small<const N: usize>(
        self,
        w: &[[u8; 32]; GROUPS],
        x: [*const i8; N],
        init: [i32; N],
    ) -> [[i32; 8]; N] {
        std::array::from_fn(|n| {
            // SAFETY: the caller answers for 32 bytes at each of `x`.
            let x = unsafe { x[n].cast::<[[i8; 4]; GROUPS]>().read() };
            let mut sums = [init[n]; 8];
            for (w, x) in w.iter().zip(x) {
                for (sum, w) in sums.iter_mut().zip(w.as_chunks::<4>().0) {
                    *sum += w.iter().zip(x).map(|(w, x)| *w as i32 * x as i32).sum::<i32>();
                }
            }
            sums
        })
    }
    #[inline(always)]
    unsafe fn bytes(self, p: *const u8) -> [u8; 32] {
        // SAFETY: the caller answers for 32 bytes at `p`.
        unsafe { p.cast::<[u8; 32]>().read() }
    }
    #[inline(always)]
    unsafe fn int8(self, p: *const u8, e: usize) -> V {
        // SAFETY: the caller answers for 32 bytes at `p`.
        unsafe { p.cast::<[[i8; 4]; 8]>().read() }.map(|word| word[e] as f32)
    }
    #[inline(always)]
    unsafe fn dot_signed<const N: usize>(
        self,
        w: &[[u8; 32]; GROUPS],
        x: [*const i8; N],
        _: [i32; N],
    ) -> [[i32; 8]; N] {
        std::array::from_fn(|n| {
            // SAFETY: the caller answers for 32 bytes at each of `x`.
            let x = unsafe { x[n].cast::<[[i8; 4]; GROUPS]>().read() };
            let mut sums = [0; 8];
            for (w, x) in w.iter().zip(x) {
                for (sum, w) in sums.iter_mut().zip(w.as_chunks::<4>().0) {
                    *sum += w.iter().zip(x).map(|(w, x)| *w as i8 as i32 * x as i32).sum::<i32>();
                }
            }
            sums
        })
    }
}
