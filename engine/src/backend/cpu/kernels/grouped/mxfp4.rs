//! MXFP4 weights in groups of rows. FP4 become bytes 0..=24, twice their value and twelve more, by a table.
//!
//! The checkpoint has a row's blocks behind each other. They are moved in place, once, at load: not a bit is
//! lost, and no second copy is held. Within four bytes of a row the eight elements go from pairs to halves
//! (0 to 3 in the low nibbles, 4 to 7 in the high), so that activations keep their natural order.

use super::super::simd::{BLOCK, BLOCK_BYTES, E8M0, FP4, FP4_OFFSET, GROUPS, Simd, nibble_shift};
use super::super::{Isa, Kernels};
use super::{Copied, LANES_MAX, Room, Shape, Weights};

/// Four bytes of a row are what moves together.
const WORD: usize = 4;
const BLOCK_WORDS: usize = BLOCK_BYTES / WORD;

/// One matrix W [N, K]: blocks u8 [N/LANES, K/32, 4, LANES, 4], scales u8 [N/LANES, K/32, LANES]. What is left of N
/// is a group of fewer rows.
#[derive(Clone, Copy, Debug)]
pub struct GroupedMxfp4<'a> {
    blocks: &'a [u8],
    scales: &'a [u8],
    shape: Shape,
    /// No scale is 0 or 255, which have no exponent of f32.
    plain_scales: bool,
}

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
        let shape = Shape { rows, blocks_per_row: columns / BLOCK, lanes: kernels.isa().lanes() };
        GroupedMxfp4 { blocks, scales, shape, plain_scales }
    }

    /// W[row, k], for tests and for those who look.
    pub fn element(&self, row: usize, k: usize) -> f32 {
        let lanes = self.shape.lanes;
        let (group, lane) = (row / lanes * lanes, row % lanes);
        let count = self.shape.rows_of_group(group);
        let at = group * self.shape.blocks_per_row + k / BLOCK * count;
        let word = (at * BLOCK_WORDS + k % BLOCK / 8 * count + lane) * WORD;
        let word = u32::from_le_bytes(self.blocks[word..word + WORD].try_into().expect("four bytes"));
        FP4[(word >> nibble_shift(k % 8) & 15) as usize] * E8M0[self.scales[at + lane] as usize]
    }
}

impl Weights for GroupedMxfp4<'_> {
    const ROW_BYTES: usize = BLOCK_BYTES;
    const UNIT: f32 = 0.5;

    fn shape(&self) -> Shape {
        self.shape
    }

    #[inline(always)]
    unsafe fn block(&self, row: usize, block: usize, room: &mut Room) -> (*const u8, *const u8) {
        let parts = Copied { words: self.blocks.as_ptr(), scales: self.scales.as_ptr(), scale_bytes: 1 };
        // SAFETY: the contract is this function's own; `check` has seen that the matrix is whole.
        unsafe { parts.block::<BLOCK_WORDS>(&self.shape, row, block, room) }
    }

    #[inline(always)]
    unsafe fn decode<S: Simd>(s: S, bytes: *const u8) -> [S::B; GROUPS] {
        // SAFETY: four times 4·LANES bytes are a block of LANES rows.
        unsafe {
            let (a, b) = s.nibbles(bytes);
            let (c, d) = s.nibbles(bytes.add(4 * S::LANES));
            let (e, f) = s.nibbles(bytes.add(8 * S::LANES));
            let (g, h) = s.nibbles(bytes.add(12 * S::LANES));
            [a, b, c, d, e, f, g, h]
        }
    }

    /// 0 and 255, which are no exponents, by the table.
    #[inline(always)]
    unsafe fn scales<S: Simd>(&self, s: S, scales: *const u8) -> S::V {
        // SAFETY: the contract is this function's own.
        unsafe {
            if self.plain_scales {
                return s.scales(scales);
            }
            let mut looked_up = [0.0f32; LANES_MAX];
            (0..S::LANES).for_each(|lane| looked_up[lane] = E8M0[*scales.add(lane) as usize]);
            s.load(looked_up.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn dot<S: Simd, const N: usize>(
        s: S,
        w: &[S::B; GROUPS],
        x: [*const i8; N],
        sums: [i32; N],
    ) -> [S::I; N] {
        // SAFETY: the contract is this function's own.
        unsafe { s.dot_small(w, x, sums.map(|sum| -FP4_OFFSET * sum)) }
    }

    #[inline(always)]
    unsafe fn element<S: Simd>(s: S, bytes: *const u8, k: usize) -> S::V {
        // SAFETY: the contract is this function's own.
        unsafe {
            let fp4 = s.fp4(bytes.add(k / 8 * 4 * S::LANES), k % 8);
            s.add(fp4, fp4)
        }
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

/// The low halves of bytes as nibbles of 16 bits.
fn gather(x: u32) -> u32 {
    let x = x & 0x0f0f_0f0f;
    let x = (x | x >> 4) & 0x00ff_00ff;
    (x | x >> 8) & 0xffff
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

    /// The bytes that [`Kernels::regroup`] has moved, in the checkpoint's order again: `regrouped` is the blocks of one
    /// matrix of so many rows, or its scales. `out` becomes as long.
    pub fn ungroup(&self, regrouped: &[u8], rows: usize, unit: Grouped, out: &mut Vec<u8>) {
        out.clear();
        out.resize(regrouped.len(), 0);
        let (lanes, row_bytes) = (self.isa().lanes(), regrouped.len() / rows.max(1));
        for row in (0..rows).step_by(lanes) {
            let count = lanes.min(rows - row);
            let group = row * row_bytes..(row + count) * row_bytes;
            let (from, to) = (&regrouped[group.clone()], &mut out[group]);
            match unit {
                Grouped::Blocks => restore_words(from, to, count),
                Grouped::Scales => restore(from, to, count),
            }
        }
    }
}

/// What moves together when rows are regrouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouped {
    /// Words of four bytes, their nibbles apart.
    Blocks,
    /// Bytes.
    Scales,
}

/// u32 [n, rows] → [rows, n], halves of elements to pairs.
fn restore_words(from: &[u8], to: &mut [u8], rows: usize) {
    let from = from.as_chunks::<WORD>().0;
    let n = from.len() / rows;
    for (row, to) in to.as_chunks_mut::<WORD>().0.chunks_exact_mut(n.max(1)).enumerate() {
        for (to, word) in to.iter_mut().zip(from[row..].iter().step_by(rows)) {
            let word = u32::from_le_bytes(*word);
            *to = (gather(word) | gather(word >> 4) << 16).to_le_bytes();
        }
    }
}

/// u8 [n, rows] → [rows, n]
fn restore(from: &[u8], to: &mut [u8], rows: usize) {
    let n = from.len() / rows;
    for (row, to) in to.chunks_exact_mut(n.max(1)).enumerate() {
        to.iter_mut().zip(from[row..].iter().step_by(rows)).for_each(|(to, from)| *to = *from);
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
            Isa::Avx512 | Isa::Avx512VnniAlone | Isa::Avx512Vnni => 16,
        }
    }
}
