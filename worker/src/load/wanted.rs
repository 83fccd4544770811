//! What of a rank's slices is still missing, in the order of the forward: taken out in parts by whoever
//! brings them, and put back where that failed.

use super::PART_BYTES;
use flotilla_engine::weights::{Digest, Extent, WeightError};
use flotilla_shared::TensorSlice;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Of one request, which may name 4096: rectangles may be small.
const PARTS_MAX: usize = 1024;
/// Times that one chunk may come damaged.
const DAMAGED_MAX: u32 = 3;

#[derive(Debug)]
pub struct Wanted {
    slices: Vec<TensorSlice>,
    parts: VecDeque<Extent>,
    /// By slice and offset: how often a chunk came damaged.
    damaged: BTreeMap<(usize, usize), u32>,
}

impl Wanted {
    /// All of those `slices` that are numbered so.
    pub fn of(slices: &[TensorSlice], numbers: impl IntoIterator<Item = usize>) -> Wanted {
        let whole = numbers.into_iter().map(|number| Extent::whole(number, &slices[number]));
        let parts = whole.flat_map(|extent| extent.parts(PART_BYTES)).collect();
        Wanted { slices: slices.to_vec(), parts, damaged: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The next parts, of about `bytes` together and no more than one request may have; none when nothing is missing that
    /// nobody has in hand.
    pub fn take(&mut self, bytes: usize) -> Vec<Extent> {
        let (mut taken, mut sum) = (Vec::new(), 0);
        while sum < bytes
            && taken.len() < PARTS_MAX
            && let Some(part) = self.parts.pop_front()
        {
            sum += part.bytes.len();
            taken.push(part);
        }
        taken
    }

    /// The same of those parts that `is_meant`.
    pub fn take_of(&mut self, bytes: usize, is_meant: impl Fn(&Extent) -> bool) -> Vec<Extent> {
        let (mut taken, mut others, mut sum) = (Vec::new(), VecDeque::with_capacity(self.parts.len()), 0);
        for part in self.parts.drain(..) {
            match sum < bytes && taken.len() < PARTS_MAX && is_meant(&part) {
                true => {
                    sum += part.bytes.len();
                    taken.push(part);
                }
                false => others.push_back(part),
            }
        }
        self.parts = others;
        taken
    }

    /// Of the parts that nobody has in hand.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes.len() as u64).sum()
    }

    /// The slices that they are of.
    pub fn slices_left(&self) -> BTreeSet<usize> {
        self.parts.iter().map(|part| part.slice).collect()
    }

    /// Everything that nobody has in hand.
    pub fn take_all(&mut self) -> Vec<Extent> {
        self.parts.drain(..).collect()
    }

    /// These did not come; they are the next that are wanted.
    pub fn put_back(&mut self, parts: impl IntoIterator<Item = Extent, IntoIter: DoubleEndedIterator>) {
        parts.into_iter().rev().for_each(|part| self.parts.push_front(part));
    }

    /// One chunk came damaged: it alone is wanted again, unless that happens too often.
    pub fn put_back_damaged(
        &mut self,
        chunk: Extent,
        expected: Digest,
        found: Digest,
    ) -> Result<(), WeightError> {
        let (slice, offset) = (chunk.slice, chunk.bytes.start);
        let times = self.damaged.entry((slice, offset)).or_default();
        *times += 1;
        if *times >= DAMAGED_MAX {
            let (slice, times) = (self.slices[slice].clone(), *times);
            return Err(WeightError::Damaged { slice, offset, times, expected, found });
        }
        self.put_back([chunk]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_engine::weights::CHUNK_BYTES;
    use flotilla_shared::ModelSpec;
    use flotilla_shared::tensor::TensorId;

    fn wanted() -> Wanted {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let norm = TensorSlice::whole(TensorId::FinalNorm, &spec);
        let embed = TensorSlice::cut(TensorId::Embed, &spec, 0, 0..6000);
        Wanted::of(&[norm, embed], 0..2)
    }

    #[test]
    fn those_that_are_meant_are_taken_and_the_others_keep_their_order() {
        let mut wanted = wanted();
        let all = wanted.bytes();
        let embed: Vec<Extent> = wanted.take_of(PART_BYTES + 1, |part| part.slice == 1);
        let taken: u64 = embed.iter().map(|part| part.bytes.len() as u64).sum();
        assert!(embed.len() == 2 && embed.iter().all(|part| part.slice == 1), "{embed:?}");
        assert_eq!(wanted.bytes(), all - taken);
        assert_eq!(wanted.take(1)[0].slice, 0);
        let rest = wanted.take_of(usize::MAX, |_| true);
        assert!(rest.is_sorted_by_key(|part| part.bytes.start) && rest.len() == 1, "{rest:?}");
        assert!(wanted.take_of(1, |_| true).is_empty());
    }

    #[test]
    fn parts_come_in_order_and_those_put_back_come_first() {
        let mut wanted = wanted();
        let first = wanted.take(1);
        assert_eq!(first, [Extent { slice: 0, bytes: 0..5760 }]);
        let second = wanted.take(2 * PART_BYTES);
        assert_eq!(
            second.iter().map(|part| part.bytes.clone()).collect::<Vec<_>>(),
            [0..PART_BYTES, PART_BYTES..2 * PART_BYTES]
        );
        wanted.put_back(second.clone());
        wanted.put_back(first.clone());
        assert_eq!(wanted.take(PART_BYTES), [&first[..], &second[..1]].concat());
        assert_eq!(wanted.take_all().len(), 2);
        assert!(wanted.take(1).is_empty());
    }

    #[test]
    fn a_chunk_may_come_damaged_twice() {
        let mut wanted = wanted();
        let chunk = Extent { slice: 1, bytes: CHUNK_BYTES..2 * CHUNK_BYTES };
        let (expected, found) = (Digest([1; 32]), Digest([2; 32]));
        for _ in 0..2 {
            wanted.put_back_damaged(chunk.clone(), expected, found).unwrap();
            assert_eq!(wanted.take(1), std::slice::from_ref(&chunk));
        }
        let error = wanted.put_back_damaged(chunk, expected, found).unwrap_err().to_string();
        assert!(error.contains("model.embed_tokens.weight[0..6000, 0..2880]"), "{error}");
        assert!(error.contains("byte 1048576 arrived damaged 3 times"), "{error}");
    }
}
