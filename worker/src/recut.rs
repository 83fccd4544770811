//! Chunks of a slice out of the chunks of a larger one, which carry digests. What is cut out of checked bytes gets a digest
//! of its own at once, so that nothing lies anywhere in between without one.

use flotilla_engine::weights::{ByteRuns, CHUNK_BYTES, Digest};
use flotilla_shared::TensorSlice;
use std::ops::Range;

/// Bytes that were checked, and their digest.
pub type Proven = (Vec<u8>, Digest);

/// Reads a slice forward; keeps the chunk of the larger one that it looked at last.
pub struct Recut {
    runs: ByteRuns,
    /// Offset in the larger slice, and the chunk.
    chunk: Option<(usize, Proven)>,
}

impl Recut {
    /// # Panics
    /// If `slice` does not lie in the larger one.
    pub fn new(slice: &TensorSlice, larger: &TensorSlice) -> Recut {
        Recut { runs: ByteRuns::within(slice, larger), chunk: None }
    }

    /// These bytes of the slice; `bring` gives the chunk of the larger one that begins at an offset, checked.
    pub fn read<E>(
        &mut self,
        bytes: Range<usize>,
        bring: &mut dyn FnMut(usize) -> Result<Proven, E>,
    ) -> Result<Proven, E> {
        let mut pieces = Vec::new();
        self.runs.visit(bytes.start, bytes.len(), |start, range| pieces.push((start, range.len())));
        // A whole chunk is handed on as it is.
        if let [(start, len)] = pieces[..]
            && start.is_multiple_of(CHUNK_BYTES)
        {
            self.hold(start, bring)?;
            match self.chunk.take() {
                Some((_, (chunk, digest))) if chunk.len() == len => return Ok((chunk, digest)),
                other => self.chunk = other,
            }
        }
        let mut out = Vec::with_capacity(bytes.len());
        for (start, len) in pieces {
            self.append(start..start + len, &mut out, bring)?;
        }
        let digest = Digest::of(&out);
        Ok((out, digest))
    }

    /// Bytes of the larger slice, which may lie in several chunks.
    fn append<E>(
        &mut self,
        bytes: Range<usize>,
        out: &mut Vec<u8>,
        bring: &mut dyn FnMut(usize) -> Result<Proven, E>,
    ) -> Result<(), E> {
        let mut at = bytes.start;
        while at < bytes.end {
            let first = at / CHUNK_BYTES * CHUNK_BYTES;
            let chunk = self.hold(first, bring)?;
            let end = bytes.end.min(first + chunk.len());
            out.extend_from_slice(&chunk[at - first..end - first]);
            at = end;
        }
        Ok(())
    }

    /// The chunk at `offset` of the larger slice.
    fn hold<E>(
        &mut self,
        offset: usize,
        bring: &mut dyn FnMut(usize) -> Result<Proven, E>,
    ) -> Result<&[u8], E> {
        if self.chunk.as_ref().is_none_or(|(at, _)| *at != offset) {
            self.chunk = Some((offset, bring(offset)?));
        }
        Ok(self.chunk.as_ref().map_or(&[], |(_, (bytes, _))| bytes))
    }
}
