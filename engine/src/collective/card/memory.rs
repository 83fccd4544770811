//! A card's own memory that all ranks of a group have in common: threads of one process, which have one context
//! on the card, so that a pointer of one is a pointer of all. It ends with the last rank that has it.
//!
//! ```text
//! flags: u32 [ranks, FLAGS]   then pairs: (f32, u32) [ranks, 2, SHORT]   then slots: f32 [ranks, 2, capacity]
//! ```

use super::host::{FIRST_OPERATION, FLAGS, SHORT};
use crate::cuda::{Card, CudaError};
use cudarc::driver::{CudaSlice, DevicePtr, sys};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The group's, by which the other ranks find it: the nonce of its area.
type Key = [u8; 32];

static OF_THIS_PROCESS: Mutex<BTreeMap<Key, Weak<CardMemory>>> = Mutex::new(BTreeMap::new());

fn of_this_process() -> MutexGuard<'static, BTreeMap<Key, Weak<CardMemory>>> {
    OF_THIS_PROCESS.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct CardMemory {
    key: Key,
    words: CudaSlice<u32>,
    ranks: usize,
}

impl CardMemory {
    /// Rank 0's. The others find it for as long as somebody has it.
    pub fn create(card: &Card, key: Key, ranks: usize, capacity: usize) -> Result<Arc<Self>, CudaError> {
        let numbers = vec![FIRST_OPERATION; slots_at(ranks)];
        let mut words = card.zeros::<u32>(numbers.len() + ranks * 2 * capacity)?;
        let copied = card.stream().memcpy_htod(&numbers, &mut words.slice_mut(..numbers.len()));
        copied.map_err(CudaError::doing("copy to the card"))?;
        // The other ranks' streams know nothing of this one.
        card.synchronize()?;
        let memory = Arc::new(CardMemory { key, words, ranks });
        of_this_process().insert(key, Arc::downgrade(&memory));
        Ok(memory)
    }

    pub fn find(key: &Key) -> Option<Arc<Self>> {
        of_this_process().get(key).and_then(Weak::upgrade)
    }

    /// Where flags, pairs and slots are.
    pub fn places(&self) -> (sys::CUdeviceptr, sys::CUdeviceptr, sys::CUdeviceptr) {
        let (flags, _unused) = self.words.device_ptr(self.words.stream());
        let after = |words: usize| flags + (words * size_of::<u32>()) as u64;
        (flags, after(pairs_at(self.ranks)), after(slots_at(self.ranks)))
    }
}

/// In words.
fn pairs_at(ranks: usize) -> usize {
    ranks * FLAGS
}

fn slots_at(ranks: usize) -> usize {
    pairs_at(ranks) + ranks * 2 * SHORT * 2
}

impl Drop for CardMemory {
    fn drop(&mut self) {
        of_this_process().remove(&self.key);
    }
}
