//! The way between the host's memory and a card's arenas: a pinned buffer, and the card's stream.

use crate::cuda::{Card, CudaError};
use crate::weights::{ByteRuns, FILL_BYTES, chunks_to_fill};
use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, PinnedHostSlice, sys};
use flotilla_shared::TensorSlice;

pub(super) struct Passage {
    card: Card,
    pinned: PinnedHostSlice<u8>,
}

impl Passage {
    pub fn new(card: &Card) -> Result<Passage, CudaError> {
        let context = card.stream().context();
        // SAFETY: written before it is copied from. Not write-combined: a source may read back.
        let pinned = unsafe { context.alloc_pinned_with_flags(FILL_BYTES, sys::CU_MEMHOSTALLOC_PORTABLE) };
        let pinned = pinned.map_err(CudaError::doing("take pinned memory for weights"))?;
        Ok(Passage { card: card.clone(), pinned })
    }

    /// The first `len` bytes of the buffer, at most [`FILL_BYTES`], once no copy reads them any more.
    pub fn room(&mut self, len: usize) -> Result<&mut [u8], CudaError> {
        self.card.synchronize()?;
        let pinned = self.pinned.as_mut_slice().map_err(CudaError::doing("use pinned memory for weights"))?;
        Ok(&mut pinned[..len])
    }

    /// What the card has there, in the buffer's first bytes.
    pub fn fetch(&mut self, from: &CudaView<'_, u8>) -> Result<&mut [u8], CudaError> {
        let stream = self.card.stream().clone();
        let out = self.room(from.len())?;
        let copied = stream.memcpy_dtoh(from, out).and_then(|()| stream.synchronize());
        copied.map_err(CudaError::doing("copy weights from the card"))?;
        Ok(out)
    }

    /// The bytes of a `part` of `slice`, which lies in an arena from byte `start` on.
    pub fn read(
        &mut self,
        arena: &CudaSlice<u8>,
        start: usize,
        slice: &TensorSlice,
        part: &TensorSlice,
        out: &mut [u8],
    ) -> Result<(), CudaError> {
        let runs = ByteRuns::within(part, slice);
        for span in chunks_to_fill(slice).filter_map(|chunk| runs.span_in(chunk)) {
            let bytes = self.fetch(&arena.slice(start + span.start..start + span.end))?;
            runs.meet(span, |at, range| out[at..at + range.len()].copy_from_slice(&bytes[range]));
        }
        Ok(())
    }

    /// Begins to copy the buffer's first bytes to the card.
    pub fn send(&mut self, to: &mut CudaViewMut<'_, u8>) -> Result<(), CudaError> {
        let pinned = self.pinned.as_mut_slice().map_err(CudaError::doing("use pinned memory for weights"))?;
        let copied = self.card.stream().memcpy_htod(&pinned[..to.len()], to);
        copied.map_err(CudaError::doing("copy weights to the card"))
    }
}

/// A load that is broken off may leave a copy that still reads the buffer.
impl Drop for Passage {
    fn drop(&mut self) {
        let _ = self.card.synchronize();
    }
}
