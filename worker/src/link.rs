//! The worker's conversation with its coordinator: hello, assignment, loading, ready, steps. The only
//! file of this crate that speaks gRPC, with `load/coordinator.rs`.

use crate::device::{BuildError, Device, on_card, on_cpu};
use crate::engine_thread::EngineThread;
use crate::executor::StepError;
use crate::load::load;
use flotilla_engine::backend::cuda::CudaWeights;
use flotilla_engine::collective::{CollectiveError, ProcessCollective, host};
use flotilla_engine::cuda::CudaError;
use flotilla_engine::weights::{RankWeights, WeightError};
use flotilla_proto::wire::fleet_client::FleetClient;
use flotilla_proto::wire::{from_worker, to_worker};
use flotilla_proto::{Hello, MESSAGE_BYTES_MAX, PROTOCOL, WireError, ready, wire};
use flotilla_shared::step::STEPS_AHEAD_MAX;
use flotilla_shared::{Assignment, Inventory, Loading, Reach, StepPlan};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tracing::{info, warn};

/// What a worker is told on its command line.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `http://host:port` of the coordinator's worker port.
    pub coordinator: String,
    /// The secret that admits workers.
    pub join_token: String,
    pub inventory: Inventory,
    /// Where the collective listens.
    pub collective_listen: SocketAddr,
    /// The host by which the other workers dial this one.
    pub advertise_host: String,
    pub device: Device,
    /// How long to try to reach the coordinator.
    pub join_timeout: Duration,
    /// How long one collective operation may wait for another rank.
    pub collective_timeout: Duration,
}

/// Why a worker ended.
#[derive(Debug, Error)]
pub enum WorkerError {
    #[error(
        "cannot listen for other workers on {address}: {error}\nhint: choose another --collective-listen"
    )]
    Listen { address: SocketAddr, error: std::io::Error },
    #[error("coordinator address {0} is not a URL\nhint: it looks like http://host:7070")]
    Address(String),
    #[error("the join token has characters that a header cannot carry\nhint: use letters and digits")]
    Token,
    #[error(
        "cannot reach the coordinator at {coordinator}: {error}\nhint: is it running, and is this its worker port?"
    )]
    Unreachable { coordinator: String, error: String },
    #[error("the coordinator refused: {0}")]
    Refused(String),
    #[error("the coordinator closed the link")]
    Closed,
    #[error("the link to the coordinator broke: {0}")]
    LinkBroke(String),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("weights: {0}")]
    Weights(String),
    #[error("weights: {0}")]
    Source(#[from] WeightError),
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error(transparent)]
    Card(#[from] CudaError),
    #[error("step failed: {0}")]
    Step(#[from] StepError),
    #[error("the engine thread ended without an answer")]
    EngineGone,
}

impl From<BuildError> for WorkerError {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Card(error) => error.into(),
            BuildError::Collective(error) => error.into(),
        }
    }
}

impl From<Status> for WorkerError {
    fn from(status: Status) -> Self {
        use tonic::Code::{FailedPrecondition, InvalidArgument, ResourceExhausted, Unauthenticated};
        match status.code() {
            Unauthenticated | FailedPrecondition | InvalidArgument | ResourceExhausted => {
                WorkerError::Refused(status.message().into())
            }
            code => WorkerError::LinkBroke(format!("{code:?}: {}", status.message())),
        }
    }
}

/// Carries the join token with every call.
#[derive(Clone, Debug)]
pub struct JoinToken(MetadataValue<Ascii>);

impl tonic::service::Interceptor for JoinToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub type Client = FleetClient<InterceptedService<Channel, JoinToken>>;

/// Joins, loads, and executes steps until the coordinator ends the conversation or something breaks.
pub async fn run(settings: Settings) -> Result<(), WorkerError> {
    let listener = TcpListener::bind(settings.collective_listen)
        .map_err(|error| WorkerError::Listen { address: settings.collective_listen, error })?;
    let mut link = Link::join(&settings, &listener).await?;
    let result = serve(&settings, &mut link, listener).await;
    if let Err(error) = &result {
        link.say(from_worker::Message::Failed(wire::Failed { reason: error.to_string() }));
        // Lets the words leave before the process does.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    result
}

async fn serve(settings: &Settings, link: &mut Link, listener: TcpListener) -> Result<(), WorkerError> {
    let assignment = link.assignment().await?;
    info!(rank = %assignment.rank, ranks = assignment.plan.rank_count(), "assigned");
    let (epoch, rank) = (assignment.epoch, assignment.rank);
    let (mut engine, reach) = tokio::select! {
        engine = prepare(settings, &link.says, assignment, listener) => engine?,
        // Whoever leaves while this worker loads ends its part too: it must not wait for peers in vain.
        early = link.hears.message() => return Err(too_early(early?)),
    };
    link.say(from_worker::Message::Ready(ready(epoch, &reach)));
    match &reach.not_shared {
        Some(reason) => warn!(reason, "this host's workers share no memory, they talk by TCP"),
        None => info!(by_memory = reach.by_memory.len(), "linked"),
    }
    info!(%rank, %epoch, "ready");
    execute_steps(link, &mut engine).await
}

/// Steps go to the engine as they come, and outcomes back as they are done.
async fn execute_steps(link: &mut Link, engine: &mut EngineThread) -> Result<(), WorkerError> {
    let mut in_flight = 0;
    loop {
        tokio::select! {
            plan = link.next_step() => match plan? {
                Some(_) if in_flight == STEPS_AHEAD_MAX => {
                    return Err(unexpected(&format!("a Step while {in_flight} are not answered")));
                }
                Some(plan) => {
                    in_flight += 1;
                    engine.submit(plan);
                }
                None => {
                    info!("the coordinator closed the link");
                    return Ok(());
                }
            },
            outcome = engine.outcome() => {
                in_flight -= 1;
                let outcome = outcome.ok_or(WorkerError::EngineGone)??;
                link.say(from_worker::Message::Outcome(outcome.into()));
            }
        }
    }
}

/// What the coordinator said before this worker was ready.
fn too_early(message: Option<wire::ToWorker>) -> WorkerError {
    message.map_or(WorkerError::Closed, |_| unexpected("sent before this worker answered"))
}

async fn prepare(
    settings: &Settings,
    says: &mpsc::UnboundedSender<wire::FromWorker>,
    assignment: Assignment,
    listener: TcpListener,
) -> Result<(EngineThread, Reach), WorkerError> {
    let deadline = settings.collective_timeout;
    let (reached, on_reached) = std::sync::mpsc::channel();
    let collective = {
        let (rank, epoch, peers) = (assignment.rank, assignment.epoch, assignment.peers.clone());
        let (key, links) = (assignment.group_key, assignment.links.clone());
        move || {
            let mut group = ProcessCollective::connect(rank, listener, &peers, &key, epoch, deadline)?;
            let _ = reached.send(group.link(&links)?);
            Ok::<_, CollectiveError>(group)
        }
    };
    let says = says.clone();
    let tell = move |loading: Loading| {
        let message = from_worker::Message::Loading(loading.into());
        let _ = says.send(wire::FromWorker { message: Some(message) });
    };
    let engine = match settings.device.clone() {
        Device::Cpu(cpu) => {
            let weights = RankWeights::new(&assignment.spec, &assignment.plan, assignment.rank)?;
            let weights = load(settings, &assignment, weights, tell).await?;
            let build = move || Ok::<_, WorkerError>(on_cpu(&cpu, &assignment, weights, collective()?));
            EngineThread::start(build).await?
        }
        Device::Card(card) => {
            let slices = assignment.plan.slices(&assignment.spec, assignment.rank);
            let weights = CudaWeights::new(&card.card, slices)?;
            let weights = load(settings, &assignment, weights, tell).await?;
            let build =
                move || Ok::<_, WorkerError>(on_card(&card, &assignment, weights, collective()?, deadline)?);
            EngineThread::start(build).await?
        }
    };
    // An engine that was built is linked.
    Ok((engine, on_reached.try_recv().unwrap_or_default()))
}

/// Both directions of the conversation.
struct Link {
    /// Its connection is the conversation's.
    _client: Client,
    says: mpsc::UnboundedSender<wire::FromWorker>,
    hears: Streaming<wire::ToWorker>,
}

impl Link {
    async fn join(settings: &Settings, listener: &TcpListener) -> Result<Link, WorkerError> {
        let mut client = dial(settings).await?;
        let (says, outbox) = mpsc::unbounded_channel();
        let port = listener.local_addr().map_or(0, |address| address.port());
        let hello = Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            inventory: settings.inventory.clone(),
            collective_address: format!("{}:{port}", settings.advertise_host),
            host: host(),
        };
        let hello = from_worker::Message::Hello((&hello).into());
        let _ = says.send(wire::FromWorker { message: Some(hello) });
        let hears = client.join(UnboundedReceiverStream::new(outbox)).await?.into_inner();
        Ok(Link { _client: client, says, hears })
    }

    fn say(&self, message: from_worker::Message) {
        let _ = self.says.send(wire::FromWorker { message: Some(message) });
    }

    async fn hear(&mut self) -> Result<Option<to_worker::Message>, WorkerError> {
        match self.hears.message().await? {
            Some(wire::ToWorker { message: Some(message) }) => Ok(Some(message)),
            Some(_) => Err(WireError { field: "ToWorker.message", problem: "is missing".into() }.into()),
            None => Ok(None),
        }
    }

    async fn assignment(&mut self) -> Result<Assignment, WorkerError> {
        match self.hear().await?.ok_or(WorkerError::Closed)? {
            to_worker::Message::Assignment(assignment) => Ok(assignment.try_into()?),
            to_worker::Message::Step(_) => Err(unexpected("Step before Assignment")),
        }
    }

    /// `None` when the coordinator has ended the conversation.
    async fn next_step(&mut self) -> Result<Option<StepPlan>, WorkerError> {
        match self.hear().await? {
            Some(to_worker::Message::Step(plan)) => Ok(Some(plan.try_into()?)),
            Some(to_worker::Message::Assignment(_)) => Err(unexpected("a second Assignment")),
            None => Ok(None),
        }
    }
}

fn unexpected(what: &str) -> WorkerError {
    WireError { field: "ToWorker.message", problem: format!("is {what}") }.into()
}

/// Connects, trying again while the coordinator may still be starting.
pub(crate) async fn dial(settings: &Settings) -> Result<Client, WorkerError> {
    let token = format!("Bearer {}", settings.join_token).parse().map_err(|_| WorkerError::Token)?;
    if !settings.coordinator.starts_with("http://") {
        return Err(WorkerError::Address(settings.coordinator.clone()));
    }
    let endpoint = Endpoint::from_shared(settings.coordinator.clone())
        .map_err(|_| WorkerError::Address(settings.coordinator.clone()))?
        .tcp_nodelay(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true)
        .connect_timeout(Duration::from_secs(5));
    let start = Instant::now();
    let channel = loop {
        match endpoint.connect().await {
            Ok(channel) => break channel,
            Err(error) if start.elapsed() < settings.join_timeout => {
                warn!(%error, coordinator = settings.coordinator, "not reachable yet");
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            Err(error) => {
                let error = std::error::Error::source(&error).map_or(error.to_string(), |e| e.to_string());
                return Err(WorkerError::Unreachable { coordinator: settings.coordinator.clone(), error });
            }
        }
    };
    let client = FleetClient::with_interceptor(channel, JoinToken(token));
    Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
}
