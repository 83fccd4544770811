//! Weights on a card, read back for others beside whatever the card computes: over a stream and a pinned buffer of their own,
//! a chunk at a time. The engine's thread and stream know nothing of it; a step shares the link to the card with it, and no
//! more. What is read never changes: the card has the checkpoint's bytes as they came.

use super::weights::Arenas;
use crate::cuda::{Card, CudaError};
use crate::weights::{ByteRuns, CHUNK_BYTES, Kept, WeightError};
use cudarc::driver::{CudaStream, PinnedHostSlice, sys};
use flotilla_shared::TensorSlice;
use flotilla_shared::tensor::TensorId;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

pub struct CudaReader {
    stream: Arc<CudaStream>,
    arenas: Arc<Arenas>,
    /// By tensor: its slice, which arena it is in, and where it begins there.
    places: HashMap<TensorId, (TensorSlice, usize, usize)>,
    /// Readers take turns.
    staging: Mutex<PinnedHostSlice<u8>>,
}

impl CudaReader {
    /// Of slices that were all written, and waited for.
    pub(super) fn new(
        card: &Card,
        arenas: Arc<Arenas>,
        places: Vec<(TensorSlice, usize, usize)>,
    ) -> Result<CudaReader, CudaError> {
        let context = card.stream().context();
        let stream = context.new_stream().map_err(CudaError::doing("make a stream"))?;
        // SAFETY: copied to before it is read.
        let staging = unsafe { context.alloc_pinned_with_flags(CHUNK_BYTES, sys::CU_MEMHOSTALLOC_PORTABLE) };
        let staging = Mutex::new(staging.map_err(CudaError::doing("take pinned memory to hand weights on"))?);
        let places = places.into_iter().map(|place| (place.0.tensor, place)).collect();
        Ok(CudaReader { stream, arenas, places, staging })
    }

    /// Lets `take` see these bytes of an arena, at most a chunk of them.
    fn copy(&self, arena: usize, bytes: Range<usize>, take: impl FnOnce(&[u8])) -> Result<(), CudaError> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let staging = staging.as_mut_slice();
        // As long as what is copied: a copy is as long as where it goes.
        let out =
            &mut staging.map_err(CudaError::doing("use pinned memory to hand weights on"))?[..bytes.len()];
        let copied = self.stream.memcpy_dtoh(&self.arenas[arena].slice(bytes), out);
        let copied = copied.and_then(|()| self.stream.synchronize());
        copied.map_err(CudaError::doing("copy weights from the card"))?;
        take(out);
        Ok(())
    }
}

impl Kept for CudaReader {
    fn kept(&self) -> Vec<TensorSlice> {
        self.places.values().map(|(slice, ..)| slice.clone()).collect()
    }

    fn has(&self, part: &TensorSlice) -> bool {
        self.places.get(&part.tensor).is_some_and(|(slice, ..)| slice.covers(part))
    }

    fn read_back(&self, part: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<(), WeightError> {
        let place = self.places.get(&part.tensor);
        let (slice, arena, first) = place.unwrap_or_else(|| panic!("{part} is not kept"));
        let mut runs = Vec::new();
        ByteRuns::within(part, slice).visit(offset, out.len(), |start, range| runs.push((start, range)));
        // As many runs at once as lie within a chunk.
        while let Some((start, _)) = runs.first().cloned() {
            let end = slice.bytes().min(start + CHUNK_BYTES);
            let mut left = Vec::new();
            let copied = self.copy(*arena, first + start..first + end, |bytes| {
                for (from, range) in runs.drain(..) {
                    let here = end.saturating_sub(from).min(range.len());
                    let (now, later) = (range.start..range.start + here, range.start + here..range.end);
                    if here > 0 {
                        out[now].copy_from_slice(&bytes[from - start..from - start + here]);
                    }
                    if !later.is_empty() {
                        left.push((from + here, later));
                    }
                }
            });
            copied.map_err(|error| WeightError::Card { slice: part.clone(), reason: error.to_string() })?;
            runs = left;
        }
        Ok(())
    }

    /// They are the engine's.
    fn forget(&mut self, _tensor: TensorId) {}
}
