//! The worker's conversation with its coordinator, as messages. The only file of this crate that speaks gRPC, with
//! those that fetch weights.

use crate::error::WorkerError;
use crate::settings::Settings;
use crate::tls::{Connector, refusal};
use flotilla_engine::collective::host;
use flotilla_proto::wire::fleet_client::FleetClient;
use flotilla_proto::wire::{from_worker, to_worker};
use flotilla_proto::{Hello, MESSAGE_BYTES_MAX, PROTOCOL, WireError, measured, ready, released, wire};
use flotilla_shared::{Assignment, Epoch, Held, LinkRate, LinkTest, Loading, Reach, StepOutcome, StepPlan};
use std::net::TcpListener;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tracing::warn;

/// A coordinator answers a Hello at once; what only stands between, and answers pings, may never do so.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two tries to reach the coordinator.
const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// The coordinator logs each try that it refuses.
const RETRY_PAUSE_TLS: Duration = Duration::from_secs(1);

/// Carries the join token with every call.
#[derive(Clone, Debug)]
pub struct JoinToken(pub MetadataValue<Ascii>);

impl tonic::service::Interceptor for JoinToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub type Client = FleetClient<InterceptedService<Channel, JoinToken>>;

/// What the coordinator orders.
pub enum Order {
    Assign(Box<Assignment>),
    /// The weights of a part in a group to come.
    Prepare(Box<Assignment>),
    /// All ranks of the group of this epoch have their weights.
    Meet(Epoch),
    Step(StepPlan),
    /// The group of this epoch is no more.
    Dissolve(Epoch),
    /// Of a worker in no group.
    Measure(LinkTest),
}

/// What is said of the worker's own; may be cloned into whatever reports.
#[derive(Clone)]
pub struct Says(mpsc::UnboundedSender<wire::FromWorker>);

impl Says {
    pub fn loading(&self, loading: Loading) {
        self.say(from_worker::Message::Loading(loading.into()));
    }

    pub fn loaded(&self, epoch: Epoch) {
        self.say(from_worker::Message::Loaded(wire::Loaded { epoch: epoch.0 }));
    }

    pub fn ready(&self, epoch: Epoch, reach: &Reach) {
        self.say(from_worker::Message::Ready(ready(epoch, reach)));
    }

    pub fn outcome(&self, outcome: StepOutcome) {
        self.say(from_worker::Message::Outcome(outcome.into()));
    }

    pub fn failed(&self, epoch: Epoch, error: &WorkerError) {
        let (reason, blames_another) = (error.to_string(), error.blames_another());
        self.say(from_worker::Message::Failed(wire::Failed { reason, epoch: epoch.0, blames_another }));
    }

    pub fn released(&self, epoch: Epoch, held: Option<&Held>) {
        self.say(from_worker::Message::Released(released(epoch, held)));
    }

    pub fn measured(&self, epoch: Epoch, found: Result<LinkRate, String>) {
        self.say(from_worker::Message::Measured(measured(epoch, found)));
    }

    /// The last word.
    pub fn leaving(&self, reason: &str) {
        self.say(from_worker::Message::Leaving(wire::Leaving { reason: reason.to_owned() }));
    }

    /// Of a link that is gone, whoever listens is told.
    fn say(&self, message: from_worker::Message) {
        let _ = self.0.send(wire::FromWorker { message: Some(message) });
    }
}

/// Both directions of the conversation.
pub struct Link {
    /// Its connection is the conversation's.
    _client: Client,
    pub says: Says,
    hears: Streaming<wire::ToWorker>,
}

impl Link {
    /// Dials, trying for as long as `patience`, and says Hello.
    pub async fn join(
        settings: &Settings,
        listener: &TcpListener,
        hands_on: Option<(String, [u8; 32])>,
        held: Option<Held>,
        patience: Duration,
    ) -> Result<Link, WorkerError> {
        let mut client = dial(settings, patience, Purpose::Conversation).await?;
        let (says, outbox) = mpsc::unbounded_channel();
        let port = listener.local_addr().map_or(0, |address| address.port());
        let hello = Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            inventory: settings.inventory.clone(),
            collective_address: advertised(&settings.advertise_host, port),
            host: host(),
            held,
            hands_on,
        };
        let says = Says(says);
        says.say(from_worker::Message::Hello((&hello).into()));
        let joined = client.join(UnboundedReceiverStream::new(outbox));
        let joined = tokio::time::timeout(ANSWER_TIMEOUT, joined).await;
        let silent =
            |_| Status::deadline_exceeded("no answer to Hello\nhint: is this the coordinator, or a proxy?");
        let hears = joined.map_err(silent)?.map_err(|status| unanswered(status, settings))?.into_inner();
        Ok(Link { _client: client, says, hears })
    }

    /// The next order. May be dropped and asked for again.
    pub async fn order(&mut self) -> Result<Order, WorkerError> {
        let Some(wire::ToWorker { message }) = self.hears.message().await? else {
            return Err(WorkerError::Closed);
        };
        match message {
            Some(to_worker::Message::Assignment(assignment)) => {
                Ok(Order::Assign(Box::new(assignment.try_into()?)))
            }
            Some(to_worker::Message::Prepare(assignment)) => {
                Ok(Order::Prepare(Box::new(assignment.try_into()?)))
            }
            Some(to_worker::Message::Meet(meet)) => Ok(Order::Meet(Epoch(meet.epoch))),
            Some(to_worker::Message::Step(plan)) => Ok(Order::Step(plan.try_into()?)),
            Some(to_worker::Message::Dissolve(dissolve)) => Ok(Order::Dissolve(Epoch(dissolve.epoch))),
            Some(to_worker::Message::Measure(test)) => Ok(Order::Measure(test.try_into()?)),
            None => Err(WireError { field: "ToWorker.message", problem: "is missing".into() }.into()),
        }
    }
}

/// Of a Hello: a connection that breaks before the first word from the other side may be one with anybody, as with the
/// API's port.
fn unanswered(status: Status, settings: &Settings) -> WorkerError {
    match WorkerError::from(status) {
        WorkerError::LinkBroke(error) => {
            WorkerError::Unreachable { coordinator: settings.coordinator.clone(), error }
        }
        refused => refused,
    }
}

/// `host`, or `host:port`; an IPv6 address stands in brackets if it has a port.
pub fn advertised(host: &str, port: u16) -> String {
    let has_port = host.rsplit_once(':').is_some_and(|(host, port)| {
        port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
    });
    match has_port {
        true => host.to_owned(),
        false if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// An order that cannot be at this point.
pub fn unexpected(what: &str) -> WorkerError {
    WireError { field: "ToWorker.message", problem: format!("is {what}") }.into()
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Conversation,
    /// Long frames, and pings that may wait behind them on a slow link.
    Weights,
}

/// Connects, trying again while the coordinator may still be starting, or certificates be renewed.
pub async fn dial(settings: &Settings, patience: Duration, purpose: Purpose) -> Result<Client, WorkerError> {
    let token = bearer(&settings.join_token)?;
    let endpoint = endpoint(settings, purpose)?;
    let start = Instant::now();
    let mut told = String::new();
    let channel = loop {
        let error = match connect(&endpoint, settings).await {
            Ok(channel) => break channel,
            Err(error) => error,
        };
        if start.elapsed() >= patience {
            return Err(error);
        }
        // The same is said once.
        let words = error.to_string();
        if words != told {
            warn!(error = words, coordinator = settings.coordinator, "not reachable yet");
            told = words;
        }
        tokio::time::sleep(if settings.tls.is_some() { RETRY_PAUSE_TLS } else { RETRY_PAUSE }).await;
    };
    let client = FleetClient::with_interceptor(channel, JoinToken(token));
    Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
}

/// Whether a coordinator can be asked for at this address with this token; nobody is dialed.
pub fn check(coordinator: &str, has_tls: bool, join_token: &str) -> Result<(), WorkerError> {
    bearer(join_token)?;
    address(coordinator, has_tls).map(drop)
}

pub fn bearer(join_token: &str) -> Result<MetadataValue<Ascii>, WorkerError> {
    format!("Bearer {join_token}").parse().map_err(|_| WorkerError::Token)
}

fn address(coordinator: &str, has_tls: bool) -> Result<Endpoint, WorkerError> {
    let unfit = || WorkerError::Address(coordinator.to_owned());
    let scheme = if has_tls { "https://" } else { "http://" };
    let host = coordinator.strip_prefix(scheme).ok_or_else(unfit)?;
    let endpoint = Endpoint::from_shared(coordinator.to_owned()).map_err(|_| unfit())?;
    if host.is_empty() { Err(unfit()) } else { Ok(endpoint) }
}

fn endpoint(settings: &Settings, purpose: Purpose) -> Result<Endpoint, WorkerError> {
    let (frame_bytes, ping_s, answer_s) = match purpose {
        Purpose::Conversation => (16 << 10, 2, 3),
        Purpose::Weights => (1 << 20, 10, 20),
    };
    Ok(address(&settings.coordinator, settings.tls.is_some())?
        .tcp_nodelay(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(frame_bytes)
        .http2_keep_alive_interval(Duration::from_secs(ping_s))
        .keep_alive_timeout(Duration::from_secs(answer_s))
        .keep_alive_while_idle(true)
        .connect_timeout(Duration::from_secs(5)))
}

async fn connect(endpoint: &Endpoint, settings: &Settings) -> Result<Channel, WorkerError> {
    let connected = match &settings.tls {
        None => endpoint.connect().await,
        Some(tls) => endpoint.connect_with_connector(Connector(tls.clone())).await,
    };
    let coordinator = || settings.coordinator.clone();
    connected.map_err(|error| match refusal(&error) {
        Some(refusal) => WorkerError::Tls { coordinator: coordinator(), refusal: refusal.clone() },
        None => {
            let error = std::error::Error::source(&error).map_or(error.to_string(), |e| e.to_string());
            WorkerError::Unreachable { coordinator: coordinator(), error }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::advertised;

    #[test]
    fn a_port_is_added_where_there_is_none() {
        for (host, address) in [
            ("gpu-3", "gpu-3:7000"),
            ("10.0.0.3", "10.0.0.3:7000"),
            ("gateway:9100", "gateway:9100"),
            ("fe80::1", "[fe80::1]:7000"),
            ("[fe80::1]", "[fe80::1]:7000"),
            ("[fe80::1]:9100", "[fe80::1]:9100"),
        ] {
            assert_eq!(advertised(host, 7000), address);
        }
    }
}
