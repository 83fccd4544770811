//! What can be had of this worker's weights just now. They move on from one form to the next, from the memory that a load
//! fills to what the engine computes with, and are out of reach in between; who reads waits meanwhile, and hears when it
//! is in vain. Whoever moves them takes them off first, and is alone with them then.

use super::digests::Digests;
use crate::cache::WeightCache;
use flotilla_engine::weights::{Kept, WeightError};
use flotilla_shared::{Assignment, ModelSpec, TensorSlice, WeightsId};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Weights in memory that others may read.
pub trait Lends: Send + Sync {
    /// Whether `part` is here, or will be.
    fn lends(&self, part: &TensorSlice) -> bool;

    /// Fills `out` with the bytes of a `part` that it lends, from byte `offset` on; `false` if they are not here yet.
    fn read(&self, part: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<bool, WeightError>;
}

/// What is whole.
impl<K: Kept> Lends for K {
    fn lends(&self, part: &TensorSlice) -> bool {
        self.has(part)
    }

    fn read(&self, part: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<bool, WeightError> {
        self.read_back(part, offset, out).map(|()| true)
    }
}

/// Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Shelf(Arc<RwLock<State>>);

#[derive(Default)]
struct State {
    /// Counts loads.
    load: u64,
    offer: Option<Offer>,
}

struct Offer {
    weights: WeightsId,
    spec: ModelSpec,
    cache: Option<Arc<WeightCache>>,
    digests: Arc<Digests>,
    memory: Memory,
}

enum Memory {
    /// Another form of them comes.
    Coming,
    Here(Arc<dyn Lends>),
    /// They lie where they are not read back from.
    OutOfReach,
}

/// What somebody who asks for weights will read from: this load's, and no other's.
pub struct Offered {
    load: u64,
    pub spec: ModelSpec,
    pub cache: Option<Arc<WeightCache>>,
    pub digests: Arc<Digests>,
}

/// What became of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Here,
    /// It comes.
    NotYet,
    /// Not from memory.
    Never,
    /// These weights are not here any more.
    Gone,
}

impl Shelf {
    /// The weights of an assignment are going to be here, `in_memory` as they come, all or some, or on a card once they are
    /// whole; those of before are not any more.
    /// Returned is where the digests of what comes are kept.
    pub fn begin(
        &self,
        assignment: &Assignment,
        cache: Option<Arc<WeightCache>>,
        in_memory: bool,
    ) -> Arc<Digests> {
        let memory = if in_memory { Memory::Coming } else { Memory::OutOfReach };
        let (weights, spec) = (assignment.weights_id, assignment.spec.clone());
        let slices = assignment.plan.slices(&spec, assignment.rank);
        let mut state = self.write();
        let before = state.offer.take().filter(|before| before.weights == weights);
        let digests = Arc::new(Digests::of(&slices, before.as_ref().map(|before| &*before.digests)));
        state.load += 1;
        state.offer = Some(Offer { weights, spec, cache, digests: digests.clone(), memory });
        digests
    }

    pub fn lay(&self, lends: Arc<dyn Lends>) {
        if let Some(offer) = &mut self.write().offer {
            offer.memory = Memory::Here(lends);
        }
    }

    /// Nobody reads them from here on, until they are laid again.
    pub fn lift(&self) {
        if let Some(offer) = &mut self.write().offer
            && let Memory::Here(_) = offer.memory
        {
            offer.memory = Memory::Coming;
        }
    }

    /// They are not in memory any more in a form that is read: only the disk has them.
    pub fn put_away(&self) {
        if let Some(offer) = &mut self.write().offer {
            offer.memory = Memory::OutOfReach;
        }
    }

    /// Nothing is here any more.
    pub fn clear(&self) {
        self.write().offer = None;
    }

    pub fn offered(&self, weights: WeightsId) -> Option<Offered> {
        let state = self.read_state();
        let offer = state.offer.as_ref().filter(|offer| offer.weights == weights)?;
        let (spec, cache, digests) = (offer.spec.clone(), offer.cache.clone(), offer.digests.clone());
        Some(Offered { load: state.load, spec, cache, digests })
    }

    /// Bytes of `part` from `offset` on, from memory.
    pub fn read(
        &self,
        offered: &Offered,
        part: &TensorSlice,
        offset: usize,
        out: &mut [u8],
    ) -> Result<Found, WeightError> {
        // Held while it is copied: whoever lifts the weights waits for it.
        let state = self.read_state();
        let Some(offer) = state.offer.as_ref().filter(|_| state.load == offered.load) else {
            return Ok(Found::Gone);
        };
        match &offer.memory {
            Memory::Coming => Ok(Found::NotYet),
            Memory::OutOfReach => Ok(Found::Never),
            Memory::Here(lends) if !lends.lends(part) => Ok(Found::Never),
            Memory::Here(lends) => match lends.read(part, offset, out)? {
                true => Ok(Found::Here),
                false => Ok(Found::NotYet),
            },
        }
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
