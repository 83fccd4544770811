//! From waiting workers to a group that can step: plan, assign, load, ready.

use super::assign::Parts;
use super::gather::{After, Gathered, gather};
use super::holders::{Holding, Sent};
use super::meeting::Meeting;
use super::planning::{Planning, warn_of_shares};
use super::remote::RemoteGroup;
use super::service::Fleet;
use super::stall::Pace;
use super::worker::Worker;
use crate::board::Board;
use crate::group::GroupError;
use flotilla_engine::weights::{Synthetic, WeightError, WeightSource};
use flotilla_proto::WireError;
use flotilla_proto::wire::{from_worker, to_worker};
use flotilla_shared::{
    ByPlace, Demand, Epoch, Inventory, KvBlocks, LinkChoice, Loading, ModelSpec, Plan, PlanError, Rank,
    Reach, TokenId, WeightsId, WireFormat,
};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::watch;
use tracing::{info, warn};

/// Where a group's weights come from.
#[derive(Clone)]
pub enum Weights {
    /// Streamed to the workers from here.
    Stream(Arc<dyn WeightSource>),
    /// Made by each worker.
    Synthetic { seed: u64 },
}

impl Weights {
    /// Which weights they are; asks the source, which may read a little of every tensor.
    pub(super) async fn identity(&self, spec: &ModelSpec) -> Result<WeightsId, WeightError> {
        let source = match self {
            Weights::Stream(source) => source.clone(),
            Weights::Synthetic { seed } => return Synthetic::new(spec.clone(), *seed).identity(),
        };
        let asked = tokio::task::spawn_blocking(move || source.identity()).await;
        asked.expect("a source does not panic")
    }
}

/// What group is wanted.
#[derive(Clone)]
pub struct Formation {
    pub spec: ModelSpec,
    pub weights: Weights,
    /// Workers to choose from; all of them are ranks, unless a plan leaves some out.
    pub ranks: usize,
    pub planning: Planning,
    /// How the model is cut over just so many workers; as `planning` says over others, or if absent.
    pub plan: Option<Plan>,
    /// Blocks of KV cache, over all sequences.
    pub kv_blocks: KvBlocks,
    pub step_tokens_max: usize,
    /// Rows of one step at most of which there are logits.
    pub logit_rows_max: usize,
    /// Ids that may be sampled, rising.
    pub sampleable: Vec<Range<TokenId>>,
    /// How the workers reach each other, and what travels between hosts.
    pub links: LinkChoice,
    pub wire: WireFormat,
    /// After a loss, so long a worker that is started again is waited for before fewer will do.
    pub regroup_grace: Duration,
    /// Where no group was lost, but some that wait have these weights, of a coordinator before this one: so long the others are
    /// waited for before fewer will do; without end, if absent.
    pub return_grace: Option<Duration>,
    /// So long a step may be the oldest that is not answered; zero is without end.
    pub step_timeout: Duration,
    /// Where the group is shown.
    pub board: Board,
}

/// How far a group is, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Waiting {
        joined: usize,
        wanted: usize,
    },
    /// By rank.
    Loading(Vec<Loading>),
    /// All is loaded and linked; one step is carried out before any other.
    FirstStep,
    Ready,
}

/// Why no group came to be.
#[derive(Debug, Error)]
pub enum FormError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("the model cannot be read: {0}")]
    Weights(#[from] WeightError),
    #[error("rank {rank} ({name}): {reason}")]
    Worker { rank: Rank, name: String, reason: String, failure: FormFailure },
    #[error(
        "the driver of a replica ended by a fault of its own\nhint: its last words are above; start the coordinator again, workers keep their weights"
    )]
    DriverGone,
}

/// Why a group has to be formed once more, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FormFailure {
    WorkerGone,
    WorkerFailed,
    /// In the step that a group carries out before it serves.
    RanksDisagree,
}

impl FormFailure {
    pub const ALL: [FormFailure; 3] =
        [FormFailure::WorkerGone, FormFailure::WorkerFailed, FormFailure::RanksDisagree];

    pub fn as_str(self) -> &'static str {
        match self {
            FormFailure::WorkerGone => "worker_gone",
            FormFailure::WorkerFailed => "worker_failed",
            FormFailure::RanksDisagree => "ranks_disagree",
        }
    }
}

impl Formation {
    pub fn demand(&self) -> Demand {
        Demand {
            kv_blocks: self.kv_blocks,
            step_tokens_max: self.step_tokens_max,
            logit_rows_max: self.logit_rows_max,
        }
    }
}

impl Fleet {
    /// Waits for enough workers, cuts the model over them, and returns once all are ready to step.
    pub async fn form(
        &self,
        epoch: Epoch,
        formation: &Formation,
        after: After<'_>,
        progress: &watch::Sender<Progress>,
    ) -> Result<RemoteGroup, FormError> {
        let weights_id = formation.weights.identity(&formation.spec).await?;
        let Gathered { mut workers, plan, left_out, whole_values_max, considered } =
            gather(&self.pool, epoch, formation, weights_id, after, progress).await?;
        let inventories: Vec<Inventory> =
            workers.iter().map(|worker| worker.hello.inventory.clone()).collect();
        warn_of_shares(&plan, &inventories);
        formation.board.planned(epoch, &formation.spec, &plan, &inventories, formation.demand());
        formation.board.left_out(left_out);
        self.serve_weights(epoch, &formation.weights);
        let parts = Parts::new(epoch, formation, weights_id, &plan, &workers, whole_values_max);
        let ranked = (0..).map(Rank).zip(&workers);
        let sent = self.send_out(formation, weights_id, &plan, ranked.clone());
        // One that is gone is noticed while it should load.
        for ((rank, worker), sent) in ranked.zip(sent) {
            let assignment = parts.assignment(rank, sent);
            worker.tell(to_worker::Message::Assignment((&assignment).into()));
        }
        let reached = self.load(epoch, &mut workers, &plan, progress).await;
        let reached = match reached {
            Ok(reached) => reached,
            Err(error) => {
                self.pool.rests().failed(workers.iter().map(Worker::name));
                // Before the weights are closed: nobody is to blame for asking when they are.
                workers.into_iter().for_each(|worker| worker.go_home(epoch, self.pool.clone()));
                self.close_weights(epoch);
                return Err(error);
            }
        };
        self.close_weights(epoch);
        say_how_linked(&workers, &reached);
        formation.board.linked(&reached);
        // Whoever shows progress may have missed the last of it.
        if let Progress::Loading(ranks) = &*progress.borrow() {
            formation.board.loading(ranks);
        }
        progress.send_replace(Progress::FirstStep);
        let mut group = RemoteGroup::new(epoch, (plan, weights_id), considered, workers, self.pool.clone());
        let token = formation.sampleable.first().map_or(0, |ids| ids.start);
        if let Err(error) = group.try_out(token).await {
            self.pool.rests().failed(group.names().into_iter());
            return Err(not_tried_out(&mut group, error));
        }
        self.pool.rests().stand(group.names().into_iter());
        group.answers_within(formation.step_timeout);
        progress.send_replace(Progress::Ready);
        Ok(group)
    }

    /// Of ranks of `plan`, whom each asks before this process: nobody, if it makes its weights.
    pub(super) fn send_out<'a>(
        &self,
        formation: &Formation,
        weights_id: WeightsId,
        plan: &Plan,
        ranked: impl Iterator<Item = (Rank, &'a Worker)>,
    ) -> Vec<Sent> {
        let ranked: Vec<(Rank, &Holding)> = ranked.map(|(rank, worker)| (rank, &*worker.holding)).collect();
        match formation.weights {
            Weights::Stream(_) => self.pool.holders().send_out(&formation.spec, weights_id, plan, &ranked),
            Weights::Synthetic { .. } => vec![Sent::default(); ranked.len()],
        }
    }

    /// Until every rank says Ready; says how each reaches the others.
    async fn load(
        &self,
        epoch: Epoch,
        workers: &mut [Worker],
        plan: &Plan,
        progress: &watch::Sender<Progress>,
    ) -> Result<Vec<Reach>, FormError> {
        progress.send_replace(Progress::Loading(vec![Loading::default(); workers.len()]));
        let (pace, meeting) = (&Pace::of(workers.len()), &Meeting::of(epoch, workers));
        let waits = workers.iter_mut().zip(plan.ranks()).map(|(worker, share)| async move {
            let (name, rank) = (worker.name().to_owned(), share.rank);
            let mut before = ByPlace::default();
            let report = |loading: Loading| {
                self.hear_of_weights(loading.by_place, std::mem::replace(&mut before, loading.by_place));
                pace.hear(rank.index(), loading);
                progress.send_modify(|progress| {
                    if let Progress::Loading(ranks) = progress {
                        ranks[rank.index()] = loading;
                    }
                });
            };
            let ready = async {
                until_loaded(epoch, worker, report).await?;
                pace.loaded(rank.index());
                meeting.has_its_weights();
                until_ready(epoch, worker, |_| {}).await.inspect(|_| pace.ready(rank.index()))
            };
            let result = ready.await;
            let failure = fault(worker.is_here());
            result.map_err(|reason| FormError::Worker { rank, name, reason, failure })
        });
        let result = tokio::select! {
            result = futures::future::try_join_all(waits) => result,
            (rank, reason) = pace.stall() => Err(stands_still(rank, reason, &mut workers[rank])),
        };
        if let Err(error) = &result {
            warn!(%error, "group could not form");
        }
        result
    }
}

/// A group whose first step failed; its workers go home.
fn not_tried_out(group: &mut RemoteGroup, error: GroupError) -> FormError {
    let (rank, failure) = match &error {
        GroupError::Lost { rank, .. }
        | GroupError::Left { rank, .. }
        | GroupError::Refused { rank, .. }
        | GroupError::Stranded { rank, .. } => (*rank, fault(group.is_here(*rank))),
        GroupError::Disagree { ranks, .. } => {
            group.disputed(*ranks);
            (ranks.1, FormFailure::RanksDisagree)
        }
        GroupError::Abandoned(_) | GroupError::Outgrown | GroupError::Dissolved => {
            (Rank(0), FormFailure::WorkerFailed)
        }
    };
    let name = group.names().get(rank.index()).copied().unwrap_or_default().to_owned();
    let reason = format!("the group's first step failed: {error}");
    warn!(%rank, name, reason, "group could not form");
    FormError::Worker { rank, name, reason, failure }
}

/// Counts against the worker: its next load might stand still as well.
fn stands_still(rank: usize, reason: String, worker: &mut Worker) -> FormError {
    worker.failed(false);
    let (rank, name, failure) = (Rank(rank as u16), worker.name().to_owned(), FormFailure::WorkerFailed);
    FormError::Worker { rank, name, reason, failure }
}

fn fault(is_here: bool) -> FormFailure {
    if is_here { FormFailure::WorkerFailed } else { FormFailure::WorkerGone }
}

/// Until it says Ready; `report` is told how far it is.
pub(super) async fn until_ready(
    epoch: Epoch,
    worker: &mut Worker,
    mut report: impl FnMut(Loading),
) -> Result<Reach, String> {
    loop {
        match hear(worker).await? {
            from_worker::Message::Loading(loading) => report(loading.into()),
            from_worker::Message::Ready(ready) if ready.epoch == epoch.0 => {
                worker.holding.loaded();
                return ready.try_into().map_err(|error: WireError| error.to_string());
            }
            _ => return Err("it sent something else than Loading or Ready".into()),
        }
    }
}

/// Until it says Loaded; `report` is told how far it is.
async fn until_loaded(
    epoch: Epoch,
    worker: &mut Worker,
    mut report: impl FnMut(Loading),
) -> Result<(), String> {
    loop {
        match hear(worker).await? {
            from_worker::Message::Loading(loading) => report(loading.into()),
            from_worker::Message::Loaded(loaded) if loaded.epoch == epoch.0 => {
                worker.holding.loaded();
                return Ok(());
            }
            _ => return Err("it sent something else than Loading or Loaded".into()),
        }
    }
}

/// What it says next; why it says nothing that leads on.
async fn hear(worker: &mut Worker) -> Result<from_worker::Message, String> {
    match worker.says.recv().await {
        Some(Ok(from_worker::Message::Failed(failed))) => {
            worker.failed(failed.blames_another);
            Err(failed.reason)
        }
        Some(said) => said,
        None => Err("it is gone".into()),
    }
}

fn say_how_linked(workers: &[Worker], reached: &[Reach]) {
    for (worker, reach) in workers.iter().zip(reached) {
        let (name, shm) = (&worker.hello.inventory.name, reach.by_memory.len());
        match &reach.not_shared {
            Some(reason) => warn!(name, reason, "a worker shares no memory with the others of its host"),
            None => info!(name, shm, tcp = reached.len() - 1 - shm, "linked"),
        }
    }
}
