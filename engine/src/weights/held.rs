//! What a rank holds: one buffer a slice of its plan, page-aligned, taken before anything is read.
//!
//! The bytes are the checkpoint's. A backend that wants another order makes it in place ([`RankWeights::both_mut`]), or takes
//! a tensor out ([`RankWeights::take`]) and drops it, so that a rank never holds its share twice.

use super::{ByteRuns, Kept, WeightError, WeightSink};
use flotilla_shared::tensor::TensorId;
use flotilla_shared::{Dtype, ModelSpec, Plan, Rank, TensorSlice};
use half::bf16;
use half::slice::HalfBitsSliceExt;
use memmap2::{Advice, MmapMut};
use std::collections::HashMap;
use std::ops::Range;

/// From this size on huge pages pay: 1.4 times the read rate in decode.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// The slices of one rank, with their bytes.
pub struct RankWeights {
    /// `None` where it was taken.
    held: Vec<Option<HeldTensor>>,
    index: HashMap<TensorId, usize>,
    slices: Vec<TensorSlice>,
    /// By slice: what was filled so far, in rising order; ranges that touch are one.
    filled: Vec<Vec<Range<usize>>>,
}

/// One slice in memory.
pub struct HeldTensor {
    slice: TensorSlice,
    bytes: MmapMut,
    /// Of `bytes`, those that are of use.
    len: usize,
}

impl RankWeights {
    /// Takes the memory for all that `rank` holds under `plan`, zeroed.
    pub fn new(spec: &ModelSpec, plan: &Plan, rank: Rank) -> Result<Self, WeightError> {
        Self::for_slices(plan.slices(spec, rank))
    }

    /// Takes the memory for `slices`, in their order; one a tensor, none empty.
    pub fn for_slices(slices: Vec<TensorSlice>) -> Result<Self, WeightError> {
        let index: HashMap<TensorId, usize> = slices.iter().enumerate().map(|(i, s)| (s.tensor, i)).collect();
        assert_eq!(index.len(), slices.len(), "a rank holds one slice of a tensor");
        let held = slices.iter().map(|slice| HeldTensor::zeroed(slice.clone()).map(Some));
        let filled = vec![Vec::new(); slices.len()];
        Ok(RankWeights { held: held.collect::<Result<_, _>>()?, index, slices, filled })
    }

    pub fn tensors(&self) -> impl Iterator<Item = &HeldTensor> {
        self.held.iter().flatten()
    }

    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut HeldTensor> {
        self.held.iter_mut().flatten()
    }

    /// The rank's part of a tensor; none if it has no part, or the part was taken.
    pub fn get(&self, tensor: TensorId) -> Option<&HeldTensor> {
        self.held[*self.index.get(&tensor)?].as_ref()
    }

    /// The bytes of two tensors that are held, to be put in another order.
    ///
    /// # Panics
    /// If one of them is not held, or both are the same.
    pub fn both_mut(&mut self, a: TensorId, b: TensorId) -> [&mut [u8]; 2] {
        let places = [a, b].map(|tensor| self.index[&tensor]);
        let held = self.held.get_disjoint_mut(places).expect("two tensors, of which each has a place");
        held.map(|held| &mut held.as_mut().expect("the slice is still held").bytes[..])
    }

    /// Gives a tensor away: its memory goes when the taker drops it.
    pub fn take(&mut self, tensor: TensorId) -> Option<HeldTensor> {
        self.held[*self.index.get(&tensor)?].take()
    }

    /// Fills `out` with the bytes of `part` from byte `offset` on; `false` if they do not lie in a slice that is held, or
    /// were not all filled yet.
    pub fn read_filled(&self, part: &TensorSlice, offset: usize, out: &mut [u8]) -> bool {
        let Some(at) = self.index.get(&part.tensor) else { return false };
        let (Some(held), filled) = (&self.held[*at], &self.filled[*at]) else { return false };
        let mut is_there = held.slice.covers(part);
        if is_there {
            ByteRuns::within(part, &held.slice).visit(offset, out.len(), |start, range| {
                let bytes = start..start + range.len();
                is_there = is_there && is_filled(filled, &bytes);
                if is_there {
                    out[range].copy_from_slice(&held.bytes()[bytes]);
                }
            });
        }
        is_there
    }

    /// Of all slices that are held.
    pub fn bytes_held(&self) -> u64 {
        self.tensors().map(|tensor| tensor.len as u64).sum()
    }
}

impl Kept for RankWeights {
    fn kept(&self) -> Vec<TensorSlice> {
        self.tensors().map(|held| held.slice.clone()).collect()
    }

    fn has(&self, part: &TensorSlice) -> bool {
        self.get(part.tensor).is_some_and(|held| held.slice.covers(part))
    }

    fn read_back(&self, part: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<(), WeightError> {
        let held = self.get(part.tensor).unwrap_or_else(|| panic!("{part} is not kept"));
        ByteRuns::within(part, &held.slice).visit(offset, out.len(), |start, range| {
            let len = range.len();
            out[range].copy_from_slice(&held.bytes()[start..start + len]);
        });
        Ok(())
    }

    fn forget(&mut self, tensor: TensorId) {
        drop(self.take(tensor));
    }
}

impl WeightSink for RankWeights {
    fn slices(&self) -> &[TensorSlice] {
        &self.slices
    }

    /// # Panics
    /// If there is no such slice, or it was taken.
    fn fill(
        &mut self,
        index: usize,
        range: Range<usize>,
        write: &mut dyn FnMut(&mut [u8]) -> Result<(), WeightError>,
    ) -> Result<(), WeightError> {
        write(&mut self.held[index].as_mut().expect("the slice is still held").bytes[range.clone()])?;
        fill_in(&mut self.filled[index], range);
        Ok(())
    }
}

fn is_filled(filled: &[Range<usize>], bytes: &Range<usize>) -> bool {
    let at = filled.partition_point(|range| range.end < bytes.end);
    filled.get(at).is_some_and(|range| range.start <= bytes.start)
}

fn fill_in(filled: &mut Vec<Range<usize>>, mut bytes: Range<usize>) {
    let from = filled.partition_point(|range| range.end < bytes.start);
    let to = filled.partition_point(|range| range.start <= bytes.end);
    for range in &filled[from..to] {
        bytes = bytes.start.min(range.start)..bytes.end.max(range.end);
    }
    filled.splice(from..to, [bytes]);
}

impl HeldTensor {
    fn zeroed(slice: TensorSlice) -> Result<Self, WeightError> {
        let len = slice.bytes();
        assert!(len > 0, "{slice} is empty");
        match MmapMut::map_anon(len) {
            Err(source) => Err(WeightError::Memory { slice, bytes: len, source }),
            Ok(bytes) => {
                #[cfg(target_os = "linux")]
                if len >= HUGE_PAGE_BYTES {
                    // Where the kernel has none to give, small pages are only slower.
                    let _ = bytes.advise(Advice::HugePage);
                }
                Ok(HeldTensor { slice, bytes, len })
            }
        }
    }

    pub fn slice(&self) -> &TensorSlice {
        &self.slice
    }

    pub fn tensor(&self) -> TensorId {
        self.slice.tensor
    }

    /// Of the slice.
    pub fn shape(&self) -> Vec<usize> {
        self.slice.shape()
    }

    /// Row-major, aligned to a page.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Keeps the first `len` bytes only, and gives the memory of the others back.
    pub fn truncate(&mut self, len: usize) {
        assert!((1..=self.bytes.len()).contains(&len));
        #[cfg(target_os = "linux")]
        // SAFETY: the mapping is this tensor's alone, and grows smaller, so nothing that is mapped can be in the way.
        // Where the system refuses, the memory is only not given back.
        let _ = unsafe { self.bytes.remap(len, memmap2::RemapOptions::new().may_move(false)) };
        self.len = len;
    }

    /// The elements of a dense tensor, as bits.
    ///
    /// # Panics
    /// If the tensor is not bf16.
    pub fn as_u16(&self) -> &[u16] {
        assert_eq!(self.tensor().dtype(), Dtype::Bf16, "{}", self.slice);
        bytemuck::cast_slice(&self.bytes)
    }

    /// The elements of a dense tensor.
    ///
    /// # Panics
    /// If the tensor is not bf16.
    pub fn as_bf16(&self) -> &[bf16] {
        self.as_u16().reinterpret_cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a bit for each byte; the seed is that of the shuffle.
    #[test]
    fn what_was_filled_is_known_to_the_byte() {
        const BYTES: usize = 40;
        let mut seed = 7u64;
        let mut below = |limit: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % limit
        };
        for _ in 0..200 {
            let (mut filled, mut bits) = (Vec::new(), [false; BYTES]);
            for _ in 0..12 {
                let start = below(BYTES);
                let bytes = start..start + 1 + below((BYTES - start).min(6));
                bits[bytes.clone()].fill(true);
                fill_in(&mut filled, bytes);
                assert!(filled.windows(2).all(|pair| pair[0].end < pair[1].start), "{filled:?}");
                for start in 0..BYTES {
                    for end in start + 1..=BYTES {
                        let expected = bits[start..end].iter().all(|bit| *bit);
                        assert_eq!(
                            is_filled(&filled, &(start..end)),
                            expected,
                            "{start}..{end} of {filled:?}"
                        );
                    }
                }
            }
        }
    }
}
