//! Other workers as places of weights: those that the coordinator names are asked for what they hold whole, each for what
//! those before it do not have. One that does not answer, breaks off, refuses, stands still or sends damage is passed over
//! for the rest of the load, and what it owes is wanted again. So nothing here can fail a load.

use super::PART_BYTES;
use super::intake::{Intake, Parts};
use crate::error::{WorkerError, with_causes};
use crate::handing::{Dials, Handing, words_of};
use crate::link::{JoinToken, bearer};
use crate::tls::Connector;
use flotilla_engine::weights::{Digest, Extent};
use flotilla_proto::wire::weights_client::WeightsClient;
use flotilla_proto::{MESSAGE_BYTES_MAX, wire};
use flotilla_shared::{Assignment, Epoch, Holder, TensorSlice, WeightsId, units};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

/// Streams from one peer, each on a connection of its own.
const STREAMS: usize = 3;
/// Bytes of one request.
const REQUEST_BYTES: usize = 2 * PART_BYTES;
/// A peer is asked again, after a pause, when it has begun another load: so often, at most, before it gives anything.
const MOVES_MAX: u32 = 3;
const MOVE_PAUSE: Duration = Duration::from_millis(50);
/// All peers are dialed at once: so long, at most, a load waits for those behind a firewall.
const DIAL_WAIT: Duration = Duration::from_secs(2);
/// A peer that hangs is known by this much sooner.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_WAIT: Duration = Duration::from_secs(10);

type Client = WeightsClient<InterceptedService<Channel, JoinToken>>;

/// Those that were named, hold something of use and answered, in their order.
pub struct Peers(Vec<Arc<Peer>>);

impl Peers {
    /// Dials those that hold some of `slices`.
    pub async fn reach(handing: &Handing, assignment: &Assignment, slices: &[TensorSlice]) -> Peers {
        let own_key = handing.door.as_ref().map(|(_, key)| *key);
        let mut dialed = JoinSet::new();
        for (number, holder) in assignment.holders.iter().enumerate() {
            let (peer, dials) = (Peer::of(holder, assignment, slices), handing.dials.clone());
            // A worker that joined anew may be named to itself.
            if peer.is_of_use() && Some(peer.key) != own_key {
                dialed.spawn(async move {
                    let client = dial(&dials, &peer.address, &peer.key).await;
                    (number, peer, client)
                });
            }
        }
        let mut peers = Vec::new();
        for (number, peer, client) in dialed.join_all().await {
            match client {
                Ok(client) => peers.push((number, peer.with(client, &handing.dials))),
                Err(reason) => peer.say_passed_over(&reason),
            }
        }
        peers.sort_by_key(|(number, _)| *number);
        Peers(peers.into_iter().map(|(_, peer)| Arc::new(peer)).collect())
    }

    /// Takes from them what they have of what is wanted: each part from the first that has it, from several at once, and what
    /// one does not give from the next. `silence_max` is the longest that nothing may come of a stream: a peer may be loading
    /// itself, or putting in order what it has.
    pub async fn give(&self, intake: &Intake, silence_max: Duration) {
        let mut before = None;
        loop {
            let parts = intake.wanted().slices_left();
            let firsts: BTreeMap<usize, usize> =
                parts.into_iter().filter_map(|slice| Some((slice, self.first_with(slice)?))).collect();
            let state = (intake.wanted().bytes(), firsts);
            // Nobody has more of it, or those that do are too busy.
            if state.1.is_empty() || before.as_ref() == Some(&state) {
                return;
            }
            self.give_each(&Arc::new(state.1.clone()), intake, silence_max).await;
            before = Some(state);
        }
    }

    fn first_with(&self, slice: usize) -> Option<usize> {
        self.0.iter().position(|peer| peer.gives(slice))
    }

    /// `firsts`: which peer gives which slice.
    async fn give_each(&self, firsts: &Arc<BTreeMap<usize, usize>>, intake: &Intake, silence_max: Duration) {
        let mut giving = JoinSet::new();
        for (number, peer) in self.0.iter().enumerate() {
            if !firsts.values().any(|first| *first == number) {
                // A connection that nothing is asked on is not kept at the other side.
                peer.forget_first();
                continue;
            }
            let (peer, firsts, intake) = (peer.clone(), firsts.clone(), intake.clone());
            giving.spawn(async move { peer.give(number, firsts, &intake, silence_max).await });
        }
        while let Some(ended) = giving.join_next().await {
            ended.expect("taking from a peer does not panic");
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for peer in &self.0 {
            let bytes = peer.bytes.load(Ordering::Relaxed);
            if bytes > 0 {
                info!(peer = peer.address, bytes = %units::Bytes(bytes), "weights came from another worker");
            }
        }
    }
}

/// Why a stream ends before its time.
enum Fault {
    /// So many fetch there already.
    Busy,
    /// It has begun another load: of what it had, that one may have kept some.
    Moved,
    Other(String),
}

impl Fault {
    fn of(status: &Status) -> Fault {
        match status.code() {
            tonic::Code::ResourceExhausted => Fault::Busy,
            tonic::Code::Aborted => Fault::Moved,
            _ => Fault::Other(with_causes(status.message().to_owned(), status)),
        }
    }
}

impl From<WorkerError> for Fault {
    fn from(error: WorkerError) -> Fault {
        Fault::Other(error.to_string())
    }
}

/// A worker that was named.
struct Peer {
    address: String,
    key: [u8; 32],
    dials: Dials,
    /// The connection that it answered on first, for the first stream.
    first: Mutex<Option<Client>>,
    epoch: Epoch,
    weights: WeightsId,
    /// By wanted slice: whether it holds all of it, or will.
    has: Vec<bool>,
    /// Streams that have not ended.
    streams: AtomicUsize,
    /// Why it is passed over, once it is.
    fault: OnceLock<String>,
    is_over: watch::Sender<bool>,
    /// What it said that it does not have, and is not asked again.
    lacks: Mutex<Vec<Extent>>,
    lacked: Mutex<BTreeSet<usize>>,
    /// That came from it.
    bytes: AtomicU64,
}

impl Peer {
    fn of(holder: &Holder, assignment: &Assignment, slices: &[TensorSlice]) -> Peer {
        let held = holder.held.slices(&assignment.spec);
        let has = |slice: &TensorSlice| held.iter().any(|held| held.covers(slice));
        let same = holder.held.weights == assignment.weights_id;
        Peer {
            address: holder.address.clone(),
            key: holder.key,
            dials: Dials::Nobody,
            first: Mutex::new(None),
            epoch: assignment.epoch,
            weights: assignment.weights_id,
            has: slices.iter().map(|slice| same && has(slice)).collect(),
            streams: AtomicUsize::new(STREAMS),
            fault: OnceLock::new(),
            is_over: watch::Sender::new(false),
            lacks: Mutex::default(),
            lacked: Mutex::default(),
            bytes: AtomicU64::new(0),
        }
    }

    fn is_of_use(&self) -> bool {
        self.has.contains(&true)
    }

    fn with(self, client: Client, dials: &Dials) -> Peer {
        Peer { first: Mutex::new(Some(client)), dials: dials.clone(), ..self }
    }

    fn gives(&self, slice: usize) -> bool {
        let lacks = || self.lacked.lock().expect("no holder panics").contains(&slice);
        self.has[slice] && self.fault.get().is_none() && !lacks()
    }

    fn forget_first(&self) {
        drop(self.first.lock().expect("no holder panics").take());
    }

    /// All of what is wanted that it is the first for, unless it fails.
    async fn give(
        self: &Arc<Self>,
        number: usize,
        firsts: Arc<BTreeMap<usize, usize>>,
        intake: &Intake,
        silence_max: Duration,
    ) {
        self.streams.store(STREAMS, Ordering::Relaxed);
        let mut streams = JoinSet::new();
        for _ in 0..STREAMS {
            let (peer, is_over) = (self.clone(), self.is_over.subscribe());
            let (firsts, intake) = (firsts.clone(), intake.clone());
            let stream = Stream { peer, number, firsts, intake, is_over, silence_max };
            streams.spawn(stream.run());
        }
        while let Some(ended) = streams.join_next().await {
            ended.expect("a stream does not panic");
        }
        let lacks = std::mem::take(&mut *self.lacks.lock().expect("no holder panics"));
        self.lacked.lock().expect("no holder panics").extend(lacks.iter().map(|part| part.slice));
        intake.wanted().put_back(lacks);
    }

    /// After a fault its other streams end as well; one stream fewer is none while there are others.
    fn pass_over(&self, fault: Fault) {
        let is_last = self.streams.fetch_sub(1, Ordering::Relaxed) == 1;
        let reason = match fault {
            Fault::Busy if !is_last => return,
            Fault::Busy => "too many fetch from it already".into(),
            Fault::Moved => "it begins one load after the other".into(),
            Fault::Other(reason) => reason,
        };
        if self.fault.set(reason).is_ok() {
            self.say_passed_over(self.fault.get().expect("it was set"));
        }
        self.is_over.send_replace(true);
    }

    fn say_passed_over(&self, reason: &str) {
        warn!(peer = self.address, reason, "a worker does not hand on its weights, they come from elsewhere");
    }

    async fn client(&self) -> Result<Client, Fault> {
        let first = self.first.lock().expect("no holder panics").take();
        match first {
            Some(client) => Ok(client),
            None => dial(&self.dials, &self.address, &self.key).await.map_err(Fault::Other),
        }
    }
}

struct Stream {
    peer: Arc<Peer>,
    /// Of the peer, and which of them gives which slice.
    number: usize,
    firsts: Arc<BTreeMap<usize, usize>>,
    intake: Intake,
    is_over: watch::Receiver<bool>,
    silence_max: Duration,
}

impl Stream {
    /// Request after request, until nothing is wanted that the peer has.
    async fn run(mut self) {
        let (mut client, mut moves) = (None, 0);
        loop {
            let has = |part: &Extent| self.firsts.get(&part.slice) == Some(&self.number);
            let mut parts = Parts::new(self.intake.wanted().take_of(REQUEST_BYTES, has));
            if parts.is_empty() {
                return;
            }
            let result = self.request(&mut client, &mut parts).await;
            self.intake.wanted().put_back(parts.left);
            match result {
                Ok(()) if *self.is_over.borrow() => return,
                Ok(()) => moves = 0,
                Err(Fault::Moved) if moves < MOVES_MAX => {
                    moves += 1;
                    tokio::time::sleep(MOVE_PAUSE).await;
                }
                Err(fault) => return self.peer.pass_over(fault),
            }
        }
    }

    /// One request; `parts` loses what came. Also ends, without a fault, when the peer is passed over meanwhile.
    async fn request(&mut self, client: &mut Option<Client>, parts: &mut Parts) -> Result<(), Fault> {
        if client.is_none() {
            *client = Some(self.peer.client().await?);
        }
        let client = client.as_mut().expect("it was dialed");
        let request = parts.request(self.peer.epoch, Some(self.peer.weights), &self.intake.slices);
        let Some(stream) = self.in_time(client.fetch(request)).await? else { return Ok(()) };
        let mut stream = stream.map_err(|status| Fault::of(&status))?.into_inner();
        loop {
            let Some(chunk) = self.in_time(stream.next()).await? else { return Ok(()) };
            let Some(chunk) = chunk else { break };
            self.receive(chunk.map_err(|status| Fault::of(&status))?, parts).await?;
        }
        match parts.is_empty() {
            true => Ok(()),
            false => Err(Fault::Other(format!("it ended {} bytes short", parts.bytes_left()))),
        }
    }

    async fn receive(&self, chunk: wire::SliceChunk, parts: &mut Parts) -> Result<(), Fault> {
        if chunk.data.is_empty() {
            let lacks = parts.pass_over(&chunk)?;
            self.peer.lacks.lock().expect("no holder panics").push(lacks);
            return Ok(());
        }
        let (extent, expected) = parts.next(&chunk)?;
        let found = Digest::of(&chunk.data);
        if found != expected {
            let (slice, offset) = (&self.intake.slices[extent.slice], extent.bytes.start);
            let place = format!("the chunk at byte {offset} of {slice}");
            self.intake.wanted().put_back([extent]);
            return Err(Fault::Other(format!(
                "{place} came damaged: blake3 is {found}, expected {expected}"
            )));
        }
        self.peer.bytes.fetch_add(chunk.data.len() as u64, Ordering::Relaxed);
        Ok(self.intake.take(&extent, chunk.data, chunk.proven.then_some(found)).await?)
    }

    /// What comes of `what`; `None`, if the peer is passed over first. Nothing is lost of what it did not bring.
    async fn in_time<T>(&mut self, what: impl Future<Output = T>) -> Result<Option<T>, Fault> {
        tokio::select! {
            came = timeout(self.silence_max, what) => match came {
                Ok(came) => Ok(Some(came)),
                Err(_) => Err(Fault::Other(format!("nothing came of it in {} s", self.silence_max.as_secs()))),
            },
            // The sender lives as long as the peer.
            _ = self.is_over.wait_for(|is_over| *is_over) => Ok(None),
        }
    }
}

async fn dial(dials: &Dials, address: &str, key: &[u8; 32]) -> Result<Client, String> {
    let scheme = match dials {
        Dials::Plain => "http",
        Dials::Tls(_) => "https",
        Dials::Nobody => return Err("this worker has no certificate to show it".into()),
    };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"));
    let endpoint = endpoint
        .map_err(|error| error.to_string())?
        .tcp_nodelay(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(1 << 20)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WAIT);
    let connected = async {
        match dials {
            Dials::Tls(tls) => endpoint.connect_with_connector(Connector(tls.clone())).await,
            _ => endpoint.connect().await,
        }
    };
    let channel = match timeout(DIAL_WAIT, connected).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Err(with_causes(error.to_string(), &error)),
        Err(_) => return Err(format!("it did not answer in {} s", DIAL_WAIT.as_secs())),
    };
    let client = WeightsClient::with_interceptor(
        channel,
        JoinToken(bearer(&words_of(key)).map_err(|error| error.to_string())?),
    );
    Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
}
