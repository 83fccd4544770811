//! A group whose ranks are threads of this process, with the same executor that a worker process has.

use anyhow::Result;
use flotilla_coordinator::fleet::join;
use flotilla_coordinator::group::{Group, GroupError};
use flotilla_engine::backend::cpu::{CpuBackend, CpuSettings};
use flotilla_engine::collective::threads::{self, ThreadsCollective};
use flotilla_engine::weights::{RankWeights, WeightSink, WeightSource};
use flotilla_shared::{Assignment, Rank, StepOutcome, StepPlan};
use flotilla_worker::{Executor, StepError};
use tokio::sync::{mpsc, oneshot};

type Job = (StepPlan, oneshot::Sender<Result<StepOutcome, StepError>>);

/// Dropping it ends the threads.
pub struct LocalGroup {
    ranks: Vec<mpsc::UnboundedSender<Job>>,
}

impl LocalGroup {
    /// Loads every rank from `source`; `assignment` is rank 0's, the others differ in their rank only.
    pub fn start(source: &dyn WeightSource, assignment: &Assignment, cpu: &CpuSettings) -> Result<Self> {
        let collectives = threads::group(assignment.plan.rank_count());
        let mut ranks = Vec::new();
        for (rank, collective) in collectives.into_iter().enumerate() {
            let assignment = Assignment { rank: Rank(rank as u16), ..assignment.clone() };
            let mut weights = RankWeights::new(&assignment.spec, &assignment.plan, assignment.rank)?;
            weights.load_from(source, &mut |_, _| {})?;
            let backend = CpuBackend::new(cpu, &assignment, weights);
            let executor = Executor::new(&assignment, backend, collective);
            let (jobs, inbox) = mpsc::unbounded_channel();
            std::thread::Builder::new().name(format!("rank-{rank}")).spawn(move || run(executor, inbox))?;
            ranks.push(jobs);
        }
        Ok(LocalGroup { ranks })
    }
}

fn run(mut executor: Executor<CpuBackend, ThreadsCollective>, mut inbox: mpsc::UnboundedReceiver<Job>) {
    while let Some((plan, answer)) = inbox.blocking_recv() {
        let _ = answer.send(executor.execute(&plan));
    }
}

impl Group for LocalGroup {
    async fn step(&mut self, plan: StepPlan) -> Result<StepOutcome, GroupError> {
        let step = plan.step;
        let answers = self.ranks.iter().enumerate().map(|(rank, jobs)| {
            let rank = Rank(rank as u16);
            let (answer, on_answer) = oneshot::channel();
            let sent = jobs.send((plan.clone(), answer));
            async move {
                let lost = |reason: &str| GroupError::Lost { rank, reason: reason.into() };
                sent.map_err(|_| lost("its thread is gone"))?;
                let outcome = on_answer.await.map_err(|_| lost("its thread died in the step"))?;
                outcome.map_err(|error| GroupError::Refused { rank, step, reason: error.to_string() })
            }
        });
        join(futures::future::try_join_all(answers.collect::<Vec<_>>()).await?)
    }
}
