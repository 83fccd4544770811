//! Weights with the rows of a group side by side: LANES rows together, so that a lane is a row, one load feeds all of
//! them, and nothing is summed across lanes. Blocks of 32 along K have a scale for each row.

mod int8;
mod mxfp4;
mod product;

pub use int8::{GroupedInt8, Loss};
pub use mxfp4::{Grouped, GroupedMxfp4};
pub(super) use product::{PANEL, SUMS};

use super::simd::{GROUPS, Simd};
use std::ops::Range;

const LANES_MAX: usize = 16;

/// Where a block is filled up to a whole group, if its own is not: 32 bytes a row, and its scale.
type Room = [u8; LANES_MAX * (32 + 2)];
const ROOM: Room = [0; LANES_MAX * (32 + 2)];

/// The shape of a matrix in groups; the last group may have fewer rows.
#[derive(Clone, Copy, Debug)]
struct Shape {
    rows: usize,
    blocks_per_row: usize,
    lanes: usize,
}

impl Shape {
    /// Rows of the group that begins at `row`.
    fn rows_of_group(&self, row: usize) -> usize {
        self.lanes.min(self.rows - row)
    }

    /// Rows that can be asked for: whole groups, or the last.
    fn check_rows(&self, rows: &Range<usize>) {
        let whole = |row: usize| row.is_multiple_of(self.lanes) || row == self.rows;
        assert!(
            rows.end <= self.rows && whole(rows.start) && whole(rows.end),
            "{rows:?} are not whole groups"
        );
    }
}

/// Weights that products read block by block.
trait Weights: Copy {
    /// Bytes of a row's block, without its scale.
    const ROW_BYTES: usize;
    /// The value of one in the bytes that `decode` gives, under scale 1.
    const UNIT: f32;

    fn shape(&self) -> Shape;

    /// The bytes of one block of the group that begins at `row`, and its LANES scales: where they are, or in `room`.
    /// # Safety
    /// `row` is a multiple of LANES and a row, `block` is a block.
    unsafe fn block(&self, row: usize, block: usize, room: &mut Room) -> (*const u8, *const u8);
    /// The bytes of a block, by groups of four elements.
    /// # Safety
    /// `bytes` is readable for a block of LANES rows.
    unsafe fn decode<S: Simd>(s: S, bytes: *const u8) -> [S::B; GROUPS];
    /// # Safety
    /// `scales` is readable for LANES scales.
    unsafe fn scales<S: Simd>(&self, s: S, scales: *const u8) -> S::V;
    /// Σ over the block of w · x for N columns x; `sums` are Σ x, or 0 where another column takes an offset away.
    /// # Safety
    /// Each of `x` is readable for 32 bytes.
    unsafe fn dot<S: Simd, const N: usize>(
        s: S,
        w: &[S::B; GROUPS],
        x: [*const i8; N],
        sums: [i32; N],
    ) -> [S::I; N];
    /// Element k of every row of a block, in units.
    /// # Safety
    /// As `decode`.
    unsafe fn element<S: Simd>(s: S, bytes: *const u8, k: usize) -> S::V;
}

/// Where a matrix is.
struct Copied {
    words: *const u8,
    scales: *const u8,
    scale_bytes: usize,
}

impl Copied {
    /// `Weights::block`, for blocks of W words of four bytes a row.
    /// # Safety
    /// As there; the matrix has all blocks of its shape.
    #[inline(always)]
    unsafe fn block<const W: usize>(
        &self,
        shape: &Shape,
        row: usize,
        block: usize,
        room: &mut Room,
    ) -> (*const u8, *const u8) {
        let count = shape.rows_of_group(row);
        let at = row * shape.blocks_per_row + block * count;
        // SAFETY: `at` + `count` blocks end within the matrix; `room` has LANES_MAX of the largest.
        unsafe {
            let (words, scales) = (self.words.add(at * W * 4), self.scales.add(at * self.scale_bytes));
            if count == shape.lanes {
                return (words, scales);
            }
            // A lane of no row keeps zeros, and a scale that is harmless.
            room.fill(0);
            let (to, to_scales) = room.split_at_mut(LANES_MAX * 32);
            for word in 0..W {
                let to = to.as_mut_ptr().add(word * shape.lanes * 4);
                words.add(word * count * 4).copy_to_nonoverlapping(to, count * 4);
            }
            to_scales.fill(1);
            scales.copy_to_nonoverlapping(to_scales.as_mut_ptr(), count * self.scale_bytes);
            (to.as_ptr(), to_scales.as_ptr())
        }
    }
}
