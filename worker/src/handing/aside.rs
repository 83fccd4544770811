//! Of a card that loads, which is not read meanwhile: what the other ranks of its group ask of it, in the host's memory.

use super::shelf::Lends;
use flotilla_engine::weights::{Kept, RankWeights, WeightError, WeightSink};
use flotilla_shared::TensorSlice;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

pub struct Aside {
    /// Of its share before.
    before: RankWeights,
    /// Of tensors that every rank has, as they come.
    coming: RwLock<RankWeights>,
}

/// Weights of which some are copied into what lies aside, as they come.
pub struct Copied<W> {
    weights: W,
    aside: Arc<Aside>,
    /// Where each of these slices goes there; those that are not in it go nowhere else.
    places: HashMap<usize, usize>,
}

impl<W: WeightSink> Copied<W> {
    /// For those of `slices` that are copied.
    pub fn room(slices: &[TensorSlice]) -> Result<RankWeights, WeightError> {
        RankWeights::for_slices(slices.iter().filter(|slice| slice.tensor.replicated()).cloned().collect())
    }

    /// `coming`: the room for those of `weights`.
    pub fn new(weights: W, before: RankWeights, coming: RankWeights) -> Copied<W> {
        let numbered = weights.slices().iter().enumerate();
        let copied = numbered.filter(|(_, slice)| slice.tensor.replicated());
        let places = copied.zip(0..).map(|((number, _), place)| (number, place)).collect();
        Copied { weights, aside: Arc::new(Aside { before, coming: RwLock::new(coming) }), places }
    }

    pub fn aside(&self) -> Arc<Aside> {
        self.aside.clone()
    }

    pub fn into_inner(self) -> W {
        self.weights
    }
}

impl<W: WeightSink> WeightSink for Copied<W> {
    fn slices(&self) -> &[TensorSlice] {
        self.weights.slices()
    }

    fn fill(
        &mut self,
        index: usize,
        range: Range<usize>,
        write: &mut dyn FnMut(&mut [u8]) -> Result<(), WeightError>,
    ) -> Result<(), WeightError> {
        let (place, aside) = (self.places.get(&index), &self.aside);
        self.weights.fill(index, range.clone(), &mut |out| {
            write(out)?;
            let Some(place) = place else { return Ok(()) };
            let mut coming = aside.coming.write().unwrap_or_else(PoisonError::into_inner);
            coming.fill(*place, range.clone(), &mut |copy| {
                copy.copy_from_slice(out);
                Ok(())
            })
        })
    }

    fn finish(&mut self) -> Result<(), WeightError> {
        self.weights.finish()
    }
}

impl Lends for Aside {
    fn lends(&self, part: &TensorSlice) -> bool {
        self.before.has(part) || self.coming.read().unwrap_or_else(PoisonError::into_inner).has(part)
    }

    fn read(&self, part: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<bool, WeightError> {
        if self.before.has(part) {
            return self.before.read_back(part, offset, out).map(|()| true);
        }
        let coming = self.coming.read().unwrap_or_else(PoisonError::into_inner);
        Ok(coming.read_filled(part, offset, out))
    }
}
