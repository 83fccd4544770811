//! A formed group: steps out to every rank, every rank's outcomes back, compared and put together.

mod joined;

pub use joined::join;

use super::growing::Members;
use super::pool::Pool;
use super::worker::Worker;
use crate::group::{Group, GroupError, RankTime};
use flotilla_proto::Hello;
use flotilla_proto::wire::{self, ToWorker, from_worker, to_worker};
use flotilla_shared::{Epoch, Held, Plan, Rank, SequenceId, StepId, StepOutcome, StepPlan, WeightsId};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// For a rank that failed to say so, after another has noticed it.
const FAULT_WAIT: Duration = Duration::from_millis(500);

/// Workers that hold one copy of the model together.
pub struct RemoteGroup {
    epoch: Epoch,
    plan: Plan,
    weights: WeightsId,
    considered: usize,
    /// In rank order.
    workers: Vec<Worker>,
    /// Where they go when the group is over.
    pool: Pool,
    /// Dropped with the group.
    over: watch::Sender<()>,
    /// Steps on the wire before those of whoever drives the group, and the sequence to release with the next.
    before: StepId,
    to_release: Option<SequenceId>,
    /// Sent and not answered, oldest first, as they are numbered on the wire.
    steps: VecDeque<StepId>,
    /// What came so far of the oldest, errors too: who waits for it may leave and come back at any time.
    answers: Vec<Option<Result<StepOutcome, GroupError>>>,
    /// Since when the oldest of them is the oldest.
    due_since: Instant,
    /// How long it may be.
    answers_within: Option<Duration>,
    /// When the first rank said that another had left it alone.
    alone_since: Option<Instant>,
    /// Of the last that was answered.
    rank_times: Vec<RankTime>,
}

impl RemoteGroup {
    pub(super) fn new(
        epoch: Epoch,
        (plan, weights): (Plan, WeightsId),
        considered: usize,
        workers: Vec<Worker>,
        pool: Pool,
    ) -> Self {
        let answers = workers.iter().map(|_| None).collect();
        let over = watch::Sender::new(());
        RemoteGroup {
            epoch,
            plan,
            weights,
            considered,
            rank_times: Vec::with_capacity(workers.len()),
            workers,
            pool,
            over,
            before: StepId(0),
            to_release: None,
            steps: VecDeque::new(),
            answers,
            due_since: Instant::now(),
            answers_within: None,
            alone_since: None,
        }
    }

    /// From now on steps are numbered anew, `before` being done, and the next one releases `sequence`.
    pub(super) fn begin_behind(&mut self, before: StepId, sequence: SequenceId) {
        (self.before, self.to_release) = (before, Some(sequence));
    }

    /// From now on a step that is the oldest for longer is lost, and whoever is silent with it; zero is without end.
    pub(super) fn answers_within(&mut self, timeout: Duration) {
        self.answers_within = Some(timeout).filter(|timeout| !timeout.is_zero());
    }

    /// When the oldest step should have been answered.
    fn overdue(&self) -> Option<Instant> {
        self.answers_within.map(|timeout| self.due_since + timeout)
    }

    /// A rank whose link is alive, and which does not answer.
    fn is_silent(&mut self, step: StepId) -> GroupError {
        let rank = self.silent().unwrap_or(Rank(0));
        let seconds = self.answers_within.unwrap_or_default().as_secs_f64();
        let mut name = String::new();
        if let Some(worker) = self.workers.get_mut(rank.index()) {
            worker.failed(false);
            worker.name().clone_into(&mut name);
        }
        let reason = format!(
            "{name} has not answered step {step} in {seconds} s, though its link is alive\n\
             hint: look at its log and its device; if steps may take so long, give --step-timeout more"
        );
        GroupError::Lost { rank, reason }
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Workers of its kind that there were to choose from.
    pub fn considered(&self) -> usize {
        self.considered
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Its workers, in rank order, as they would say Hello now.
    pub fn members(&self) -> Members {
        let held = |rank| Some(Held::of(self.weights, &self.plan, Rank(rank)));
        let hellos = self.workers.iter().zip(0..);
        let hellos = hellos.map(|(worker, rank)| Hello { held: held(rank), ..worker.hello.clone() });
        Members { weights: self.weights, hellos: hellos.collect() }
    }

    /// Whether that worker is there, as far as is known.
    pub(super) fn is_here(&self, rank: Rank) -> bool {
        self.workers.get(rank.index()).is_some_and(Worker::is_here)
    }

    /// The first whose answer to the oldest step is not here.
    pub(super) fn silent(&self) -> Option<Rank> {
        self.answers.iter().position(Option::is_none).map(|rank| Rank(rank as u16))
    }

    /// Counts against both, whoever of them is wrong.
    pub(super) fn disputed(&mut self, ranks: (Rank, Rank)) {
        for rank in [ranks.0, ranks.1] {
            self.workers.get_mut(rank.index()).into_iter().for_each(|worker| worker.failed(true));
        }
    }

    /// Of its workers, in rank order.
    pub fn names(&self) -> Vec<&str> {
        self.workers.iter().map(Worker::name).collect()
    }

    /// Resolves when a worker leaves, whether or not a step is in flight, or when the group is given up: then there is
    /// no error but that of whoever gave it up.
    pub fn loss(&self) -> impl Future<Output = Option<(GroupError, Option<String>)>> + Send + use<> {
        let ends = self.workers.iter().enumerate().map(|(rank, worker)| {
            let (rank, mut ended, name) = (Rank(rank as u16), worker.ended.clone(), worker.name().to_owned());
            let leaves = worker.leaves.clone();
            Box::pin(async move {
                let reason = match ended.wait_for(Option::is_some).await {
                    Ok(reason) => reason.clone().unwrap_or_default(),
                    // Its stream's task is gone without a word: nobody listens to it any more.
                    Err(_) => "it is no longer listened to".into(),
                };
                (Worker::gone(&leaves, rank, reason), Some(name))
            })
        });
        let first = futures::future::select_all(ends);
        let mut over = self.over.subscribe();
        async move {
            // A worker that is lost is often seen first by whoever then gives the group up: both are there at once, and
            // the name is what its supervisor waits for.
            tokio::select! {
                biased;
                (lost, ..) = first => Some(lost),
                _ = over.changed() => None,
            }
        }
    }
}

/// However a group ends, its workers are let go, and keep their weights.
impl Drop for RemoteGroup {
    fn drop(&mut self) {
        self.workers.drain(..).for_each(|worker| worker.go_home(self.epoch, self.pool.clone()));
    }
}

impl Group for RemoteGroup {
    fn stages(&self) -> usize {
        self.plan.stages.len()
    }

    fn send(&mut self, plan: &StepPlan) -> Result<(), GroupError> {
        let mut message = wire::StepPlan::from(plan);
        message.step += self.before.0;
        message.release.extend(self.to_release.take().map(|sequence| sequence.0));
        let step = StepId(message.step);
        for (rank, worker) in self.workers.iter().enumerate() {
            let message = Some(to_worker::Message::Step(message.clone()));
            let closed = |_| Worker::gone(&worker.leaves, Rank(rank as u16), "its link is closed".into());
            worker.hears.send(Ok(ToWorker { message })).map_err(closed)?;
        }
        if self.steps.is_empty() {
            self.due_since = Instant::now();
        }
        self.steps.push_back(step);
        Ok(())
    }

    async fn outcome(&mut self) -> Result<StepOutcome, GroupError> {
        let step = *self.steps.front().expect("a step was sent");
        let due = Due { epoch: self.epoch, step, before: self.before };
        let overdue = self.overdue();
        let mut faults = self.answers.iter().flatten().filter_map(|answer| answer.as_ref().err());
        let stranded = faults.next().cloned();
        if let Some(error) = stranded.as_ref().filter(|error| !matches!(error, GroupError::Stranded { .. })) {
            return Err(error.clone());
        }
        let ranks = self.workers.iter_mut().zip(&mut self.answers).enumerate();
        let lacking = ranks.filter(|(_, (_, answer))| answer.is_none());
        let answers = lacking.map(|(rank, (worker, answer))| async move {
            let came = outcome(Rank(rank as u16), due, worker).await;
            answer.insert(came).as_ref().map(|_| ()).map_err(GroupError::clone)
        });
        let all = all_or_fault(answers.collect(), stranded, &mut self.alone_since);
        let all = match overdue {
            Some(overdue) => timeout_at(overdue, all).await,
            None => Ok(all.await),
        };
        all.map_err(|_| self.is_silent(due.number(step)))??;
        self.steps.pop_front();
        self.due_since = Instant::now();
        let outcomes = self.answers.iter_mut().filter_map(Option::take).collect::<Result<Vec<_>, _>>()?;
        self.rank_times.clear();
        self.rank_times.extend(outcomes.iter().map(RankTime::from));
        join(&self.plan, outcomes)
    }

    fn rank_times(&self) -> &[RankTime] {
        &self.rank_times
    }

    fn acquit(&mut self) {
        self.workers.iter_mut().for_each(Worker::acquit);
    }
}

/// Once all have answered, or one has not. One that was left alone by another is not believed before that other has
/// had the time to say what it was, or the link to it to break. `stranded`: what such a one said before this was asked
/// again, at `alone_since`.
async fn all_or_fault(
    mut answers: FuturesUnordered<impl Future<Output = Result<(), GroupError>>>,
    mut stranded: Option<GroupError>,
    alone_since: &mut Option<Instant>,
) -> Result<(), GroupError> {
    loop {
        let answer = match (&stranded, *alone_since) {
            (Some(error), Some(since)) => {
                timeout_at(since + FAULT_WAIT, answers.next()).await.map_err(|_| error.clone())?
            }
            _ => answers.next().await,
        };
        match answer {
            None => return stranded.map_or(Ok(()), Err),
            Some(Ok(())) => {}
            Some(Err(error @ GroupError::Stranded { .. })) => {
                alone_since.get_or_insert_with(Instant::now);
                stranded.get_or_insert(error);
            }
            Some(Err(error)) => return Err(error),
        }
    }
}

/// The answer that comes next, by its number on the wire, and the steps there that are nobody's who drives the group.
#[derive(Clone, Copy)]
struct Due {
    epoch: Epoch,
    step: StepId,
    before: StepId,
}

impl Due {
    /// As whoever drives the group numbers a step.
    fn number(self, step: StepId) -> StepId {
        StepId(step.0.saturating_sub(self.before.0))
    }
}

/// Of that step and no other, whatever else is under way.
async fn outcome(rank: Rank, due: Due, worker: &mut Worker) -> Result<StepOutcome, GroupError> {
    let step = due.number(due.step);
    let lost = |reason: String| GroupError::Lost { rank, reason };
    match worker.says.recv().await {
        Some(Ok(from_worker::Message::Outcome(outcome))) => {
            let outcome = StepOutcome::try_from(outcome).map_err(|error| lost(error.to_string()))?;
            if (outcome.epoch, outcome.step) != (due.epoch, due.step) {
                let (of, other, epoch) = (outcome.epoch, due.number(outcome.step), due.epoch);
                return Err(lost(format!(
                    "it answered step {other} of epoch {of}, where step {step} of epoch {epoch} is due"
                )));
            }
            // One step that is as short as can be takes nothing back of what went wrong in others.
            if due.before != StepId(0) {
                worker.did_well();
            }
            Ok(StepOutcome { step, ..outcome })
        }
        Some(Ok(from_worker::Message::Failed(failed))) => {
            worker.failed(failed.blames_another);
            let reason = failed.reason;
            Err(match failed.blames_another {
                true => GroupError::Stranded { rank, step, reason },
                false => GroupError::Refused { rank, step, reason },
            })
        }
        Some(Ok(_)) => Err(lost("it answered a step with something else than its outcome".into())),
        Some(Err(reason)) => Err(Worker::gone(&worker.leaves, rank, reason)),
        None => Err(lost("it is gone".into())),
    }
}
