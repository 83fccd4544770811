//! MXFP4 weights with the rows of a group side by side, as the products of `mxfp4.rs` read them: LANES rows
//! together, so that a lane is a row, one load feeds all of them, and nothing is summed across lanes.
//!
//! The checkpoint has a row's blocks behind each other. They are moved in place, once, at load: not a bit is
//! lost, and no second copy is held. Within four bytes of a row the eight elements go from pairs to halves
//! (0 to 3 in the low nibbles, 4 to 7 in the high), so that activations keep their natural order.

use super::simd::{BLOCK, BLOCK_BYTES, FP4, nibble_shift};
use super::{Isa, Kernels};
use std::ops::Range;

/// Four bytes of a row are what moves together.
const WORD: usize = 4;
const BLOCK_WORDS: usize = BLOCK_BYTES / WORD;
pub(super) const LANES_MAX: usize = 16;

/// One matrix W [N, K]: blocks u8 [N/LANES, K/32, 4, LANES, 4], scales u8 [N/LANES, K/32, LANES]. What is left of N
/// is a group of fewer rows.
#[derive(Clone, Copy, Debug)]
pub struct GroupedMxfp4<'a> {
    blocks: &'a [u8],
    scales: &'a [u8],
    rows: usize,
    blocks_per_row: usize,
    lanes: usize,
    /// No scale is 0 or 255, which have no exponent of f32.
    plain_scales: bool,
}

/// Where a block of a whole group is copied to, if its own group is not whole.
pub(super) type Room = [u8; LANES_MAX * (BLOCK_BYTES + 1)];
pub(super) const ROOM: Room = [0; LANES_MAX * (BLOCK_BYTES + 1)];

impl<'a> GroupedMxfp4<'a> {
    /// What [`Kernels::regroup`] has made, and what it has returned.
    pub fn new(
        kernels: Kernels,
        blocks: &'a [u8],
        scales: &'a [u8],
        (rows, columns): (usize, usize),
        plain_scales: bool,
    ) -> GroupedMxfp4<'a> {
        check(blocks, scales, rows, columns);
        GroupedMxfp4 {
            blocks,
            scales,
            rows,
            blocks_per_row: columns / BLOCK,
            lanes: kernels.isa().lanes(),
            plain_scales,
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }
    pub fn columns(&self) -> usize {
        self.blocks_per_row * BLOCK
    }
    pub(super) fn blocks_per_row(&self) -> usize {
        self.blocks_per_row
    }
    pub(super) fn lanes(&self) -> usize {
        self.lanes
    }
    pub(super) fn has_plain_scales(&self) -> bool {
        self.plain_scales
    }

    /// Rows of the group that begins at `row`.
    pub(super) fn rows_of_group(&self, row: usize) -> usize {
        self.lanes.min(self.rows - row)
    }

    /// The bytes of one block of the group that begins at `row`, 4 · 4·LANES, and its LANES scales: where they are,
    /// or filled up in `room`.
    ///
    /// # Safety
    /// `row` is a multiple of LANES and a row, `block` is a block.
    #[inline(always)]
    pub(super) unsafe fn block(&self, row: usize, block: usize, room: &mut Room) -> (*const u8, *const u8) {
        let count = self.rows_of_group(row);
        let at = row * self.blocks_per_row + block * count;
        // SAFETY: `at` + `count` blocks end within the matrix, as `check` has seen; `room` has LANES_MAX of both.
        unsafe {
            let (blocks, scales) = (self.blocks.as_ptr().add(at * BLOCK_BYTES), self.scales.as_ptr().add(at));
            if count == self.lanes {
                return (blocks, scales);
            }
            let (words, ones) = room.split_at_mut(LANES_MAX * BLOCK_BYTES);
            for word in 0..BLOCK_WORDS {
                let to = words.as_mut_ptr().add(word * self.lanes * WORD);
                blocks.add(word * count * WORD).copy_to_nonoverlapping(to, count * WORD);
            }
            // A lane of no row has what is harmless.
            ones.fill(127);
            scales.copy_to_nonoverlapping(ones.as_mut_ptr(), count);
            (words.as_ptr(), ones.as_ptr())
        }
    }

    /// Rows that can be asked for: whole groups, or the last.
    pub(super) fn check_rows(&self, rows: &Range<usize>) {
        let whole = |row: usize| row.is_multiple_of(self.lanes) || row == self.rows;
        assert!(
            rows.end <= self.rows && whole(rows.start) && whole(rows.end),
            "{rows:?} are not whole groups"
        );
    }

    /// W[row, k], for tests and for those who look.
    pub fn element(&self, row: usize, k: usize) -> f32 {
        let (group, lane) = (row / self.lanes * self.lanes, row % self.lanes);
        let count = self.rows_of_group(group);
        let at = group * self.blocks_per_row + k / BLOCK * count;
        let word = (at * BLOCK_WORDS + k % BLOCK / 8 * count + lane) * WORD;
        let word = u32::from_le_bytes(self.blocks[word..word + WORD].try_into().expect("four bytes"));
        FP4[(word >> nibble_shift(k % 8) & 15) as usize] * super::simd::E8M0[self.scales[at + lane] as usize]
    }
}

fn check(blocks: &[u8], scales: &[u8], rows: usize, columns: usize) {
    assert!(columns.is_multiple_of(BLOCK), "{columns} columns are not whole blocks of {BLOCK}");
    let count = rows.checked_mul(columns / BLOCK).expect("rows · blocks overflows");
    assert_eq!(scales.len(), count, "scales of {rows} rows of {columns}");
    assert_eq!(blocks.len(), count * BLOCK_BYTES, "bytes of {rows} rows of {columns}");
}

/// Nibbles of 16 bits, each to the low half of a byte.
fn spread(x: u32) -> u32 {
    let x = (x | x << 8) & 0x00ff_00ff;
    (x | x << 4) & 0x0f0f_0f0f
}

impl Kernels {
    /// Moves one matrix [rows, columns] from the checkpoint's order, blocks u8 [rows, K/32, 16] and scales u8
    /// [rows, K/32], to that of [`GroupedMxfp4`], in place. `copy` grows to one group.
    ///
    /// Returns whether every scale is an exponent of f32, as in every published checkpoint; if not, products are
    /// slower and as right.
    pub fn regroup(
        &self,
        blocks: &mut [u8],
        scales: &mut [u8],
        (rows, columns): (usize, usize),
        copy: &mut Vec<u8>,
    ) -> bool {
        check(blocks, scales, rows, columns);
        let lanes = self.isa().lanes();
        let row_blocks = columns / BLOCK;
        let plain = scales.iter().all(|scale| (1..255).contains(scale));
        for row in (0..rows).step_by(lanes) {
            let count = lanes.min(rows - row);
            let group = &mut blocks[row * row_blocks * BLOCK_BYTES..][..count * row_blocks * BLOCK_BYTES];
            transpose_words(group, count, copy);
            transpose(&mut scales[row * row_blocks..][..count * row_blocks], count, copy);
        }
        plain
    }
}

/// u32 [rows, n] → [n, rows], pairs of elements to halves.
fn transpose_words(group: &mut [u8], rows: usize, copy: &mut Vec<u8>) {
    copy.clear();
    copy.extend_from_slice(group);
    let to = group.as_chunks_mut::<WORD>().0;
    let n = to.len() / rows;
    for (row, from) in copy.as_chunks::<WORD>().0.chunks_exact(n.max(1)).enumerate() {
        for (to, word) in to[row..].iter_mut().step_by(rows).zip(from) {
            let word = u32::from_le_bytes(*word);
            *to = (spread(word & 0xffff) | spread(word >> 16) << 4).to_le_bytes();
        }
    }
}

/// u8 [rows, n] → [n, rows]
fn transpose(group: &mut [u8], rows: usize, copy: &mut Vec<u8>) {
    copy.clear();
    copy.extend_from_slice(group);
    let n = group.len() / rows;
    for (row, from) in copy.chunks_exact(n.max(1)).enumerate() {
        group[row..].iter_mut().step_by(rows).zip(from).for_each(|(to, from)| *to = *from);
    }
}

impl Isa {
    /// Rows that are side by side in regrouped weights: f32 lanes of a vector.
    pub fn lanes(self) -> usize {
        match self {
            Isa::Portable | Isa::Avx2 => 8,
            Isa::Avx512 | Isa::Avx512Vnni => 16,
        }
    }
}
