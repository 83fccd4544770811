//! Memory that is filled while others read from it what has come, and what lies beside it when it is full.

use super::shelf::Lends;
use flotilla_engine::weights::{Kept, RankWeights, WeightError, WeightSink};
use flotilla_shared::TensorSlice;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A sink in the host's memory.
pub trait Fills: WeightSink + Sync + 'static {
    /// Whether `part` is here, or will be.
    fn will_have(&self, part: &TensorSlice) -> bool;

    /// As [`Lends::read`].
    fn read_what_came(&self, part: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<bool, WeightError>;
}

impl Fills for RankWeights {
    fn will_have(&self, part: &TensorSlice) -> bool {
        self.slices().iter().any(|slice| slice.covers(part))
    }

    fn read_what_came(&self, part: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<bool, WeightError> {
        Ok(self.read_filled(part, offset, out))
    }
}

pub struct Lent<W> {
    /// The sink's.
    slices: Vec<TensorSlice>,
    weights: Arc<RwLock<W>>,
}

struct Reader<W>(Arc<RwLock<W>>);

impl<W: Fills> Lent<W> {
    pub fn new(weights: W) -> Lent<W> {
        Lent { slices: weights.slices().to_vec(), weights: Arc::new(RwLock::new(weights)) }
    }

    /// For others to read.
    pub fn reader(&self) -> Arc<dyn Lends> {
        Arc::new(Reader(self.weights.clone()))
    }

    /// # Panics
    /// If there is a reader still.
    pub fn into_inner(self) -> W {
        let weights = Arc::into_inner(self.weights).expect("no reader is left");
        weights.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, W> {
        self.weights.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: Fills> WeightSink for Lent<W> {
    fn slices(&self) -> &[TensorSlice] {
        &self.slices
    }

    fn fill(
        &mut self,
        index: usize,
        range: Range<usize>,
        write: &mut dyn FnMut(&mut [u8]) -> Result<(), WeightError>,
    ) -> Result<(), WeightError> {
        self.write().fill(index, range, write)
    }

    fn finish(&mut self) -> Result<(), WeightError> {
        self.write().finish()
    }
}

impl<W: Fills> Reader<W> {
    fn read(&self) -> RwLockReadGuard<'_, W> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: Fills> Lends for Reader<W> {
    fn lends(&self, part: &TensorSlice) -> bool {
        self.read().will_have(part)
    }

    fn read(&self, part: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<bool, WeightError> {
        self.read().read_what_came(part, offset, out)
    }
}

/// Weights that are whole, and those of a share before, of which others lack some.
pub struct Beside {
    pub weights: Arc<RankWeights>,
    pub before: Box<dyn Kept>,
}

impl Lends for Beside {
    fn lends(&self, part: &TensorSlice) -> bool {
        self.weights.has(part) || self.before.has(part)
    }

    fn read(&self, part: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<bool, WeightError> {
        let from: &dyn Kept = if self.weights.has(part) { &*self.weights } else { &*self.before };
        from.read_back(part, offset, out).map(|()| true)
    }
}
