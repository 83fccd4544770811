//! A formed group: steps out to every rank, every rank's outcomes back, compared and put together.

use super::pool::Pool;
use super::worker::Worker;
use crate::group::{Group, GroupError};
use flotilla_proto::wire::{self, ToWorker, from_worker, to_worker};
use flotilla_shared::{Epoch, Plan, Rank, StepId, StepOutcome, StepPlan};
use std::collections::VecDeque;
use std::future::Future;
use tokio::sync::watch;

/// Workers that hold one copy of the model together.
pub struct RemoteGroup {
    epoch: Epoch,
    plan: Plan,
    /// In rank order.
    workers: Vec<Worker>,
    /// Where they go when the group is over.
    pool: Pool,
    /// Dropped with the group.
    over: watch::Sender<()>,
    /// Sent and not answered, oldest first.
    steps: VecDeque<StepId>,
    /// What came so far of the oldest.
    answers: Vec<Option<StepOutcome>>,
}

impl RemoteGroup {
    pub(super) fn new(epoch: Epoch, plan: Plan, workers: Vec<Worker>, pool: Pool) -> Self {
        let answers = workers.iter().map(|_| None).collect();
        let over = watch::Sender::new(());
        RemoteGroup { epoch, plan, workers, pool, over, steps: VecDeque::new(), answers }
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Of its workers, in rank order.
    pub fn names(&self) -> Vec<&str> {
        self.workers.iter().map(Worker::name).collect()
    }

    /// Resolves when a worker leaves, whether or not a step is in flight, or when the group is given up: then there is
    /// no error but that of whoever gave it up.
    pub fn loss(&self) -> impl Future<Output = Option<(GroupError, String)>> + Send + use<> {
        let ends = self.workers.iter().enumerate().map(|(rank, worker)| {
            let (rank, mut ended, name) = (Rank(rank as u16), worker.ended.clone(), worker.name().to_owned());
            Box::pin(async move {
                let reason = match ended.wait_for(Option::is_some).await {
                    Ok(reason) => reason.clone().unwrap_or_default(),
                    // Its stream's task is gone without a word: nobody listens to it any more.
                    Err(_) => "it is no longer listened to".into(),
                };
                (GroupError::Lost { rank, reason }, name)
            })
        });
        let first = futures::future::select_all(ends);
        let mut over = self.over.subscribe();
        async move {
            tokio::select! {
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
    fn send(&mut self, plan: &StepPlan) -> Result<(), GroupError> {
        let message = wire::StepPlan::from(plan);
        for (rank, worker) in self.workers.iter().enumerate() {
            let message = Some(to_worker::Message::Step(message.clone()));
            worker.hears.send(Ok(ToWorker { message })).map_err(|_| GroupError::Lost {
                rank: Rank(rank as u16),
                reason: "its link is closed".into(),
            })?;
        }
        self.steps.push_back(plan.step);
        Ok(())
    }

    async fn outcome(&mut self) -> Result<StepOutcome, GroupError> {
        let step = *self.steps.front().expect("a step was sent");
        let ranks = self.workers.iter_mut().zip(&mut self.answers).enumerate();
        let lacking = ranks.filter(|(_, (_, answer))| answer.is_none());
        let answers = lacking.map(|(rank, (worker, answer))| async move {
            *answer = Some(outcome(Rank(rank as u16), step, worker).await?);
            Ok(())
        });
        futures::future::try_join_all(answers).await?;
        self.steps.pop_front();
        join(self.answers.iter_mut().filter_map(Option::take).collect())
    }
}

async fn outcome(rank: Rank, step: StepId, worker: &mut Worker) -> Result<StepOutcome, GroupError> {
    let lost = |reason: String| GroupError::Lost { rank, reason };
    match worker.says.recv().await {
        Some(Ok(from_worker::Message::Outcome(outcome))) => {
            worker.failures = 0;
            StepOutcome::try_from(outcome).map_err(|error| lost(error.to_string()))
        }
        Some(Ok(from_worker::Message::Failed(failed))) => {
            worker.failures += u32::from(!failed.blames_another);
            Err(GroupError::Refused { rank, step, reason: failed.reason })
        }
        Some(Ok(_)) => Err(lost("it answered a step with something else than its outcome".into())),
        Some(Err(reason)) => Err(lost(reason)),
        None => Err(lost("it is gone".into())),
    }
}

/// One outcome of all: the tokens, on which every rank must agree; each captured row's logits put
/// together in rank order, which is the order of the vocabulary; the slowest rank's time.
pub fn join(outcomes: Vec<StepOutcome>) -> Result<StepOutcome, GroupError> {
    let mut ranks = outcomes.into_iter().enumerate();
    let (_, mut joined) = ranks.next().expect("a group has a rank");
    for (rank, outcome) in ranks {
        let same_rows = outcome.captured.len() == joined.captured.len()
            && outcome.captured.iter().zip(&joined.captured).all(|(row, first)| row.experts == first.experts);
        let difference = if (outcome.epoch, outcome.step) != (joined.epoch, joined.step) {
            format!("step {} of epoch {} was answered", outcome.step, outcome.epoch)
        } else if outcome.sampled != joined.sampled {
            format!("{:?} against {:?}", outcome.sampled, joined.sampled)
        } else if !same_rows {
            "captured rows were routed differently".into()
        } else {
            for (row, first) in outcome.captured.into_iter().zip(&mut joined.captured) {
                first.logits.extend(row.logits);
            }
            joined.compute_us = joined.compute_us.max(outcome.compute_us);
            continue;
        };
        return Err(GroupError::Disagree {
            step: joined.step,
            ranks: (Rank(0), Rank(rank as u16)),
            difference,
        });
    }
    Ok(joined)
}
