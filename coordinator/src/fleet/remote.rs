//! A formed group: one step out to every rank, every rank's outcome back, compared and put together.

use super::service::Worker;
use crate::group::{Group, GroupError};
use flotilla_proto::wire::{ToWorker, from_worker, to_worker};
use flotilla_shared::{Plan, Rank, StepId, StepOutcome, StepPlan};
use std::future::Future;

/// Workers that hold one copy of the model together.
#[derive(Debug)]
pub struct RemoteGroup {
    plan: Plan,
    /// In rank order.
    workers: Vec<Worker>,
}

impl RemoteGroup {
    pub(super) fn new(plan: Plan, workers: Vec<Worker>) -> Self {
        RemoteGroup { plan, workers }
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Resolves when a worker leaves, whether or not a step is in flight.
    pub fn loss(&self) -> impl Future<Output = GroupError> + Send + use<> {
        let ends = self.workers.iter().enumerate().map(|(rank, worker)| {
            let (rank, mut ended) = (Rank(rank as u16), worker.ended.clone());
            Box::pin(async move {
                let reason = match ended.wait_for(Option::is_some).await {
                    Ok(reason) => reason.clone().unwrap_or_default(),
                    // Its stream's task is gone without a word: nobody listens to it any more.
                    Err(_) => "it is no longer listened to".into(),
                };
                GroupError::Lost { rank, reason }
            })
        });
        let first = futures::future::select_all(ends);
        async move { first.await.0 }
    }
}

impl Group for RemoteGroup {
    async fn step(&mut self, plan: StepPlan) -> Result<StepOutcome, GroupError> {
        let step = plan.step;
        for (rank, worker) in self.workers.iter().enumerate() {
            let message = Some(to_worker::Message::Step((&plan).into()));
            worker.hears.send(Ok(ToWorker { message })).map_err(|_| GroupError::Lost {
                rank: Rank(rank as u16),
                reason: "its link is closed".into(),
            })?;
        }
        let answers = self
            .workers
            .iter_mut()
            .enumerate()
            .map(|(rank, worker)| outcome(Rank(rank as u16), step, worker));
        let outcomes = futures::future::try_join_all(answers).await?;
        join(outcomes)
    }
}

async fn outcome(rank: Rank, step: StepId, worker: &mut Worker) -> Result<StepOutcome, GroupError> {
    let lost = |reason: String| GroupError::Lost { rank, reason };
    match worker.says.recv().await {
        Some(Ok(from_worker::Message::Outcome(outcome))) => {
            StepOutcome::try_from(outcome).map_err(|error| lost(error.to_string()))
        }
        Some(Ok(from_worker::Message::Failed(failed))) => {
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
