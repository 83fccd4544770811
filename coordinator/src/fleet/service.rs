//! The gRPC side: who may join, and what a joined worker is. The streams of slices are in `weights.rs`.

use super::figures::Figures;
use super::listener::incoming;
use super::pool::{Pool, WAITING_MAX};
use super::weights::{Chunks, Counter, Serving};
use super::worker::Worker;
use flotilla_proto::wire::fleet_server::{Fleet as FleetRpc, FleetServer};
use flotilla_proto::wire::{FromWorker, ToWorker, from_worker};
use flotilla_proto::{Hello, MESSAGE_BYTES_MAX, PROTOCOL, wire};
use flotilla_shared::{ByPlace, Epoch};
use flotilla_trust::ServerTls;
use flotilla_trust::audit::{self, Act};
use flotilla_trust::door::Caller;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

/// Time for a worker to say Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages of one worker that are not yet heard; more stay on its side of the link.
const MESSAGES_AHEAD: usize = 16;

/// Why workers cannot be received.
#[derive(Debug, Error)]
pub enum FleetError {
    #[error("cannot listen for workers on {address}: {error}\nhint: choose another --worker-listen")]
    Listen { address: SocketAddr, error: std::io::Error },
}

/// The door for workers.
pub struct Fleet {
    address: SocketAddr,
    pub(super) pool: Pool,
    counter: Arc<Counter>,
    epochs: AtomicU64,
    tls: Option<ServerTls>,
}

impl Fleet {
    /// Listens for workers that know `join_token`, and, with `tls`, show a certificate. Weights go to the workers, all
    /// together, at `weight_rate_max` bytes a second at most.
    pub async fn listen(
        address: SocketAddr,
        join_token: &str,
        tls: Option<ServerTls>,
        weight_rate_max: Option<u64>,
    ) -> Result<Fleet, FleetError> {
        let failed = |error| FleetError::Listen { address, error };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let pool = Pool::default();
        let counter = Arc::new(Counter::new(weight_rate_max));
        let service = FleetService { pool: pool.clone(), counter: counter.clone() };
        let server = FleetServer::new(service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        // Digests are compared in constant time.
        let expected = blake3::hash(format!("Bearer {join_token}").as_bytes());
        let admit = move |request: Request<()>| {
            let caller = request.extensions().get::<Caller>();
            let may_try = !caller.is_some_and(Caller::was_turned_away);
            let given = request.metadata().get("authorization");
            let given = given.map(|value| blake3::hash(value.as_encoded_bytes()));
            if !may_try || given != Some(expected) {
                return Err(refuse_token(caller));
            }
            caller.inspect(|caller| caller.let_in());
            Ok(request)
        };
        let server = tonic::service::interceptor::InterceptedService::new(server, admit);
        let serve = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(2)))
            .http2_keepalive_timeout(Some(Duration::from_secs(3)))
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20)
            .add_service(server)
            .serve_with_incoming(incoming(listener, tls.clone()));
        tokio::spawn(async move {
            if let Err(error) = serve.await {
                warn!(%error, "the worker port closed");
            }
        });
        Ok(Fleet { address, pool, counter, epochs: AtomicU64::new(0), tls })
    }

    /// Where workers dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Workers that are in no group.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What metrics tell of it.
    pub fn figures(&self) -> Figures {
        Figures::new(self.pool.clone(), self.counter.clone(), self.tls.clone())
    }

    /// What the workers of its epoch may fetch from now on.
    pub(super) fn serve(&self, serving: Serving) {
        self.counter.serve(serving);
    }

    /// A worker says where it has weights from, and said before.
    pub(super) fn hear_of_weights(&self, now: ByPlace, before: ByPlace) {
        self.counter.hear(now, before);
    }

    pub(super) fn close_weights(&self, epoch: Epoch) {
        self.counter.close(epoch);
    }

    /// Of the next group: they rise, over all groups of this coordinator.
    pub fn next_epoch(&self) -> Epoch {
        Epoch(self.epochs.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// One token may be tried on a connection, and there is one line for it.
fn refuse_token(caller: Option<&Caller>) -> Status {
    if let Some(caller) = caller.filter(|caller| caller.turn_away()) {
        audit::refused_at_the_door(Act::AdmitWorker, caller.address, "wrong or missing join token");
    }
    Status::unauthenticated(
        "wrong or missing join token\nhint: give the worker the coordinator's --join-token",
    )
}

fn words_of(from: Option<&Caller>) -> String {
    from.map_or_else(|| "a worker".into(), |from| from.address.to_string())
}

struct FleetService {
    pool: Pool,
    counter: Arc<Counter>,
}

#[tonic::async_trait]
impl FleetRpc for FleetService {
    type JoinStream = UnboundedReceiverStream<Result<ToWorker, Status>>;
    type FetchStream = Chunks;

    async fn join(
        &self,
        request: Request<Streaming<FromWorker>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let from = words_of(request.extensions().get());
        let mut stream = request.into_inner();
        let refused = |status: &Status| audit::refused(Act::AdmitWorker, &from, status.message());
        let hello = receive_hello(&mut stream).await.inspect_err(refused)?;
        let held = hello.held.as_ref().map(|held| held.weights.to_string());
        let (who, device) = (format!("{} at {from}", hello.inventory.name), hello.inventory.device.clone());
        info!(worker = hello.inventory.name, device, from, held, "worker joined");
        let (hears, outbox) = mpsc::unbounded_channel();
        let (inbox, says) = mpsc::channel(MESSAGES_AHEAD);
        let (end, ended) = watch::channel(None);
        let holding = self.pool.holders().enter(&hello, ended.clone());
        let leaves = Arc::<AtomicBool>::default();
        let worker = Worker {
            hello,
            says,
            hears,
            ended,
            leaves: leaves.clone(),
            holding,
            failures: 0,
            disputes: 0,
            acquitted: false,
        };
        if !self.pool.enter(worker) {
            let full = Status::resource_exhausted(format!("{WAITING_MAX} workers wait already"));
            refused(&full);
            return Err(full);
        }
        audit::done(Act::AdmitWorker, &who, &device);
        tokio::spawn(async move {
            let end = forward(stream, inbox, end, &leaves).await;
            audit::done(Act::WorkerLeft, who, end);
        });
        Ok(Response::new(UnboundedReceiverStream::new(outbox)))
    }

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        self.counter.fetch(request.into_inner()).map(Response::new)
    }
}

async fn receive_hello(stream: &mut Streaming<FromWorker>) -> Result<Hello, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, stream.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no Hello came"))??;
    let Some(FromWorker { message: Some(from_worker::Message::Hello(hello)) }) = first else {
        return Err(Status::invalid_argument("the first message must be Hello"));
    };
    let hello = Hello::try_from(hello).map_err(|error| Status::invalid_argument(error.to_string()))?;
    if hello.protocol != PROTOCOL {
        return Err(Status::failed_precondition(format!(
            "this coordinator ({}) speaks protocol {PROTOCOL}, the worker ({}) protocol {}\n\
             hint: run the same version on both",
            env!("CARGO_PKG_VERSION"),
            hello.version,
            hello.protocol
        )));
    }
    Ok(hello)
}

/// A worker's words, as long as a log wants them.
fn said(words: &str) -> String {
    words.chars().take(200).filter(|letter| !letter.is_control()).collect()
}

/// Passes a worker's messages on; its last one is why the stream ended.
async fn forward(
    mut stream: Streaming<FromWorker>,
    inbox: mpsc::Sender<Result<from_worker::Message, String>>,
    ended: watch::Sender<Option<String>>,
    leaves: &AtomicBool,
) -> String {
    let end: String = loop {
        match stream.message().await {
            Ok(Some(FromWorker { message: Some(from_worker::Message::Leaving(leaving)) })) => {
                leaves.store(true, Ordering::Release);
                break format!("it leaves: {}", said(&leaving.reason));
            }
            Ok(Some(FromWorker { message: Some(message) })) => {
                if inbox.send(Ok(message)).await.is_err() {
                    break "it is no longer wanted".into();
                }
            }
            Ok(Some(_)) => break "it sent an empty message".into(),
            Ok(None) => break "it closed its link".into(),
            Err(status) => break format!("its link broke: {}", status.message()),
        }
    };
    ended.send_replace(Some(end.clone()));
    let _ = inbox.send(Err(end.clone())).await;
    end
}
