//! One vector of f32, as each instruction set sees it. The kernels are written once over this trait
//! and compiled for each; nothing here knows an op of the model, but for the decoding of FP4 and the dot products of
//! bytes, which are shuffles and belong to the instruction set.
//!
//! A value of a type that implements [`Simd`] is the proof that its instructions exist: only
//! `Kernels::dispatch` makes one, after `Isa::is_available`. So arithmetic is safe, and only what touches
//! memory is not. Every method is `#[inline(always)]`: it must melt into the `#[target_feature]`
//! function at the root of the call, or it would be a call per instruction.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
pub mod portable;

/// FP4 E2M1: sign, two bits of exponent, one of mantissa.
pub const FP4: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Elements of an MXFP4 block, along the input dimension.
pub const BLOCK: usize = 32;
/// Bytes of an MXFP4 block, without its scale.
pub const BLOCK_BYTES: usize = 16;

/// 2^(scale − 127) for each scale byte of MXFP4; 0 is the subnormal 2^−127, 255 is NaN.
pub static E8M0: [f32; 256] = {
    let mut table = [f32::NAN; 256];
    table[0] = f32::from_bits(1 << 22);
    let mut scale = 1;
    while scale < 255 {
        table[scale] = f32::from_bits((scale as u32) << 23);
        scale += 1;
    }
    table
};

/// Groups of four elements in a block: what one [`Simd::B`] holds of it.
pub const GROUPS: usize = BLOCK / 4;

/// What [`Simd::nibbles`] adds to 2·FP4, so that no weight is negative.
pub const FP4_OFFSET: i32 = 12;

/// 2·FP4 + FP4_OFFSET, by code.
pub const FP4_UNSIGNED: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// Bits below the element `e` of eight in their 32 bits: four in the low nibbles, then four in the high.
#[inline(always)]
pub const fn nibble_shift(e: usize) -> u32 {
    (if e < 4 { 8 * e } else { 8 * (e - 4) + 4 }) as u32
}

pub trait Simd: Copy {
    /// LANES values of f32.
    type V: Copy;
    /// LANES sums of i32.
    type I: Copy;
    /// Four bytes for each lane: four consecutive weights of each of LANES rows.
    type B: Copy;
    const LANES: usize;
    /// Tokens that share one reading of the weights below the GEMM: what the registers hold.
    const TOKENS_SHARED: usize;
    /// Rows that the GEMM takes against two vectors of tokens: 12, 6 or 3.
    const GEMM_ROWS: usize;

    fn splat(self, a: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a < b ? a : b, so NaN in `b` stays.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// a > b ? a : b, so NaN in `b` stays.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// a·b + c; rounded once where the machine does that fast, else twice.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a·b + c rounded once, always: for sums that must have the same bits everywhere.
    fn fused(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The bits of each lane moved left by 23, from mantissa to exponent.
    fn shift_to_exponent(self, a: Self::V) -> Self::V;
    /// The sum of the lanes, in an order of the instruction set's own.
    fn sum(self, a: Self::V) -> f32;
    /// The largest lane.
    fn largest(self, a: Self::V) -> f32;
    /// A hint that the line at `p` will be read soon; any address will do.
    fn prefetch(self, p: *const u8);
    /// The same, only into the second cache: the first has too few lines under way for a whole stream.
    fn prefetch_far(self, p: *const u8);

    /// # Safety
    /// `p` must be readable for LANES values.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// The first `n` ≤ LANES values, zeros behind them.
    /// # Safety
    /// `p` must be readable for `n` values.
    unsafe fn load_first(self, p: *const f32, n: usize) -> Self::V;
    /// # Safety
    /// `p` must be writable for LANES values.
    unsafe fn store(self, p: *mut f32, a: Self::V);
    /// # Safety
    /// `p` must be writable for `n` ≤ LANES values.
    unsafe fn store_first(self, p: *mut f32, a: Self::V, n: usize);
    /// LANES values of bf16, widened.
    /// # Safety
    /// `p` must be readable for LANES values; any address will do.
    unsafe fn load_bf16(self, p: *const u16) -> Self::V;
    /// 2·LANES values of bf16, widened: (those at even places, those at odd places).
    /// # Safety
    /// `p` must be readable for 2·LANES values; any address will do.
    unsafe fn load_bf16_pairs(self, p: *const u16) -> (Self::V, Self::V);
    /// The first `n` ≤ LANES values of bf16, widened, zeros behind them.
    /// # Safety
    /// `p` must be readable for `n` values.
    unsafe fn load_bf16_first(self, p: *const u16, n: usize) -> Self::V;
    /// LANES values of f16, widened.
    /// # Safety
    /// `p` must be readable for LANES values; any address will do, for scales are copied among bytes.
    unsafe fn load_f16(self, p: *const u16) -> Self::V;
    /// 2·LANES values as (those at even places, those at odd places).
    /// # Safety
    /// `p` must be readable for 2·LANES values.
    unsafe fn load_pairs(self, p: *const f32) -> (Self::V, Self::V);
    /// To the nearest f32; exact below 2^24.
    fn to_f32(self, a: Self::I) -> Self::V;
    /// 128·high + low
    fn join_planes(self, high: Self::I, low: Self::I) -> Self::I;
    /// The low and the high nibbles of 4·LANES bytes, as 2·FP4 + [`FP4_OFFSET`]: 0..=24.
    /// # Safety
    /// `p` must be readable for 4·LANES bytes.
    unsafe fn nibbles(self, p: *const u8) -> (Self::B, Self::B);
    /// For each lane the element `e` of 0..8 of its four bytes of FP4, as [`nibble_shift`] counts.
    /// # Safety
    /// `p` must be readable for 4·LANES bytes.
    unsafe fn fp4(self, p: *const u8, e: usize) -> Self::V;
    /// 2^(byte − 127) of LANES bytes, which are neither 0 nor 255.
    /// # Safety
    /// `p` must be readable for LANES bytes.
    unsafe fn scales(self, p: *const u8) -> Self::V;
    /// 4·LANES bytes as they are.
    /// # Safety
    /// `p` must be readable for 4·LANES bytes.
    unsafe fn bytes(self, p: *const u8) -> Self::B;
    /// For each lane the byte `e` of four, signed.
    /// # Safety
    /// `p` must be readable for 4·LANES bytes.
    unsafe fn int8(self, p: *const u8, e: usize) -> Self::V;
    /// For each of N columns of activations: init + Σ over the block of w · x; w ≤ 24 and x of −127..=127, so that
    /// four products of two fit into 16 bits. Column after column within a group of four elements, since the additions
    /// of one column wait for each other.
    /// # Safety
    /// Each of `x` must be readable for 32 bytes.
    unsafe fn dot_small<const N: usize>(
        self,
        w: &[Self::B; GROUPS],
        x: [*const i8; N],
        init: [i32; N],
    ) -> [Self::I; N];
    /// The same for signed bytes w of −127..=127, without an init; `sums` are Σ x of each column.
    /// # Safety
    /// Each of `x` must be readable for 32 bytes.
    unsafe fn dot_signed<const N: usize>(
        self,
        w: &[Self::B; GROUPS],
        x: [*const i8; N],
        sums: [i32; N],
    ) -> [Self::I; N];

    /// The sums of each vector of a tile.
    #[inline(always)]
    fn sums<const R: usize, const C: usize>(self, tile: [[Self::V; C]; R]) -> [[f32; C]; R] {
        let mut out = [[0.0; C]; R];
        for r in 0..R {
            for c in 0..C {
                out[r][c] = self.sum(tile[r][c]);
            }
        }
        out
    }

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }
}
