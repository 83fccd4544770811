//! What streams of weights have in common, whoever sends them: what of a request is still to come, and where it goes.

use super::filler::Checked;
use super::wanted::Wanted;
use crate::cache::Keeper;
use crate::error::WorkerError;
use bytes::Bytes;
use flotilla_engine::weights::{Digest, Extent};
use flotilla_proto::{Fetch, chunk_digest, wire};
use flotilla_shared::{Epoch, Place, TensorSlice, WeightsId};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::mpsc;

/// Where checked chunks go.
#[derive(Clone)]
pub struct Intake {
    pub wanted: Arc<Mutex<Wanted>>,
    pub slices: Arc<Vec<TensorSlice>>,
    pub chunks: mpsc::Sender<Checked>,
    pub keeper: Option<Arc<Keeper>>,
    pub place: Place,
}

impl Intake {
    pub fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().expect("no holder panics")
    }

    /// A chunk with the digest that it should have; none: nothing is known of it but that it came as it was sent. Such a one
    /// is not kept on disk, where it would be believed.
    pub async fn take(
        &self,
        extent: &Extent,
        bytes: Bytes,
        digest: Option<Digest>,
    ) -> Result<(), WorkerError> {
        let offset = extent.bytes.start;
        let slice = &self.slices[extent.slice];
        match (&self.keeper, digest) {
            (Some(keeper), Some(digest)) => keeper.keep(extent.slice, slice, offset, &bytes, digest),
            (Some(keeper), None) => keeper.leave_out(extent.slice, slice, offset),
            (None, _) => {}
        }
        let (slice, place) = (extent.slice, self.place);
        let checked = Checked { slice, offset, bytes, place, digest };
        let sent = self.chunks.send(checked).await;
        sent.map_err(|_| WorkerError::Weights("the memory for weights cannot be written".into()))
    }
}

/// What of a request is still to come.
pub struct Parts {
    pub left: VecDeque<Extent>,
    /// The slices that it is of, by their numbers in the request.
    slices: Vec<usize>,
}

impl Parts {
    pub fn new(parts: Vec<Extent>) -> Parts {
        let mut slices: Vec<usize> = parts.iter().map(|part| part.slice).collect();
        slices.sort_unstable();
        slices.dedup();
        Parts { left: parts.into(), slices }
    }

    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    pub fn bytes_left(&self) -> usize {
        self.left.iter().map(|part| part.bytes.len()).sum()
    }

    /// `slices`: all that are wanted.
    pub fn request(
        &self,
        epoch: Epoch,
        weights: Option<WeightsId>,
        slices: &[TensorSlice],
    ) -> wire::FetchRequest {
        let number = |slice| self.slices.binary_search(&slice).expect("it is of the request");
        let fetch = Fetch {
            epoch,
            weights,
            slices: self.slices.iter().map(|&slice| slices[slice].clone()).collect(),
            extents: self.left.iter().map(|part| (number(part.slice), part.bytes.clone())).collect(),
        };
        (&fetch).into()
    }

    /// What `chunk` is and the digest that it says it has; it must be the one that comes next.
    pub fn next(&mut self, chunk: &wire::SliceChunk) -> Result<(Extent, Digest), WorkerError> {
        let digest = Digest(chunk_digest(&chunk.digest)?);
        let part = self.first(chunk)?;
        let next = part.chunks().next().expect("a part is not empty");
        if chunk.data.len() != next.len() {
            return Err(self.odd(chunk));
        }
        let extent = Extent { slice: part.slice, bytes: next };
        part.bytes.start = extent.bytes.end;
        if part.bytes.is_empty() {
            self.left.pop_front();
        }
        Ok((extent, digest))
    }

    /// What `chunk`, which has no data, says is not to be had: the rest of the part that comes next.
    pub fn pass_over(&mut self, chunk: &wire::SliceChunk) -> Result<Extent, WorkerError> {
        self.first(chunk)?;
        Ok(self.left.pop_front().expect("there is a first"))
    }

    /// The part that comes next, if the chunk is of its beginning.
    fn first(&mut self, chunk: &wire::SliceChunk) -> Result<&mut Extent, WorkerError> {
        let slice = self.slices.get(chunk.slice as usize).copied();
        let is_first = self
            .left
            .front()
            .is_some_and(|part| (slice, chunk.offset) == (Some(part.slice), part.bytes.start as u64));
        if !is_first {
            return Err(self.odd(chunk));
        }
        Ok(self.left.front_mut().expect("there is a first"))
    }

    fn odd(&self, chunk: &wire::SliceChunk) -> WorkerError {
        let wire::SliceChunk { slice, offset, data, .. } = chunk;
        let came = format!("{} bytes from byte {offset} of slice {slice} came", data.len());
        let next = self.left.front().map(|part| {
            let number = self.slices.binary_search(&part.slice).expect("it is of the request");
            let next = part.chunks().next().expect("a part is not empty");
            format!("bytes {next:?} of slice {number} come next")
        });
        let next = next.unwrap_or_else(|| "and nothing more was asked for".into());
        WorkerError::Weights(format!("{came}, {next}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_engine::weights::CHUNK_BYTES;

    fn chunk(slice: u32, offset: usize, bytes: usize) -> wire::SliceChunk {
        let data = vec![0; bytes];
        let digest = Digest::of(&data).0.to_vec().into();
        wire::SliceChunk { slice, offset: offset as u64, data: data.into(), digest, proven: true }
    }

    fn parts() -> Parts {
        let long = Extent { slice: 1, bytes: CHUNK_BYTES..2 * CHUNK_BYTES + 7 };
        Parts::new(vec![long, Extent { slice: 2, bytes: 0..9 }])
    }

    #[test]
    fn parts_are_done_when_their_chunks_came_in_order() {
        let mut parts = parts();
        // In the request they are slices 0 and 1.
        for (slice, offset, bytes) in [(0, CHUNK_BYTES, CHUNK_BYTES), (0, 2 * CHUNK_BYTES, 7), (1, 0, 9)] {
            let (extent, digest) = parts.next(&chunk(slice, offset, bytes)).unwrap();
            assert_eq!((extent.slice, extent.bytes), (slice as usize + 1, offset..offset + bytes));
            assert_eq!(digest, Digest::of(&vec![0; bytes]));
        }
        assert!(parts.is_empty());
        let error = parts.next(&chunk(1, 0, 9)).unwrap_err().to_string();
        assert!(error.contains("nothing more was asked for"), "{error}");
    }

    #[test]
    fn chunks_that_do_not_follow_are_refused() {
        let shorter = wire::SliceChunk { digest: vec![0; 3].into(), ..chunk(0, CHUNK_BYTES, CHUNK_BYTES) };
        let cases = [
            (
                "from byte 0 of slice 0 came, bytes 1048576..2097152 of slice 0 come next",
                chunk(0, 0, CHUNK_BYTES),
            ),
            ("5 bytes from byte 1048576 of slice 0 came", chunk(0, CHUNK_BYTES, 5)),
            ("of slice 1 came", chunk(1, CHUNK_BYTES, CHUNK_BYTES)),
            ("of slice 7 came", chunk(7, CHUNK_BYTES, CHUNK_BYTES)),
            ("SliceChunk.digest has 3 bytes, expected 32", shorter),
        ];
        for (words, chunk) in cases {
            let mut parts = parts();
            let error = parts.next(&chunk).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
            assert_eq!(parts.bytes_left(), CHUNK_BYTES + 16);
        }
    }
}
