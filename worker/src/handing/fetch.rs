//! The gRPC side of handing on: who may fetch, and streams of chunks, read and digested on threads of their own, a
//! bounded number at once and no faster than they may.

use super::piece::{Memory, Piece};
use super::shelf::{Found, Offered, Shelf};
use super::words_of;
use crate::cache::{Gather, Kept};
use flotilla_engine::weights::{Extent, Throttle, WeightError, extents_of};
use flotilla_proto::wire::weights_server::{Weights, WeightsServer};
use flotilla_proto::{Fetch, MESSAGE_BYTES_MAX, WireError, wire};
use flotilla_shared::{TensorSlice, WeightsId};
use flotilla_trust::door::{Caller, Connection};
use std::cell::OnceCell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// For a load to begin of which the coordinator has told others already, and between two looks.
const BEGIN_WAIT: Duration = Duration::from_secs(3);
const BEGIN_LOOK: Duration = Duration::from_millis(10);
/// Streams at once: each is a thread that copies, beside those that compute.
const FETCHES_MAX: usize = 4;
/// How long a further one waits for another to end.
const PLACE_WAIT: Duration = Duration::from_secs(5);
/// Chunks on their way in one stream, beside one that was just made.
const CHUNKS_AHEAD: usize = 1;
/// Between two looks at what is not here yet.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// For one chunk. Whoever asks gives up before.
const COMING_WAIT: Duration = Duration::from_secs(60);
/// For one chunk to be taken: who takes none keeps its place from others.
const TAKEN_WAIT: Duration = Duration::from_secs(60);

type Sent = Result<wire::SliceChunk, Status>;

pub struct Service {
    shelf: Shelf,
    throttle: Option<Arc<Throttle>>,
    places: Arc<Semaphore>,
    pub(super) taken_wait: Duration,
}

impl Service {
    /// Hands on so many bytes a second at most.
    pub fn new(shelf: Shelf, bytes_per_second_max: Option<u64>) -> Service {
        let throttle = bytes_per_second_max.map(|rate| Arc::new(Throttle::new(rate)));
        let places = Arc::new(Semaphore::new(FETCHES_MAX));
        Service { shelf, throttle, places, taken_wait: TAKEN_WAIT }
    }

    async fn offered(&self, weights: WeightsId) -> Offered {
        loop {
            if let Some(offered) = self.shelf.offered(weights) {
                return offered;
            }
            tokio::time::sleep(BEGIN_LOOK).await;
        }
    }
}

/// Until it is dropped; who does not show the key is refused before a message is parsed.
pub async fn serve(
    service: Service,
    key: [u8; 32],
    connections: ReceiverStream<io::Result<Connection>>,
) -> Result<(), tonic::transport::Error> {
    let server = WeightsServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    // Digests are compared in constant time.
    let expected = blake3::hash(format!("Bearer {}", words_of(&key)).as_bytes());
    let admit = move |request: Request<()>| {
        let given = request.metadata().get("authorization");
        let caller = request.extensions().get::<Caller>();
        match given.map(|value| blake3::hash(value.as_encoded_bytes())) {
            Some(given) if given == expected && !caller.is_some_and(Caller::was_turned_away) => {
                caller.inspect(|caller| caller.let_in());
                Ok(request)
            }
            _ => {
                caller.inspect(|caller| _ = caller.turn_away());
                Err(Status::unauthenticated("wrong or missing key"))
            }
        }
    };
    let server = tonic::service::interceptor::InterceptedService::new(server, admit);
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .max_frame_size(1 << 20)
        .add_service(server)
        .serve_with_incoming(connections)
        .await
}

#[tonic::async_trait]
impl Weights for Service {
    type FetchStream = ReceiverStream<Sent>;

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let invalid = |what: String| Status::invalid_argument(what);
        let fetch = Fetch::try_from(request.into_inner());
        let Fetch { weights, slices, extents, .. } =
            fetch.map_err(|error: WireError| invalid(error.to_string()))?;
        let weights = weights.ok_or_else(|| invalid("FetchRequest.weights_id is missing".into()))?;
        let offered = tokio::time::timeout(BEGIN_WAIT, self.offered(weights)).await;
        let offered = offered.map_err(|_| Status::unavailable("these weights are not here"))?;
        let extents = extents_of(&offered.spec, &slices, extents).map_err(invalid)?;
        let place = tokio::time::timeout(PLACE_WAIT, self.places.clone().acquire_owned()).await;
        let place =
            place.map_err(|_| Status::resource_exhausted(format!("{FETCHES_MAX} others fetch here")))?;
        let (chunks, made) = mpsc::channel(1);
        let (taken, stream) = mpsc::channel(CHUNKS_AHEAD);
        tokio::spawn(hand_over(made, taken, self.taken_wait));
        let (shelf, throttle) = (self.shelf.clone(), self.throttle.clone());
        tokio::task::spawn_blocking(move || {
            let stream = Stream { shelf, throttle, offered, kept: OnceCell::new(), slices, chunks };
            if let Err(status) = stream.send_all(&extents) {
                let _ = stream.chunks.blocking_send(Err(status));
            }
            drop(place);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Ends, and with it the thread that makes chunks, once one is not taken in time: a connection may answer pings while whoever
/// is to read from it hangs.
async fn hand_over(mut made: mpsc::Receiver<Sent>, taken: mpsc::Sender<Sent>, wait: Duration) {
    loop {
        let next = tokio::select! {
            next = made.recv() => next,
            () = taken.closed() => return,
        };
        let Some(next) = next else { return };
        if !matches!(tokio::time::timeout(wait, taken.send(next)).await, Ok(Ok(()))) {
            return;
        }
    }
}

pub(super) struct Stream {
    shelf: Shelf,
    throttle: Option<Arc<Throttle>>,
    pub(super) offered: Offered,
    /// In the cache, once it was looked at.
    kept: OnceCell<Kept>,
    slices: Vec<TensorSlice>,
    chunks: mpsc::Sender<Sent>,
}

impl Stream {
    /// Ends early when who asked is gone.
    fn send_all(&self, extents: &[Extent]) -> Result<(), Status> {
        for extent in extents {
            if !self.send_extent(extent)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Up to where it is to be had; whether somebody takes it.
    fn send_extent(&self, extent: &Extent) -> Result<bool, Status> {
        let (slice, mut gather) = (&self.slices[extent.slice], None);
        let mut memory = Memory::new(self, slice);
        for chunk in extent.chunks() {
            let mut from_disk = || {
                let gather = gather.get_or_insert_with(|| self.gather(slice)).as_mut();
                gather.and_then(|gather| gather.read(chunk.clone())).map(Piece::proven)
            };
            let piece = memory.chunk(chunk.clone())?.or_else(&mut from_disk);
            let is_here = piece.is_some();
            let is_taken = self.send(extent.slice, chunk.start, piece);
            if !is_here || !is_taken {
                return Ok(is_taken);
            }
        }
        Ok(true)
    }

    /// What the disk has of it, if there is a cache.
    fn gather(&self, slice: &TensorSlice) -> Option<Gather<'_>> {
        let cache = self.offered.cache.as_ref()?;
        let kept = self.kept.get_or_init(|| cache.kept(&self.offered.spec));
        kept.around(slice).first().map(|kept| Gather::new(kept, slice))
    }

    /// Bytes from memory, once they are there; `None`: they never will be.
    pub(super) fn memory(
        &self,
        slice: &TensorSlice,
        offset: usize,
        len: usize,
    ) -> Result<Option<Vec<u8>>, Status> {
        let (mut bytes, start) = (vec![0; len], Instant::now());
        loop {
            let unread = |error: WeightError| Status::data_loss(error.to_string());
            match self.shelf.read(&self.offered, slice, offset, &mut bytes).map_err(unread)? {
                Found::Here => return Ok(Some(bytes)),
                Found::Never => return Ok(None),
                Found::Gone => return Err(Status::aborted("these weights are not here any more")),
                Found::NotYet if self.chunks.is_closed() || start.elapsed() > COMING_WAIT => {
                    return Err(Status::unavailable("these bytes did not come here either"));
                }
                Found::NotYet => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// Whether somebody takes it. Without a piece it says that the bytes are not to be had.
    fn send(&self, slice: usize, offset: usize, piece: Option<Piece>) -> bool {
        let digest = piece.as_ref().map_or_else(Vec::new, |piece| piece.digest.0.to_vec());
        let (data, proven) = piece.map_or_else(Default::default, |piece| (piece.bytes, piece.is_proven));
        if let Some(throttle) = &self.throttle {
            throttle.pass(data.len());
        }
        let (slice, data, digest) = (slice as u32, data.into(), digest.into());
        let chunk = wire::SliceChunk { slice, offset: offset as u64, data, digest, proven };
        self.chunks.blocking_send(Ok(chunk)).is_ok()
    }
}
