//! The streams of slices: what the workers of the forming group may fetch, read and digested off the async
//! threads, all of them together no faster than they may. A stream holds a thread only while it reads a chunk: however many
//! workers load, and however slowly, others find threads for prompts.

use flotilla_engine::weights::{Extent, Throttle, WeightError, WeightSource, extents_of, read_chunk};
use flotilla_proto::{Fetch, WireError, wire};
use flotilla_shared::{ByPlace, Epoch, Place, TensorSlice};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Chunks on their way in one stream.
const CHUNKS_AHEAD: usize = 4;
/// Chunks that are read at once: more than any disk, and few of the threads that there are.
const READS_MAX: usize = 64;

pub(super) type Chunks = ReceiverStream<Result<wire::SliceChunk, Status>>;

/// What the workers of an epoch may fetch while they load.
pub struct Serving {
    pub epoch: Epoch,
    pub source: Arc<dyn WeightSource>,
}

/// Weights for whoever may have them.
pub(super) struct Counter {
    reads: Arc<Semaphore>,
    serving: Mutex<BTreeMap<Epoch, Arc<Serving>>>,
    throttle: Option<Throttle>,
    bytes_sent: AtomicU64,
    /// What workers said that they have loaded, since the start.
    loaded: Mutex<ByPlace>,
}

impl Counter {
    /// Sends so many bytes a second at most, over all workers.
    pub(super) fn new(bytes_per_second_max: Option<u64>) -> Counter {
        Counter {
            reads: Arc::new(Semaphore::new(READS_MAX)),
            serving: Mutex::default(),
            throttle: bytes_per_second_max.map(Throttle::new),
            bytes_sent: AtomicU64::new(0),
            loaded: Mutex::default(),
        }
    }

    pub(super) fn serve(&self, serving: Serving) {
        self.serving.lock().expect("no holder panics").insert(serving.epoch, Arc::new(serving));
    }

    pub(super) fn close(&self, epoch: Epoch) {
        self.serving.lock().expect("no holder panics").remove(&epoch);
    }

    pub(super) fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
    }

    /// A worker says where it has weights from, and said before.
    pub(super) fn hear(&self, now: ByPlace, before: ByPlace) {
        let mut loaded = self.loaded.lock().expect("no holder panics");
        for place in Place::ALL {
            loaded.add(place, now.of(place).saturating_sub(before.of(place)));
        }
    }

    pub(super) fn bytes_loaded(&self, place: Place) -> u64 {
        self.loaded.lock().expect("no holder panics").of(place)
    }

    fn serving(&self, epoch: Epoch) -> Result<Arc<Serving>, Status> {
        let serving = self.serving.lock().expect("no holder panics").get(&epoch).cloned();
        serving.ok_or_else(|| Status::unavailable(format!("epoch {epoch} has no weights to fetch")))
    }

    /// The chunks that are asked for, as they are read.
    pub(super) fn fetch(self: &Arc<Self>, request: wire::FetchRequest) -> Result<Chunks, Status> {
        let invalid = |what: String| Status::invalid_argument(what);
        let Fetch { epoch, slices, extents, .. } =
            request.try_into().map_err(|error: WireError| invalid(error.to_string()))?;
        let serving = self.serving(epoch)?;
        let extents = extents_of(serving.source.spec(), &slices, extents).map_err(invalid)?;
        let (chunks, stream) = mpsc::channel(CHUNKS_AHEAD);
        let (counter, wanted) = (self.clone(), Arc::new(Wanted { serving, slices, extents }));
        tokio::spawn(async move {
            if let Err(status) = counter.send(&wanted, &chunks).await {
                let _ = chunks.send(Err(status)).await;
            }
        });
        Ok(ReceiverStream::new(stream))
    }

    /// Reads chunks and sends them one by one; ends early when the worker is gone.
    async fn send(
        &self,
        wanted: &Arc<Wanted>,
        chunks: &mpsc::Sender<Result<wire::SliceChunk, Status>>,
    ) -> Result<(), Status> {
        for (number, extent) in wanted.extents.iter().enumerate() {
            for chunk in extent.chunks() {
                if let Some(throttle) = &self.throttle {
                    tokio::time::sleep(throttle.wait(chunk.len())).await;
                }
                let bytes = chunk.len() as u64;
                let message = self.read(wanted, number, chunk).await?;
                if chunks.send(Ok(message)).await.is_err() {
                    return Ok(());
                }
                self.bytes_sent.fetch_add(bytes, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// A chunk of the extent `number`.
    async fn read(
        &self,
        wanted: &Arc<Wanted>,
        number: usize,
        chunk: Range<usize>,
    ) -> Result<wire::SliceChunk, Status> {
        let read = Arc::clone(&self.reads).acquire_owned().await.expect("it is never closed");
        let wanted = Arc::clone(wanted);
        let message = tokio::task::spawn_blocking(move || {
            let _read = read;
            wanted.read(number, chunk)
        });
        match message.await {
            Ok(message) => message.map_err(|error| Status::data_loss(error.to_string())),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}

/// What one stream is to bring.
struct Wanted {
    serving: Arc<Serving>,
    slices: Vec<TensorSlice>,
    extents: Vec<Extent>,
}

impl Wanted {
    fn read(&self, number: usize, chunk: Range<usize>) -> Result<wire::SliceChunk, WeightError> {
        let (source, extent) = (&*self.serving.source, &self.extents[number]);
        if chunk.start == extent.bytes.start {
            self.announce(number);
        }
        message(source, &self.slices, extent.slice, chunk)
    }

    /// At the beginning of an extent the next one is announced, too.
    fn announce(&self, number: usize) {
        let first = if number == 0 { 0 } else { number + 1 };
        for Extent { slice, bytes } in self.extents.iter().take(number + 2).skip(first) {
            self.serving.source.will_read(&self.slices[*slice], bytes.clone());
        }
    }
}

fn message(
    source: &dyn WeightSource,
    slices: &[TensorSlice],
    slice: usize,
    chunk: Range<usize>,
) -> Result<wire::SliceChunk, WeightError> {
    let offset = chunk.start as u64;
    let (bytes, digest) = read_chunk(source, &slices[slice], chunk)?;
    let (slice, digest) = (slice as u32, digest.0.to_vec().into());
    Ok(wire::SliceChunk { slice, offset, data: bytes.into(), digest, proven: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_engine::weights::{CHUNK_BYTES, Digest, Synthetic};
    use flotilla_shared::{ModelSpec, Plan, Rank};
    use tokio_stream::StreamExt;

    fn counter() -> (Arc<Counter>, Vec<TensorSlice>) {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let plan = Plan::with_shares(&spec, &[1.0, 1.0]);
        let slices = plan.slices(&spec, Rank(1));
        let slices = slices[..3].to_vec();
        let counter = Arc::new(Counter::new(None));
        let source = Arc::new(Synthetic::new(spec, 1));
        counter.serve(Serving { epoch: Epoch(3), source });
        (counter, slices)
    }

    fn request(extents: &[(u32, u64, u64)]) -> wire::FetchRequest {
        let extents = extents.iter().map(|&(slice, start, end)| wire::Extent { slice, start, end });
        let slices = counter().1.iter().map(wire::Slice::from).collect();
        wire::FetchRequest { epoch: 3, slices, extents: extents.collect(), ..Default::default() }
    }

    #[tokio::test]
    async fn the_chunks_that_are_asked_for_come_in_order_with_their_digests() {
        let (counter, slices) = counter();
        let mib = CHUNK_BYTES as u64;
        let last = slices[1].bytes() as u64;
        let mut chunks = counter.fetch(request(&[(0, mib, 3 * mib), (1, 0, last)])).unwrap();
        let mut got = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.unwrap();
            assert_eq!(chunk.digest, Digest::of(&chunk.data).0.to_vec());
            got.push((chunk.slice, chunk.offset, chunk.data.len() as u64));
        }
        assert_eq!(got, [(0, mib, mib), (0, 2 * mib, mib), (1, 0, last)]);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let (counter, slices) = counter();
        let count = slices.len() as u32;
        let refused = |request| counter.fetch(request).unwrap_err().message().to_owned();
        assert!(refused(request(&[(count, 0, 1)])).contains("no chunks of slice"));
        assert!(refused(request(&[(0, 5, 9)])).contains("bytes 5..9 are no chunks of slice 0"));
        assert!(refused(request(&[(0, 0, u64::MAX)])).contains("no chunks"));
        assert!(refused(request(&vec![(0, 0, 1 << 20); 4097])).contains("at most 4096"));
        let outside = wire::Slice { tensor: 0, ranges: vec![wire::Range { start: 0, end: 1 << 40 }; 2] };
        let of = |slice| wire::FetchRequest { slices: vec![slice], ..request(&[]) };
        assert!(refused(of(outside)).contains("does not lie in the model"));
        assert!(refused(of(wire::Slice { tensor: 23, ranges: vec![] })).contains("Slice.tensor"));
        assert!(refused(wire::FetchRequest { epoch: 2, ..request(&[]) }).contains("epoch 2"));
        counter.close(Epoch(3));
        assert!(refused(request(&[])).contains("epoch 3 has no weights"));
    }

    /// Workers that load slowly kept the threads on which prompts are made: as many as there are streams.
    #[test]
    fn streams_that_nobody_reads_hold_no_threads() {
        let few = tokio::runtime::Builder::new_multi_thread().max_blocking_threads(4).enable_time().build();
        few.unwrap().block_on(async {
            let (counter, _) = counter();
            let long = request(&[(0, 0, 16 * CHUNK_BYTES as u64)]);
            let unread: Vec<_> = (0..8).map(|_| counter.fetch(long.clone()).unwrap()).collect();
            let ahead = (8 * CHUNKS_AHEAD * CHUNK_BYTES) as u64;
            let patience = std::time::Duration::from_secs(60);
            let work = async {
                // They have read as far as they go.
                while counter.bytes_sent() < ahead {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
                tokio::task::spawn_blocking(|| ()).await
            };
            tokio::time::timeout(patience, work).await.expect("there are threads").unwrap();
            drop(unread);
        });
    }
}
