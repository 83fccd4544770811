//! Dense weights as int8 in groups of rows: 32 of a row share a scale of f16, as in the Q8_0 of GGUF files. Made at load from
//! the checkpoint's bf16, in the memory of it: 34 bytes where there were 64.
//!
//! A weight is off by half a step at most, its block's largest over 254, and by what f16 rounds of the scale.

use super::super::Kernels;
use super::super::simd::{BLOCK, GROUPS, Simd};
use super::{Copied, Room, Shape, Weights};
use half::f16;
use std::ops::Add;

const ROW_BYTES: usize = BLOCK;
const SCALE_BYTES: usize = 2;

/// One matrix W [N, K]: numbers i8 [N/LANES, K/32, 8, LANES, 4], scales f16 [N/LANES, K/32, LANES]. What is left of N is
/// a group of fewer rows.
#[derive(Clone, Copy, Debug)]
pub struct GroupedInt8<'a> {
    numbers: &'a [u8],
    scales: &'a [u8],
    shape: Shape,
}

impl<'a> GroupedInt8<'a> {
    /// Bytes of numbers and of scales.
    pub fn bytes(rows: usize, columns: usize) -> (usize, usize) {
        assert!(columns.is_multiple_of(BLOCK), "{columns} columns are not whole blocks of {BLOCK}");
        (rows * columns, rows * columns / BLOCK * SCALE_BYTES)
    }

    /// What [`Kernels::int8_from_bf16`] has made: the numbers, then the scales.
    pub fn new(kernels: Kernels, bytes: &'a [u8], (rows, columns): (usize, usize)) -> GroupedInt8<'a> {
        let (numbers, scales) = Self::bytes(rows, columns);
        assert_eq!(bytes.len(), numbers + scales, "bytes of {rows} rows of {columns}");
        let (numbers, scales) = bytes.split_at(numbers);
        let shape = Shape { rows, blocks_per_row: columns / BLOCK, lanes: kernels.isa().lanes() };
        GroupedInt8 { numbers, scales, shape }
    }
}

impl Weights for GroupedInt8<'_> {
    const ROW_BYTES: usize = ROW_BYTES;
    const UNIT: f32 = 1.0;

    fn shape(&self) -> Shape {
        self.shape
    }

    #[inline(always)]
    unsafe fn block(&self, row: usize, block: usize, room: &mut Room) -> (*const u8, *const u8) {
        let parts =
            Copied { words: self.numbers.as_ptr(), scales: self.scales.as_ptr(), scale_bytes: SCALE_BYTES };
        // SAFETY: the contract is this function's own; `new` has seen that the matrix is whole.
        unsafe { parts.block::<GROUPS>(&self.shape, row, block, room) }
    }

    #[inline(always)]
    unsafe fn decode<S: Simd>(s: S, bytes: *const u8) -> [S::B; GROUPS] {
        // SAFETY: eight times 4·LANES bytes are a block of LANES rows.
        std::array::from_fn(|group| unsafe { s.bytes(bytes.add(group * 4 * S::LANES)) })
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(&self, s: S, scales: *const u8) -> S::V {
        // SAFETY: the contract is this function's own.
        unsafe { s.load_f16(scales.cast()) }
    }

    #[inline(always)]
    unsafe fn dot<S: Simd, const N: usize>(
        s: S,
        w: &[S::B; GROUPS],
        x: [*const i8; N],
        sums: [i32; N],
    ) -> [S::I; N] {
        // SAFETY: the contract is this function's own.
        unsafe { s.dot_signed(w, x, sums) }
    }

    #[inline(always)]
    unsafe fn element<S: Simd>(s: S, bytes: *const u8, k: usize) -> S::V {
        // SAFETY: the contract is this function's own.
        unsafe { s.int8(bytes.add(k / 4 * 4 * S::LANES), k % 4) }
    }
}

/// Σ of the squares of what was lost, and of what there was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loss {
    pub error: f64,
    pub size: f64,
}

impl Add for Loss {
    type Output = Loss;

    fn add(self, other: Loss) -> Loss {
        Loss { error: self.error + other.error, size: self.size + other.size }
    }
}

impl Loss {
    /// Root mean square of the error, relative to that of the weights.
    pub fn relative(self) -> f64 {
        if self.size > 0.0 { (self.error / self.size).sqrt() } else { 0.0 }
    }
}

impl Kernels {
    /// Makes int8 of W: bf16 [rows, columns] in its own memory: numbers and scales are the first bytes afterwards, as
    /// many as [`GroupedInt8::bytes`] says, and the rest is of no more use.
    pub fn int8_from_bf16(&self, bytes: &mut [u8], (rows, columns): (usize, usize)) -> Loss {
        let (number_bytes, scale_bytes) = GroupedInt8::bytes(rows, columns);
        assert_eq!(bytes.len(), rows * columns * 2, "bytes of {rows} rows of {columns}");
        let lanes = self.isa().lanes();
        // Numbers are written over rows that were read; scales would be in the way of rows that were not.
        let (mut all_scales, mut group, mut loss) =
            (Vec::with_capacity(scale_bytes), Vec::new(), Loss::default());
        for row in (0..rows).step_by(lanes) {
            let count = lanes.min(rows - row);
            group.clear();
            group.extend_from_slice(&bytes[row * columns * 2..][..count * columns * 2]);
            let weights: &[[u8; 2]] = group.as_chunks().0;
            let numbers = &mut bytes[row * columns..][..count * columns];
            for block in 0..columns / BLOCK {
                for lane in 0..count {
                    let from = &weights[lane * columns + block * BLOCK..][..BLOCK];
                    let from: [f32; BLOCK] = std::array::from_fn(|k| widened(from[k]));
                    let (to, scale) = quantise(&from);
                    for (word, four) in to.as_chunks::<4>().0.iter().enumerate() {
                        let at = ((block * GROUPS + word) * count + lane) * 4;
                        numbers[at..at + 4].copy_from_slice(&four.map(|number| number as u8));
                    }
                    all_scales.extend_from_slice(&scale.to_le_bytes());
                    for (from, to) in from.iter().zip(to) {
                        loss.error += f64::from(*from - f32::from(to) * scale.to_f32()).powi(2);
                        loss.size += f64::from(*from).powi(2);
                    }
                }
            }
        }
        bytes[number_bytes..][..scale_bytes].copy_from_slice(&all_scales);
        loss
    }
}

fn widened(bits: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bits)) << 16)
}

/// The nearest numbers of −127..=127 under a scale that f16 holds. What is not finite makes the scale so.
fn quantise(x: &[f32; BLOCK]) -> ([i8; BLOCK], f16) {
    let size = x.iter().fold(0, |size, x| size.max(x.to_bits() & 0x7fff_ffff));
    let scale = f16::from_f32(f32::from_bits(size) / 127.0);
    let inverse = if scale.is_finite() && scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
    // The scale may have been rounded down: then the largest are cut.
    (x.map(|x| (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8), scale)
}
