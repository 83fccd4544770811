//! The loop that serves: one task owns the scheduler and the group. It waits in one place for whatever
//! happens next, tells the scheduler, and carries out what the scheduler asks for.
//!
//! It knows tokens only: text, HTTP and wire are others'. It reads the clock in one place.

mod blame;
mod durations;
mod guides;
mod handle;
mod losses;
mod record;
mod requests;
mod rescue;
mod seat;
mod stats;
mod stream;
mod suspects;
mod tokens;
mod traced;

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::time::Duration;

use flotilla_scheduler::{Action, Event, Scheduler, Trial};
use flotilla_shared::{Epoch, KvBlocks, SequenceId, StepOutcome, StepPlan};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::group::{Group, GroupError, RankTime};
use crate::traces::Tracer;
pub use durations::Durations;
use guides::{Guided, Guides, Settled};
pub(crate) use handle::Coming;
use handle::{Command, News};
pub use handle::{DriverHandle, Failure, FleetHandle, Generation, Readiness, Refusal, TokenEvent};
use losses::{Losses, Rows};
pub use record::{Phase, RankTotals, Record, Recorder};
pub use rescue::{Nearness, NotDissolved, Replicas};
use rescue::{Orphaned, WeakReplicas};
use seat::{InFlight, Seat};
pub use stats::Stats;
use stream::Stream;
use suspects::Suspects;
pub use tokens::TokenStream;
use traced::TracedStep;

#[derive(Clone, Default)]
pub struct Settings {
    /// How long requests in flight wait for another group when theirs is lost; then they fail. Zero
    /// fails them at once.
    pub regroup_wait: Duration,
    /// All that serve the model: where sequences go on whose group is lost here.
    pub replicas: Replicas,
    /// Who is told of steps.
    pub tracer: Tracer,
}

/// Starts the driver on the current runtime: without a group, and so not ready.
pub fn start<G: Group>(scheduler: Scheduler, settings: Settings) -> (DriverHandle, FleetHandle<G>) {
    let (commands_in, commands) = mpsc::unbounded_channel();
    let (news_in, news) = mpsc::unbounded_channel();
    let loading = Readiness::Loading { reason: "no workers have joined yet".to_owned() };
    let (readiness_in, readiness) = watch::channel(loading);
    let (stats_in, stats) = watch::channel(Stats::default());
    let (replicas, sequences) = (settings.replicas.downgrade(), settings.replicas.sequences());
    let caches_prefixes = scheduler.settings().prefix_cache;
    let started = now();
    let recorder = Recorder::new(started);
    let driver = Driver {
        scheduler,
        regroup_wait: settings.regroup_wait,
        replicas: replicas.clone(),
        commands,
        news,
        seat: Seat::Empty,
        epoch: None,
        streams: BTreeMap::new(),
        guides: Guides::new(),
        suspects: Suspects::default(),
        losses: Losses::default(),
        on_trial: None,
        answered: Vec::new(),
        arrived: Vec::new(),
        readiness: readiness_in,
        stats: stats_in,
        orphaned: None,
        is_stopped: false,
        recorder: recorder.clone(),
        tracer: settings.tracer,
        started,
    };
    tokio::spawn(driver.run());
    let figures = (stats, recorder);
    let handle = DriverHandle::new(commands_in, readiness, figures, replicas, sequences, caches_prefixes);
    (handle, FleetHandle { news: news_in })
}

struct Driver<G> {
    scheduler: Scheduler,
    regroup_wait: Duration,
    replicas: WeakReplicas,
    commands: mpsc::UnboundedReceiver<Command>,
    news: mpsc::UnboundedReceiver<News<G>>,
    seat: Seat<G>,
    /// Of the last group that sat.
    epoch: Option<Epoch>,
    /// Who listens to which sequence.
    streams: BTreeMap<SequenceId, Stream>,
    guides: Guides,
    /// Who may have made steps fail.
    suspects: Suspects,
    /// Who may have made workers end.
    losses: Losses,
    /// As the scheduler was told.
    on_trial: Option<Trial>,
    /// Of the last step that was answered.
    answered: Vec<Rows>,
    /// Submitted since the last actions, and not answered yet.
    arrived: Vec<SequenceId>,
    readiness: watch::Sender<Readiness>,
    stats: watch::Sender<Stats>,
    /// Set while sequences wait for another group.
    orphaned: Option<Orphaned>,
    /// Nothing is taken in any more.
    is_stopped: bool,
    recorder: Recorder,
    tracer: Tracer,
    started: Instant,
}

enum Happened<G> {
    Commanded(Command),
    Heard(News<G>),
    Stepped(Result<StepOutcome, GroupError>),
    Guided(Guided),
    DeadlineCame,
    WaitedTooLong,
    LookForReplica,
}

impl<G: Group> Driver<G> {
    async fn run(mut self) {
        while let Some(happened) = self.wait().await {
            self.take_in(happened);
            // What came together starts together.
            while let Ok(command) = self.commands.try_recv() {
                self.obey(command);
            }
            self.carry_out();
            self.guides.set_out();
            // Before whoever was sent here hears of it, and is no longer counted as on its way.
            self.stats.send_modify(|stats| stats.update(&self.scheduler));
            self.admit();
        }
        self.fail_all(Failure::Stopped);
    }

    /// Commands go last: however many come, refused ones too, they hold up no step. Those that wait are taken in with
    /// whatever happens, before the next step is put together: a cancellation takes effect with it. None: every handle is
    /// gone.
    async fn wait(&mut self) -> Option<Happened<G>> {
        let give_up = self.orphaned.as_ref().map(|orphaned| orphaned.give_up);
        let look = self.orphaned.as_ref().filter(|_| !self.streams.is_empty()).map(|orphaned| orphaned.look);
        let deadline = self.scheduler.wakes_at().map(|deadline| self.started + deadline);
        tokio::select! {
            biased;
            Some(news) = self.news.recv() => Some(Happened::Heard(news)),
            outcome = self.seat.outcome() => Some(Happened::Stepped(outcome)),
            guided = self.guides.come_back() => Some(Happened::Guided(guided)),
            () = passed(deadline) => Some(Happened::DeadlineCame),
            () = passed(give_up) => Some(Happened::WaitedTooLong),
            () = passed(look) => Some(Happened::LookForReplica),
            command = self.commands.recv() => command.map(Happened::Commanded),
        }
    }

    fn take_in(&mut self, happened: Happened<G>) {
        match happened {
            Happened::Commanded(command) => self.obey(command),
            Happened::Heard(News::Loading { reason }) => self.set_loading(reason),
            Happened::Heard(News::GetsOn(near)) => self.wait_on(near),
            Happened::Heard(News::Formed { epoch, kv_blocks, group }) => self.seat(epoch, kv_blocks, group),
            Happened::Heard(News::Lost { epoch, error }) if Some(epoch) == self.epoch => self.unseat(error),
            // Of a group that was replaced meanwhile.
            Happened::Heard(News::Lost { .. }) => {}
            Happened::Stepped(Ok(outcome)) => self.stepped(outcome),
            Happened::Stepped(Err(error)) => self.unseat(error),
            Happened::Guided(guided) => self.guided(guided),
            Happened::DeadlineCame => self.tell(Event::Tick),
            Happened::WaitedTooLong => self.give_up(),
            Happened::LookForReplica => self.look_for_replica(),
        }
    }

    fn carry_out(&mut self) {
        self.put_on_trial();
        while let Some(action) = self.poll() {
            match action {
                Action::Step(plan) => self.step(plan),
                Action::Emit { sequence, token, logprobs, cached_tokens, queued } => {
                    self.emit(sequence, TokenEvent::Token { token, logprobs, cached_tokens, queued });
                    self.guides.advance(sequence, token);
                    self.went_on(sequence);
                }
                Action::Finish { sequence, reason, usage } => self.finish(sequence, reason, usage),
                Action::Reject { sequence, reason } => self.reject(sequence, reason),
                Action::Abandon { fault, .. } => self.unseat(GroupError::Abandoned(fault)),
            }
            self.put_on_trial();
        }
    }

    fn poll(&mut self) -> Option<Action> {
        let before = now();
        let action = self.scheduler.poll();
        self.recorder.scheduled(now() - before);
        action
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.submit(*submission),
            Command::Cancel(sequence) => self.cancel(sequence),
            Command::Adopt(moving) if self.is_stopped => {
                moving.stream.say(TokenEvent::Failed(Failure::Stopped))
            }
            Command::Adopt(moving) => self.adopt(moving),
            Command::Stop => self.stop(),
        }
    }

    fn tell(&mut self, event: Event) {
        let before = now();
        self.scheduler.handle(before - self.started, event);
        self.recorder.scheduled(now() - before);
    }

    fn stepped(&mut self, outcome: StepOutcome) {
        if let Seat::Taken { group, in_flight } = &mut self.seat {
            let InFlight { sent, traced, rows } =
                in_flight.pop_front().expect("only steps in flight come back");
            let (back, ranks) = (now(), group.rank_times());
            self.recorder.stepped(back - sent, RankTime::from(&outcome), ranks);
            if let Some(traced) = traced {
                traced.tell(&self.tracer, (sent, back), ranks);
            }
            self.losses.answered(&rows);
            self.answered = rows;
        }
        self.suspects.went_well();
        self.stats.send_modify(|stats| stats.computed(outcome.compute_us));
        self.tell(Event::Stepped(outcome));
    }

    fn guided(&mut self, guided: Guided) {
        let sequence = guided.sequence;
        match self.guides.settle(guided) {
            Settled::Ready => {
                self.tell(Event::Masked(sequence));
                self.rescue();
            }
            Settled::Lost => self.fail(sequence, Failure::GuideLost),
            Settled::Exhausted(exhausted) => self.fail(sequence, Failure::FormExhausted(exhausted)),
            Settled::Ended => {}
        }
    }

    fn set_loading(&mut self, reason: String) {
        if matches!(self.seat, Seat::Empty) {
            self.readiness.send_replace(Readiness::Loading { reason });
        }
    }

    fn seat(&mut self, epoch: Epoch, kv_blocks: KvBlocks, group: G) {
        if Some(epoch) <= self.epoch {
            return tracing::error!(%epoch, "a group formed in a past epoch, and is not used");
        }
        tracing::info!(%epoch, ?kv_blocks, sequences = self.streams.len(), "group formed");
        let stages = group.stages();
        self.seat = Seat::Taken { group, in_flight: VecDeque::new() };
        self.recorder.formed(now());
        self.epoch = Some(epoch);
        self.orphaned = None;
        self.readiness.send_replace(Readiness::Ready { epoch });
        self.tell(Event::GroupFormed { epoch, kv_blocks, stages });
    }

    fn unseat(&mut self, error: GroupError) {
        let Some(epoch) = self.epoch.filter(|_| !matches!(self.seat, Seat::Empty)) else {
            return;
        };
        match error {
            GroupError::Dissolved | GroupError::Outgrown => {
                tracing::info!(%epoch, why = %error, sequences = self.streams.len(), "group dissolved")
            }
            _ => tracing::error!(%epoch, %error, sequences = self.streams.len(), "group lost"),
        }
        let verdict = self.judge(&error);
        self.seat = Seat::Empty;
        self.recorder.lost(now(), error.reason());
        self.readiness.send_replace(Readiness::Lost { error: error.clone() });
        self.tell(Event::GroupLost { epoch });
        self.carry_out_verdict(verdict, &error);
        self.orphan(error);
        self.rescue();
    }

    fn is_seated(&self) -> bool {
        matches!(self.seat, Seat::Taken { .. })
    }

    fn step(&mut self, mut plan: StepPlan) {
        let Seat::Taken { group, in_flight } = &mut self.seat else {
            panic!("the scheduler asks for a step of a group that is not there");
        };
        self.guides.mask(&mut plan);
        let (before, traced) = (now(), TracedStep::of(&self.tracer, &plan, &self.streams));
        let (done, sent) = (group.send(&plan), now());
        // What did not reach every rank is carried out by none, and no reason for a loss.
        if done.is_ok() {
            in_flight.push_back(InFlight { sent, traced, rows: Rows::of(&plan) });
        }
        self.recorder.sent(sent - before);
        self.scheduler.reclaim(plan);
        if let Err(error) = done {
            self.unseat(error);
        }
    }
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// The clock.
fn now() -> Instant {
    Instant::now()
}
