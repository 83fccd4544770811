//! The digests that chunks had when they came. They go on with the chunks to whoever takes slices that are cut alike, so
//! that damage in this worker's memory is found there. What is cut in another way is checked by them first, and gets new
//! ones.

use flotilla_engine::weights::{CHUNK_BYTES, Digest};
use flotilla_shared::TensorSlice;
use flotilla_shared::tensor::TensorId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
pub struct Digests(Mutex<HashMap<TensorId, OfSlice>>);

#[derive(Clone, Debug)]
struct OfSlice {
    slice: TensorSlice,
    /// By chunk.
    digests: Vec<Option<Digest>>,
    /// Some of it came without proof.
    is_doubted: bool,
}

impl Digests {
    /// For `slices`, of which what was known `before`, of the same weights, is known still.
    pub fn of(slices: &[TensorSlice], before: Option<&Digests>) -> Digests {
        let before = before.map(|before| before.lock().clone()).unwrap_or_default();
        let of_slice = |slice: &TensorSlice| {
            let known = before.get(&slice.tensor).filter(|known| known.slice == *slice).cloned();
            known.map(|known| OfSlice { is_doubted: false, ..known }).unwrap_or_else(|| OfSlice {
                slice: slice.clone(),
                digests: vec![None; slice.bytes().div_ceil(CHUNK_BYTES)],
                is_doubted: false,
            })
        };
        Digests(Mutex::new(slices.iter().map(|slice| (slice.tensor, of_slice(slice))).collect()))
    }

    /// A chunk of a slice came; of slices that are cut in another way nothing is kept.
    pub fn keep(&self, slice: &TensorSlice, offset: usize, digest: Digest) {
        if let Some(known) = self.lock().get_mut(&slice.tensor).filter(|known| known.slice == *slice) {
            known.digests[offset / CHUNK_BYTES] = Some(digest);
        }
    }

    /// Some bytes of a tensor came without proof: what is put together of it has none either.
    pub fn doubt(&self, tensor: TensorId) {
        self.lock().entry(tensor).and_modify(|known| known.is_doubted = true);
    }

    /// A chunk was put together of what came.
    pub fn keep_made(&self, slice: &TensorSlice, offset: usize, chunk: &[u8]) {
        let is_proven = self.lock().get(&slice.tensor).is_some_and(|known| !known.is_doubted);
        if is_proven {
            self.keep(slice, offset, Digest::of(chunk));
        }
    }

    /// The slice of which chunks are known that `part` lies in.
    pub fn around(&self, part: &TensorSlice) -> Option<TensorSlice> {
        let all = self.lock();
        all.get(&part.tensor).map(|known| &known.slice).filter(|slice| slice.covers(part)).cloned()
    }

    pub fn get(&self, slice: &TensorSlice, offset: usize) -> Option<Digest> {
        let all = self.lock();
        let known = all.get(&slice.tensor).filter(|known| known.slice == *slice)?;
        *known.digests.get(offset / CHUNK_BYTES)?
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TensorId, OfSlice>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
