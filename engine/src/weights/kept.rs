//! Weights that a device still holds when their group is gone, or while it runs: read back as the checkpoint has them,
//! for the next group's slices or for a peer that lacks them. What comes of them and what must be fetched is decided
//! slice by slice, so that a change of plan moves no byte that is here already.

use super::rectangle::ByteRuns;
use super::{WeightError, WeightSink, chunks_to_fill};
use flotilla_shared::TensorSlice;
use flotilla_shared::tensor::TensorId;
use std::ops::Range;

/// What is on a device.
pub trait Kept: Send + Sync {
    /// The slices that can be had back exactly.
    fn kept(&self) -> Vec<TensorSlice>;

    /// Whether `part` lies in one of them.
    fn has(&self, part: &TensorSlice) -> bool {
        self.kept().iter().any(|held| held.covers(part))
    }

    /// Fills `out` with the bytes of `part`, which lies in a kept slice, from byte `offset` on.
    ///
    /// # Panics
    /// If it does not.
    fn read_back(&self, part: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<(), WeightError>;

    /// Gives a tensor's memory back, where the device can.
    fn forget(&mut self, tensor: TensorId);
}

/// What several loads have left, as one.
pub struct Several(pub Vec<Box<dyn Kept>>);

impl Kept for Several {
    fn kept(&self) -> Vec<TensorSlice> {
        self.0.iter().flat_map(|kept| kept.kept()).collect()
    }

    fn read_back(&self, part: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<(), WeightError> {
        let kept = self
            .0
            .iter()
            .map(|kept| &**kept)
            .find(|kept| kept.has(part))
            .unwrap_or_else(|| panic!("{part} is not kept"));
        kept.read_back(part, offset, out)
    }

    fn forget(&mut self, tensor: TensorId) {
        self.0.iter_mut().for_each(|kept| kept.forget(tensor));
    }
}

/// A wanted slice: what of it is kept, and what must come from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    pub slice: TensorSlice,
    pub kept: Option<TensorSlice>,
    /// Rectangles.
    pub lacking: Vec<TensorSlice>,
}

impl Need {
    /// Of each wanted slice, in their order.
    pub fn of(wanted: &[TensorSlice], kept: &[TensorSlice]) -> Vec<Need> {
        let need = |slice: &TensorSlice| {
            let common = |held: &&TensorSlice| slice.common(held).map_or(0, |common| common.bytes());
            let held = kept.iter().filter(|held| held.tensor == slice.tensor).max_by_key(common);
            let lacking = held.map_or_else(|| vec![slice.clone()], |held| slice.without(held));
            Need { slice: slice.clone(), kept: held.and_then(|held| slice.common(held)), lacking }
        };
        wanted.iter().map(need).collect()
    }

    /// Cuts what lacks where `others` end, so that each part lies whole in one of them, or meets none.
    pub fn divide(&mut self, others: &[TensorSlice]) {
        let lacking = std::mem::take(&mut self.lacking);
        self.lacking = lacking.into_iter().flat_map(|part| divided(part, others)).collect();
    }

    /// Whether nothing of it is kept, and all of it comes as one.
    pub fn is_plain(&self) -> bool {
        self.kept.is_none() && self.lacking == std::slice::from_ref(&self.slice)
    }

    pub fn lacking_bytes(&self) -> u64 {
        self.lacking.iter().map(|part| part.bytes() as u64).sum()
    }

    /// Fills slice number `index` of a sink with what is kept of it, and with `lacking`: the bytes of each rectangle, in
    /// their order. Without `kept` it lies in its place in the sink. `see` is shown what the slice is filled with, and from
    /// which byte on: whole chunks.
    pub fn fill(
        &self,
        sink: &mut dyn WeightSink,
        index: usize,
        kept: Option<&dyn Kept>,
        lacking: &[Vec<u8>],
        see: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), WeightError> {
        assert_eq!(lacking.len(), self.lacking.len(), "{}: bytes of each rectangle", self.slice);
        if kept.is_none() && self.lacking.is_empty() {
            return Ok(());
        }
        let runs = |part: &TensorSlice| ByteRuns::within(part, &self.slice);
        let of_kept = self.kept.as_ref().map(|part| (part, runs(part)));
        let of_lacking: Vec<(ByteRuns, &[u8])> =
            self.lacking.iter().map(runs).zip(lacking.iter().map(Vec::as_slice)).collect();
        let mut room = Vec::new();
        for chunk in chunks_to_fill(&self.slice) {
            let mut write = |out: &mut [u8]| {
                for (runs, bytes) in &of_lacking {
                    runs.meet(chunk.clone(), |at, range| {
                        let len = range.len();
                        out[range].copy_from_slice(&bytes[at..at + len]);
                    });
                }
                if let (Some(kept), Some((part, runs))) = (kept, &of_kept) {
                    copy_kept(kept, part, runs, chunk.clone(), out, &mut room)?;
                }
                see(chunk.start, out);
                Ok(())
            };
            let has_some = of_kept.as_ref().is_some_and(|(_, runs)| runs.span_in(chunk.clone()).is_some());
            match kept.is_none() && has_some {
                true => sink.update(index, chunk.clone(), &mut write)?,
                false => sink.fill(index, chunk.clone(), &mut write)?,
            }
        }
        Ok(())
    }
}

/// A part in parts: what the one has that has most of it, and likewise of the rest.
fn divided(part: TensorSlice, others: &[TensorSlice]) -> Vec<TensorSlice> {
    if others.iter().any(|other| other.covers(&part)) {
        return vec![part];
    }
    let common = others.iter().filter_map(|other| part.common(other));
    // The first of those that have as much.
    let Some(most) = common.min_by_key(|common| std::cmp::Reverse(common.bytes())) else { return vec![part] };
    let rest = part.without(&most).into_iter().flat_map(|rest| divided(rest, others));
    std::iter::once(most.clone()).chain(rest).collect()
}

/// Those bytes of a kept part that lie in the chunk: they follow each other in the part.
fn copy_kept(
    kept: &dyn Kept,
    part: &TensorSlice,
    runs: &ByteRuns,
    chunk: Range<usize>,
    out: &mut [u8],
    room: &mut Vec<u8>,
) -> Result<(), WeightError> {
    let (mut first, mut len) = (None, 0);
    runs.meet(chunk.clone(), |at, range| {
        first.get_or_insert(at);
        len += range.len();
    });
    let Some(first) = first else { return Ok(()) };
    if len == out.len() {
        return kept.read_back(part, first, out);
    }
    room.resize(len, 0);
    kept.read_back(part, first, room)?;
    runs.meet(chunk, |at, range| {
        let len = range.len();
        out[range].copy_from_slice(&room[at - first..at - first + len]);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::{ModelSpec, Plan, Rank};

    /// From any cut to any other: parts tile what lacks, and each lies whole in one of the others or meets none.
    #[test]
    fn what_lacks_is_cut_where_others_end() {
        let spec = ModelSpec::published("gpt-oss-20b").expect("it is");
        let of = |count: usize, rank| Plan::with_shares(&spec, &vec![1.0; count]).slices(&spec, Rank(rank));
        let cases = [(3, 2), (2, 3), (4, 3), (3, 3), (1, 4)];
        for ((wanted, held), lost) in cases.into_iter().flat_map(|case| [(case, 0), (case, 1)]) {
            // Without the first of them, not everything is held.
            let others: Vec<TensorSlice> = (lost..held).flat_map(|rank| of(held, rank as u16)).collect();
            for mut need in Need::of(&of(wanted, wanted as u16 - 1), &of(5, 0)) {
                let before = need.lacking.clone();
                let own: Vec<_> =
                    others.iter().filter(|other| other.tensor == need.slice.tensor).cloned().collect();
                need.divide(&own);
                let bytes = |parts: &[TensorSlice]| parts.iter().map(TensorSlice::bytes).sum::<usize>();
                assert_eq!(bytes(&need.lacking), bytes(&before), "{}", need.slice);
                for (number, part) in need.lacking.iter().enumerate() {
                    assert!(before.iter().any(|whole| whole.covers(part)), "{part}");
                    assert!(
                        need.lacking[number + 1..].iter().all(|other| other.common(part).is_none()),
                        "{part}"
                    );
                    let is_whole = own.iter().any(|other| other.covers(part));
                    let is_nobodys = own.iter().all(|other| other.common(part).is_none());
                    assert!(is_whole || (lost > 0 && is_nobodys), "{part}");
                }
            }
        }
    }
}
