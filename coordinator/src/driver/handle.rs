//! The driver from outside: clients submit and read tokens, the fleet brings groups. All of it is
//! channels; nothing here decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use flotilla_scheduler::{ClientId, FinishReason, Rejection, Request, Usage};
use flotilla_shared::step::Logprobs;
use flotilla_shared::{Epoch, KvBlocks, Sampling, SequenceId, TokenId};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Span;

use super::guides::Ready;
use super::record::{Record, Recorder};
use super::rescue::{Moving, Nearness, WeakReplicas};
use super::stats::Stats;
use super::tokens::TokenStream;
use crate::group::GroupError;
use crate::guide::{Exhausted, Guide};
use crate::traces::Context as TraceContext;

/// What a client wants: one continuation of one prompt.
#[derive(Default)]
pub struct Generation {
    pub prompt: Vec<TokenId>,
    /// So many of the prompt, its last, were generated before: this goes on from there.
    pub said: Option<usize>,
    pub sampling: Sampling,
    /// With those that were generated before.
    pub tokens_max: usize,
    pub stop_tokens: Vec<TokenId>,
    /// Keeps the answer to a form.
    pub guide: Option<Box<dyn Guide>>,
    pub client: ClientId,
    /// Lower goes first.
    pub priority: i32,
    /// From now on: then it ends, done or not.
    pub timeout: Option<Duration>,
    /// Prompts share what was computed of them within one salt only.
    pub salt: u64,
    /// The request that it is of, if that is traced.
    pub trace: Option<TraceContext>,
}

/// What a client hears of its sequence. `Finished` and `Failed` are last words.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEvent {
    Token {
        token: TokenId,
        logprobs: Option<Logprobs>,
        /// Of the prompt, found in the prefix cache.
        cached_tokens: usize,
        /// Before its first place in a step.
        queued: Duration,
    },
    Finished {
        reason: FinishReason,
        usage: Usage,
    },
    Failed(Failure),
}

/// Why a sequence ended before it was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("the workers of the model were lost: {0}")]
    GroupLost(GroupError),
    #[error(
        "the workers fail in every step that this request is part of, and it is given up: {0}\n\
         hint: other requests are served; the server's log says more"
    )]
    StepsFail(GroupError),
    #[error(
        "a worker was lost three times in a row while this request alone was computed, and it is given up: {0}\n\
         hint: the worker's log says why it ended; if that was chance, send the request again"
    )]
    LosesWorkers(GroupError),
    #[error("what keeps the answer to its form failed, by a mistake of the server's")]
    GuideLost,
    #[error("the answer's form could not be followed to its end within its limits: {0}")]
    FormExhausted(Exhausted),
    #[error("the server is stopping")]
    Stopped,
}

/// Why a submission was not taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    NotReady(Readiness),
    #[error("the scheduler refused the request: {0:?}")]
    Rejected(Rejection),
    #[error("{}", Failure::GuideLost)]
    GuideLost,
    #[error("{}", Failure::FormExhausted(.0.clone()))]
    FormExhausted(Exhausted),
    #[error("the server is stopping")]
    Stopped,
}

/// Whether requests can be served, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Loading {
        reason: String,
    },
    Ready {
        epoch: Epoch,
    },
    Lost {
        error: GroupError,
    },
    /// The driver has ended: by order, or by a fault of its own.
    Stopped,
}

impl std::fmt::Display for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Loading { reason } => write!(f, "the model is loading: {reason}"),
            Self::Ready { .. } => f.write_str("ready"),
            Self::Lost { error } => write!(f, "the workers of the model were lost: {error}"),
            Self::Stopped => f.write_str("the server is stopping"),
        }
    }
}

pub(super) type Admission = oneshot::Sender<Result<(), Refusal>>;

pub(super) enum Command {
    Submit(Box<Submission>),
    Cancel(SequenceId),
    /// From another replica.
    Adopt(Box<Moving>),
    Stop,
}

pub(super) struct Submission {
    pub request: Request,
    pub timeout: Option<Duration>,
    pub guide: Option<Ready>,
    pub events: mpsc::UnboundedSender<TokenEvent>,
    pub admission: Admission,
    pub trace: Option<TraceContext>,
    pub span: Span,
}

/// What the fleet tells the driver.
pub(super) enum News<G> {
    Loading { reason: String },
    GetsOn(Nearness),
    Formed { epoch: Epoch, kv_blocks: KvBlocks, group: G },
    Lost { epoch: Epoch, error: GroupError },
}

/// The clients' side. Cheap to clone; when the last one is dropped, the driver ends.
#[derive(Clone)]
pub struct DriverHandle {
    commands: mpsc::UnboundedSender<Command>,
    readiness: watch::Receiver<Readiness>,
    stats: watch::Receiver<Stats>,
    recorder: Recorder,
    /// A sequence may move to one of them.
    replicas: WeakReplicas,
    sequences: Arc<AtomicU64>,
    /// Whether it is to end, for good.
    dissolved: watch::Sender<bool>,
    /// What was sent here and is not taken in yet.
    coming: Arc<AtomicUsize>,
    caches_prefixes: bool,
}

/// Held while a sequence is on its way to a driver that was chosen for it: the next choice counts it.
pub(crate) struct Coming {
    count: Arc<AtomicUsize>,
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl DriverHandle {
    pub(super) fn new(
        commands: mpsc::UnboundedSender<Command>,
        readiness: watch::Receiver<Readiness>,
        (stats, recorder): (watch::Receiver<Stats>, Recorder),
        replicas: WeakReplicas,
        sequences: Arc<AtomicU64>,
        caches_prefixes: bool,
    ) -> DriverHandle {
        let dissolved = watch::Sender::new(false);
        let coming = Arc::default();
        DriverHandle {
            commands,
            readiness,
            stats,
            recorder,
            replicas,
            sequences,
            dissolved,
            coming,
            caches_prefixes,
        }
    }

    /// Sequences that run, wait, or are on their way here.
    pub fn busy(&self) -> usize {
        let load = self.stats().load;
        load.sequences_running + load.sequences_waiting + self.coming.load(Ordering::Relaxed)
    }

    /// One more is on its way here, until what is returned is dropped.
    pub(crate) fn expect_one(&self) -> Coming {
        self.coming.fetch_add(1, Ordering::Relaxed);
        Coming { count: self.coming.clone() }
    }

    pub(super) fn send(&self, command: Command) -> Result<(), Box<Moving>> {
        match self.commands.send(command) {
            Err(mpsc::error::SendError(Command::Adopt(moving))) => Err(moving),
            _ => Ok(()),
        }
    }

    /// Waits until the scheduler has taken the sequence in, not for its first token. Dropping the
    /// stream, or this future, cancels the sequence.
    ///
    /// Channels are unbounded, so that no client can stall another, and yet hold little: a caller waits
    /// here with one command, and events end with `tokens_max`.
    pub async fn submit(&self, generation: Generation) -> Result<TokenStream, Refusal> {
        let sequence = SequenceId(self.sequences.fetch_add(1, Ordering::Relaxed) + 1);
        let Generation { prompt, said, sampling, tokens_max, stop_tokens, client, priority, salt, .. } =
            generation;
        let request = Request {
            sequence,
            prompt,
            said,
            sampling,
            tokens_max,
            stop_tokens,
            client,
            priority,
            salt,
            ..Request::default()
        };
        let guide = match generation.guide {
            Some(guide) => Some(prepare(guide).await?),
            None => None,
        };
        let (events_in, events) = mpsc::unbounded_channel();
        let (admission, admitted) = oneshot::channel();
        let (timeout, trace) = (generation.timeout, generation.trace);
        let span = Span::current();
        let submission = Submission { request, timeout, guide, events: events_in, admission, trace, span };
        let command = Command::Submit(Box::new(submission));
        self.commands.send(command).map_err(|_| Refusal::Stopped)?;
        let (commands, replicas) = (self.commands.clone(), self.replicas.clone());
        let mut stream = TokenStream { events, sequence, commands, replicas, done: false };
        let answer = admitted.await.unwrap_or(Err(Refusal::Stopped));
        // Of what was refused there is nothing to cancel.
        stream.done = answer.is_err();
        answer.map(|()| stream)
    }

    /// Resolves once a group can serve.
    pub async fn ready(&mut self) {
        self.until(|readiness| matches!(readiness, Readiness::Ready { .. })).await;
    }

    /// Resolves once the group is lost.
    pub async fn lost(&mut self) {
        self.until(|readiness| matches!(readiness, Readiness::Lost { .. })).await;
    }

    /// Never resolves once the driver has ended.
    async fn until(&mut self, wanted: impl FnMut(&Readiness) -> bool) {
        if self.readiness.wait_for(wanted).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Its requests go on in other replicas, and no group is to take the place of the one that it has.
    pub(super) fn dissolve(&self) {
        self.dissolved.send_replace(true);
    }

    /// All that is under way ends with [`Failure::Stopped`], and nothing is taken in from then on.
    pub fn stop(&self) {
        // One that has ended has told everybody.
        let _ = self.commands.send(Command::Stop);
    }

    /// Whether prompts that begin alike share what was computed.
    pub(crate) fn caches_prefixes(&self) -> bool {
        self.caches_prefixes
    }

    /// Whether it has no group, and may get one.
    pub(crate) fn awaits_group(&self) -> bool {
        let comes = matches!(self.readiness(), Readiness::Loading { .. } | Readiness::Lost { .. });
        comes && !self.is_dissolved()
    }

    /// Whether it takes requests in, and will.
    pub(crate) fn serves(&self) -> bool {
        !self.is_dissolved() && matches!(self.readiness(), Readiness::Ready { .. })
    }

    pub fn is_dissolved(&self) -> bool {
        *self.dissolved.borrow()
    }

    /// Resolves once it is to be dissolved.
    pub async fn dissolved(&self) {
        let mut dissolved = self.dissolved.subscribe();
        // The sender is this handle's own.
        let _ = dissolved.wait_for(|dissolved| *dissolved).await;
    }

    /// How busy it is, and what it has done.
    pub fn stats(&self) -> Stats {
        *self.stats.borrow()
    }

    /// What became of its groups, and where their time went.
    pub fn record(&self) -> Record {
        self.recorder.record()
    }

    pub fn readiness(&self) -> Readiness {
        if self.commands.is_closed() {
            return Readiness::Stopped;
        }
        self.readiness.borrow().clone()
    }
}

async fn prepare(guide: Box<dyn Guide>) -> Result<Ready, Refusal> {
    let span = Span::current();
    let prepared = tokio::task::spawn_blocking(|| Ready::prepare(guide, span)).await;
    // Blocking tasks are cancelled only when the runtime ends.
    let lost = |error: tokio::task::JoinError| match error.is_panic() {
        true => Refusal::GuideLost,
        false => Refusal::Stopped,
    };
    prepared.map_err(lost)?.map_err(Refusal::FormExhausted)
}

/// The fleet's side: it says how far the workers are, brings a group, and takes it back.
pub struct FleetHandle<G> {
    pub(super) news: mpsc::UnboundedSender<News<G>>,
}

impl<G> FleetHandle<G> {
    /// Not ready yet: what is being waited for, as `/health` will say it.
    pub fn loading(&self, reason: impl Into<String>) {
        self.send(News::Loading { reason: reason.into() });
    }

    /// How near the group that is wanted is: who waits for it waits on, if none was as near since the loss.
    pub fn gets_on(&self, near: Nearness) {
        self.send(News::GetsOn(near));
    }

    /// A group with nothing in its cache. Replaces the one before, if there is one.
    pub fn formed(&self, epoch: Epoch, kv_blocks: KvBlocks, group: G) {
        self.send(News::Formed { epoch, kv_blocks, group });
    }

    /// The group of that epoch is gone, as seen from outside a step (in a step, the step says so).
    pub fn lost(&self, epoch: Epoch, error: GroupError) {
        self.send(News::Lost { epoch, error });
    }

    /// Once the driver has ended: with the last handle, or by a fault of its own.
    pub async fn stopped(&self) {
        self.news.closed().await;
    }

    fn send(&self, news: News<G>) {
        // A driver that has ended needs no news.
        let _ = self.news.send(news);
    }
}
