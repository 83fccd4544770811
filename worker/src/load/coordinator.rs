//! The coordinator as a place of weights: several streams, each on a connection of its own, so that neither
//! one processor nor one window is the limit, and pings of the worker's conversation wait behind no data.

use super::PART_BYTES;
use super::filler::Checked;
use super::wanted::Wanted;
use crate::cache::Keeper;
use crate::error::WorkerError;
use crate::link::{Client, Purpose, dial};
use crate::settings::Settings;
use flotilla_engine::weights::{Digest, Extent};
use flotilla_proto::{chunk_digest, wire};
use flotilla_shared::{Assignment, TensorSlice};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tracing::warn;

/// Streams of one worker.
const STREAMS: usize = 4;
/// Times that a stream without progress is taken up again, after a pause that grows with each.
const RETRIES_MAX: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Bytes of one request.
const REQUEST_BYTES: usize = 2 * PART_BYTES;

type Chunks = mpsc::Sender<Checked>;

/// Fetches everything that is wanted.
pub async fn fetch(
    settings: &Settings,
    assignment: &Assignment,
    slices: Arc<Vec<TensorSlice>>,
    wanted: &Arc<Mutex<Wanted>>,
    chunks: Chunks,
    keeper: Option<Keeper>,
) -> Result<(), WorkerError> {
    let keeper = keeper.map(Arc::new);
    if wanted.lock().expect("no holder panics").is_empty() {
        return Ok(());
    }
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        let stream = Stream {
            client: dial(settings, settings.join_timeout, Purpose::Weights).await?,
            epoch: assignment.epoch.0,
            wanted: wanted.clone(),
            chunks: chunks.clone(),
            slices: slices.clone(),
            keeper: keeper.clone(),
        };
        streams.spawn(stream.run());
    }
    drop((chunks, keeper));
    // The first error ends the others, as they are dropped.
    while let Some(ended) = streams.join_next().await {
        ended.expect("a stream does not panic")?;
    }
    Ok(())
}

struct Stream {
    client: Client,
    epoch: u64,
    wanted: Arc<Mutex<Wanted>>,
    chunks: Chunks,
    slices: Arc<Vec<TensorSlice>>,
    keeper: Option<Arc<Keeper>>,
}

impl Stream {
    /// Request after request, until nothing is left.
    async fn run(mut self) -> Result<(), WorkerError> {
        let mut retries = 0;
        loop {
            let mut parts = Parts::new(self.wanted().take(REQUEST_BYTES));
            if parts.is_empty() {
                return Ok(());
            }
            let before = parts.bytes_left();
            let Err(error) = self.request(&mut parts).await else {
                retries = 0;
                continue;
            };
            retries = if parts.bytes_left() < before { 0 } else { retries + 1 };
            self.wanted().put_back(parts.left);
            if retries > RETRIES_MAX || !matches!(error, WorkerError::LinkBroke(_)) {
                return Err(error);
            }
            warn!(%error, "a stream of weights broke, going on");
            tokio::time::sleep(RETRY_PAUSE * retries).await;
        }
    }

    /// One request; `parts` loses what came.
    async fn request(&mut self, parts: &mut Parts) -> Result<(), WorkerError> {
        let request = parts.request(self.epoch, &self.slices);
        let mut stream = self.client.fetch(request).await?.into_inner();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            let (extent, expected) = parts.next(&chunk)?;
            let found = Digest::of(&chunk.data);
            if found != expected {
                warn!(
                    slice = extent.slice,
                    offset = extent.bytes.start,
                    "a chunk came damaged, asking for it again"
                );
                self.wanted().put_back_damaged(extent, expected, found)?;
                continue;
            }
            if let Some(keeper) = &self.keeper {
                let slice = &self.slices[extent.slice];
                keeper.keep(extent.slice, slice, extent.bytes.start, &chunk.data, found);
            }
            let checked = Checked { slice: extent.slice, offset: extent.bytes.start, bytes: chunk.data };
            let sent = self.chunks.send(checked).await;
            sent.map_err(|_| WorkerError::Weights("the memory for weights cannot be written".into()))?;
        }
        match parts.is_empty() {
            true => Ok(()),
            false => Err(WorkerError::LinkBroke(format!("{} bytes short", parts.bytes_left()))),
        }
    }

    fn wanted(&self) -> std::sync::MutexGuard<'_, Wanted> {
        self.wanted.lock().expect("no holder panics")
    }
}

/// What of a request is still to come.
struct Parts {
    left: VecDeque<Extent>,
    /// The slices that it is of, by their numbers in the request.
    slices: Vec<usize>,
}

impl Parts {
    fn new(parts: Vec<Extent>) -> Parts {
        let mut slices: Vec<usize> = parts.iter().map(|part| part.slice).collect();
        slices.sort_unstable();
        slices.dedup();
        Parts { left: parts.into(), slices }
    }

    fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    fn bytes_left(&self) -> usize {
        self.left.iter().map(|part| part.bytes.len()).sum()
    }

    /// `slices`: all that are wanted.
    fn request(&self, epoch: u64, slices: &[TensorSlice]) -> wire::FetchRequest {
        let number = |slice| self.slices.binary_search(&slice).expect("it is of the request") as u32;
        let to_wire = |part: &Extent| wire::Extent {
            slice: number(part.slice),
            start: part.bytes.start as u64,
            end: part.bytes.end as u64,
        };
        wire::FetchRequest {
            epoch,
            slices: self.slices.iter().map(|&slice| (&slices[slice]).into()).collect(),
            extents: self.left.iter().map(to_wire).collect(),
        }
    }

    /// What `chunk` is and the digest that it says it has; it must be the one that comes next.
    fn next(&mut self, chunk: &wire::SliceChunk) -> Result<(Extent, Digest), WorkerError> {
        let digest = Digest(chunk_digest(&chunk.digest)?);
        let odd = |next: String| {
            let wire::SliceChunk { slice, offset, data, .. } = chunk;
            let came = format!("{} bytes from byte {offset} of slice {slice} came", data.len());
            WorkerError::Weights(format!("{came}, {next}"))
        };
        let part = self.left.front_mut().ok_or_else(|| odd("and nothing more was asked for".into()))?;
        let next = part.chunks().next().expect("a part is not empty");
        let slice = self.slices.get(chunk.slice as usize).copied();
        if (slice, chunk.offset as usize, chunk.data.len()) != (Some(part.slice), next.start, next.len()) {
            let number = self.slices.binary_search(&part.slice).expect("it is of the request");
            return Err(odd(format!("bytes {next:?} of slice {number} come next")));
        }
        let extent = Extent { slice: part.slice, bytes: next };
        part.bytes.start = extent.bytes.end;
        if part.bytes.is_empty() {
            self.left.pop_front();
        }
        Ok((extent, digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_engine::weights::CHUNK_BYTES;

    fn chunk(slice: u32, offset: usize, bytes: usize) -> wire::SliceChunk {
        let data = vec![0; bytes];
        let digest = Digest::of(&data).0.to_vec().into();
        wire::SliceChunk { slice, offset: offset as u64, data: data.into(), digest }
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
