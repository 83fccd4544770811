//! A rank's weights that come in parts: what is kept of a group before, and rectangles of what lacks, as those have them who
//! give them. A slice is put together, and its kept part given back, as soon as all of it is here. So a rank never holds much
//! more than its share; unless others of its group ask for what it has besides.

use crate::handing::{Digests, Fills};
use flotilla_engine::weights::{CHUNK_BYTES, Kept, Need, RankWeights, Several, WeightError, WeightSink};
use flotilla_shared::TensorSlice;
use flotilla_shared::tensor::TensorId;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

pub struct Patchwork<W> {
    kept: Box<dyn Kept>,
    /// What is kept lies in `weights` instead, in its place.
    is_in_place: bool,
    weights: W,
    /// One a slice.
    needs: Vec<Need>,
    /// All rectangles that lack, in the order of the slices, and which need each is of.
    lacking: Vec<TensorSlice>,
    of: Vec<usize>,
    /// The bytes of each that came, until its slice is whole.
    came: Vec<Vec<u8>>,
    /// Bytes that each need still lacks.
    left: Vec<u64>,
    /// Of slices that are put together of nothing but what comes.
    digests: Arc<Digests>,
    /// Tensors of which what was kept is not given back.
    lent: HashSet<TensorId>,
}

impl<W: WeightSink> Patchwork<W> {
    /// Fills `weights`, of which `needs` has each slice, and at once from `kept` what is there whole. If it `lends`, whatever is
    /// kept beyond the weights stays.
    pub fn new(
        weights: W,
        needs: Vec<Need>,
        kept: Box<dyn Kept>,
        digests: Arc<Digests>,
        lends: bool,
    ) -> Result<Patchwork<W>, WeightError> {
        let is_beyond = |slice: &TensorSlice| !needs.iter().any(|need| need.slice.covers(slice));
        let lent = kept.kept().into_iter().filter(|slice| lends && is_beyond(slice));
        let lent = lent.map(|slice| slice.tensor).collect();
        let mut patchwork = Patchwork { lent, ..Self::begun(weights, needs, kept, digests) };
        for at in 0..patchwork.needs.len() {
            if patchwork.left[at] == 0 {
                patchwork.put_together(at)?;
            }
        }
        Ok(patchwork)
    }

    /// Fills what lacks of `weights`: what is kept is in them, where it belongs.
    pub fn in_place(weights: W, needs: Vec<Need>, digests: Arc<Digests>) -> Patchwork<W> {
        let elsewhere = Box::new(Several(Vec::new()));
        Patchwork { is_in_place: true, ..Self::begun(weights, needs, elsewhere, digests) }
    }

    fn begun(weights: W, needs: Vec<Need>, kept: Box<dyn Kept>, digests: Arc<Digests>) -> Patchwork<W> {
        let numbered = needs.iter().enumerate();
        let pairs = numbered.flat_map(|(at, need)| need.lacking.iter().map(move |part| (at, part.clone())));
        let (of, lacking): (Vec<usize>, Vec<TensorSlice>) = pairs.unzip();
        Patchwork {
            kept,
            is_in_place: false,
            weights,
            left: needs.iter().map(Need::lacking_bytes).collect(),
            came: vec![Vec::new(); lacking.len()],
            needs,
            lacking,
            of,
            digests,
            lent: HashSet::new(),
        }
    }

    /// Of the rectangles that lack.
    pub fn lacking_bytes(&self) -> u64 {
        self.needs.iter().map(Need::lacking_bytes).sum()
    }

    /// The weights, once everything was filled; and what is lent, if something is.
    pub fn into_whole(self) -> (W, Option<Box<dyn Kept>>) {
        assert!(self.left.iter().all(|left| *left == 0), "some slices are not whole");
        (self.weights, (!self.lent.is_empty()).then_some(self.kept))
    }

    /// The weights as far as they came: what was put together, and what is kept in its place.
    pub fn into_weights(self) -> W {
        self.weights
    }

    fn put_together(&mut self, at: usize) -> Result<(), WeightError> {
        let need = &self.needs[at];
        let first = self.of.partition_point(|of| *of < at);
        let own = first..self.of.partition_point(|of| *of <= at);
        let see = &mut |start: usize, bytes: &[u8]| {
            // What was kept has lain here unlooked at.
            for (number, chunk) in bytes.chunks(CHUNK_BYTES).enumerate().filter(|_| need.kept.is_none()) {
                self.digests.keep_made(&need.slice, start + number * CHUNK_BYTES, chunk);
            }
        };
        let kept = (!self.is_in_place).then_some(&*self.kept);
        need.fill(&mut self.weights, at, kept, &self.came[own.clone()], see)?;
        self.came[own].fill_with(Vec::new);
        let tensor = self.needs[at].slice.tensor;
        if !self.lent.contains(&tensor) {
            self.kept.forget(tensor);
        }
        Ok(())
    }
}

impl Patchwork<RankWeights> {
    /// Of a load that was broken off: the slices that are whole, and what is kept of the others.
    pub fn into_parts(mut self) -> (RankWeights, Box<dyn Kept>) {
        for (need, left) in self.needs.iter().zip(&self.left) {
            match left {
                0 => self.kept.forget(need.slice.tensor),
                _ => drop(self.weights.take(need.slice.tensor)),
            }
        }
        (self.weights, self.kept)
    }
}

impl Fills for Patchwork<RankWeights> {
    fn will_have(&self, part: &TensorSlice) -> bool {
        self.weights.will_have(part) || self.kept.has(part)
    }

    /// What is kept can be had at once, also of a slice that lacks the rest: two that are being patched may each wait for
    /// what the other has.
    fn read_what_came(&self, part: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<bool, WeightError> {
        if self.weights.read_filled(part, offset, out) {
            return Ok(true);
        }
        let is_kept = self.kept.has(part);
        if is_kept {
            self.kept.read_back(part, offset, out)?;
        }
        Ok(is_kept)
    }
}

impl<W: WeightSink> WeightSink for Patchwork<W> {
    fn slices(&self) -> &[TensorSlice] {
        &self.lacking
    }

    fn fill(
        &mut self,
        index: usize,
        range: Range<usize>,
        write: &mut dyn FnMut(&mut [u8]) -> Result<(), WeightError>,
    ) -> Result<(), WeightError> {
        let at = self.of[index];
        self.left[at] -= range.len() as u64;
        // What comes as one goes where it belongs at once.
        if self.needs[at].is_plain() {
            return self.weights.fill(at, range, write);
        }
        let bytes = &mut self.came[index];
        if bytes.is_empty() {
            // Zeroed pages of the system: taken when they are written.
            *bytes = vec![0; self.lacking[index].bytes()];
        }
        write(&mut bytes[range])?;
        if self.left[at] == 0 { self.put_together(at) } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<(), WeightError> {
        self.weights.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_engine::weights::{Synthetic, WeightSource};
    use flotilla_shared::{ModelSpec, Plan, Rank};

    /// From the middle of three ranks to one of two.
    #[test]
    fn what_is_kept_and_what_comes_are_the_weights() {
        let mut spec = ModelSpec::published("gpt-oss-20b").unwrap();
        (spec.hidden, spec.intermediate, spec.vocab, spec.experts) = (64, 160, 203, 6);
        (spec.q_heads, spec.kv_heads, spec.head_dim) = (16, 8, 4);
        spec.layers.truncate(2);
        let source = Synthetic::new(spec.clone(), 11);
        let plans = [Plan::with_shares(&spec, &[1.0; 3]), Plan::with_shares(&spec, &[1.0; 2])];
        let mut old = RankWeights::new(&spec, &plans[0], Rank(1)).unwrap();
        old.load_from(&source, &mut |_, _| {}).unwrap();
        let wanted = plans[1].slices(&spec, Rank(0));
        let all: u64 = wanted.iter().map(|slice| slice.bytes() as u64).sum();
        let needs = Need::of(&wanted, &old.kept());
        let weights = RankWeights::for_slices(wanted).unwrap();
        let mut patchwork = Patchwork::new(weights, needs, Box::new(old), Arc::default(), false).unwrap();
        assert!(patchwork.lacking_bytes() > 0 && patchwork.lacking_bytes() < all);
        let read = |patchwork: &Patchwork<RankWeights>, part: &TensorSlice| {
            let [mut bytes, mut expected] = [0, 0].map(|_| vec![0; part.bytes()]);
            source.read(part, 0, &mut expected).unwrap();
            assert!(patchwork.will_have(part), "{part}");
            let is_here = patchwork.read_what_came(part, 0, &mut bytes).unwrap();
            assert!(!is_here || bytes == expected, "{part}");
            is_here
        };
        // What is kept of a slice is not held back until the rest has come.
        for need in patchwork.needs.clone() {
            assert!(need.kept.iter().all(|part| read(&patchwork, part)), "{}", need.slice);
            assert!(!need.lacking.iter().any(|part| read(&patchwork, part)), "{}", need.slice);
        }
        patchwork.load_from(&source, &mut |_, _| {}).unwrap();
        assert!(patchwork.needs.iter().all(|need| read(&patchwork, &need.slice)));
        let (weights, lent) = patchwork.into_whole();
        assert!(lent.is_none());
        for held in weights.tensors() {
            let mut expected = vec![0; held.bytes().len()];
            source.read(held.slice(), 0, &mut expected).unwrap();
            assert_eq!(held.bytes(), expected, "{}", held.slice());
        }
    }

    /// The middle one of three goes to the front of two: the other lacks what it had of the back.
    #[test]
    fn what_is_lent_can_be_had_until_the_end_and_after() {
        let mut spec = ModelSpec::published("gpt-oss-20b").unwrap();
        spec.layers.truncate(1);
        (spec.hidden, spec.intermediate, spec.vocab, spec.experts) = (64, 160, 203, 6);
        (spec.q_heads, spec.kv_heads, spec.head_dim) = (16, 8, 4);
        let source = Synthetic::new(spec.clone(), 11);
        let plans = [3, 2].map(|ranks| Plan::with_shares(&spec, &vec![1.0; ranks]));
        let mut old = RankWeights::new(&spec, &plans[0], Rank(1)).unwrap();
        old.load_from(&source, &mut |_, _| {}).unwrap();
        let (had, wanted) = (old.kept(), plans[1].slices(&spec, Rank(0)));
        let needs = Need::of(&wanted, &had);
        let weights = RankWeights::for_slices(wanted.clone()).unwrap();
        let mut patchwork = Patchwork::new(weights, needs, Box::new(old), Arc::default(), true).unwrap();
        patchwork.load_from(&source, &mut |_, _| {}).unwrap();
        for slice in &had {
            assert!(patchwork.will_have(slice), "{slice}");
            let mut bytes = vec![0; slice.bytes()];
            assert!(patchwork.read_what_came(slice, 0, &mut bytes).unwrap(), "{slice}");
        }
        let (_, lent) = patchwork.into_whole();
        // Nothing twice: what lies within the new share is only there.
        let beyond = |slice: &&TensorSlice| !wanted.iter().any(|wanted| wanted.covers(slice));
        let mut expected: Vec<_> = had.iter().filter(beyond).cloned().collect();
        let mut kept = lent.unwrap().kept();
        assert!(!kept.is_empty() && kept.len() < had.len());
        for slices in [&mut kept, &mut expected] {
            slices.sort_by_key(TensorSlice::to_string);
        }
        assert_eq!(kept, expected);
    }

    /// As on a card: what is kept is there already, and the rest, of which nothing is known, is overwritten.
    #[test]
    fn what_lies_in_its_place_stays_and_the_rest_comes() {
        let spec = {
            let mut spec = ModelSpec::published("gpt-oss-20b").unwrap();
            spec.layers.truncate(1);
            (spec.hidden, spec.intermediate, spec.vocab, spec.experts) = (64, 160, 203, 6);
            (spec.q_heads, spec.kv_heads, spec.head_dim) = (16, 8, 4);
            spec
        };
        let source = Synthetic::new(spec.clone(), 11);
        let plans = [3, 2].map(|ranks| Plan::with_shares(&spec, &vec![1.0; ranks]));
        let mut old = RankWeights::new(&spec, &plans[0], Rank(1)).unwrap();
        old.load_from(&source, &mut |_, _| {}).unwrap();
        let wanted = plans[1].slices(&spec, Rank(0));
        let needs = Need::of(&wanted, &old.kept());
        let mut weights = RankWeights::for_slices(wanted).unwrap();
        for (at, need) in needs.iter().enumerate() {
            let lacking: Vec<_> = need.lacking.iter().map(|part| vec![0xa5; part.bytes()]).collect();
            need.fill(&mut weights, at, Some(&old), &lacking, &mut |_, _| {}).unwrap();
        }
        let mut patchwork = Patchwork::in_place(weights, needs, Arc::default());
        let lacking = patchwork.lacking_bytes();
        let parts: usize = patchwork.slices().iter().map(TensorSlice::bytes).sum();
        assert!(lacking > 0 && lacking == parts as u64);
        patchwork.load_from(&source, &mut |_, _| {}).unwrap();
        for held in patchwork.into_weights().tensors() {
            let mut expected = vec![0; held.bytes().len()];
            source.read(held.slice(), 0, &mut expected).unwrap();
            assert_eq!(held.bytes(), expected, "{}", held.slice());
        }
    }
}
