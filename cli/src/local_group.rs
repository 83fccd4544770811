//! A group whose ranks are threads of this process, with the same executor that a worker process has.

use anyhow::{Context, Result};
use flotilla_coordinator::fleet::join;
use flotilla_coordinator::group::{Group, GroupError};
use flotilla_engine::backend::Backend;
use flotilla_engine::backend::cuda::CudaWeights;
use flotilla_engine::collective::threads::{self, ThreadsCollective};
use flotilla_engine::collective::{AllReduce, Collective};
use flotilla_engine::weights::{RankWeights, WeightSink, WeightSource};
use flotilla_shared::{Assignment, Plan, Rank, StepId, StepOutcome, StepPlan};
use flotilla_worker::device::{Device, on_card, on_cpu};
use flotilla_worker::{Executor, StepError};
use std::collections::VecDeque;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

enum Job {
    Step(StepPlan, oneshot::Sender<Result<StepOutcome, StepError>>),
    /// Reads the weights, and says how many bytes they are.
    Read(oneshot::Sender<u64>),
}

/// Dropping it ends the threads, and waits for them: what they have of a card is let go of before the process ends,
/// and the driver with it.
pub struct LocalGroup {
    plan: Plan,
    ranks: Vec<mpsc::UnboundedSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    /// Of each step in flight, the oldest first, what each rank will say.
    in_flight: VecDeque<(StepId, Vec<Answer>)>,
}

/// Of one rank to one step. What has come is kept: who waits may stop, and ask again.
struct Answer {
    coming: oneshot::Receiver<Result<StepOutcome, StepError>>,
    outcome: Option<StepOutcome>,
}

/// The longest that one sum may wait for another rank.
const DEADLINE: Duration = Duration::from_secs(60);

impl LocalGroup {
    /// Loads every rank from `source`; `assignment` is rank 0's, the others differ in their rank only.
    pub fn start(source: &dyn WeightSource, assignment: &Assignment, devices: Vec<Device>) -> Result<Self> {
        let plan = assignment.plan.clone();
        let links = threads::stages(&plan.stage_sizes());
        let (built, on_built) = std::sync::mpsc::channel();
        let (mut ranks, mut rank_threads) = (Vec::new(), Vec::new());
        for (rank, (link, device)) in links.into_iter().zip(devices).enumerate() {
            let assignment = Assignment { rank: Rank(rank as u16), ..assignment.clone() };
            let (jobs, inbox) = mpsc::unbounded_channel();
            let body = loaded(source, assignment, device, link)?;
            let built = built.clone();
            let body = move || body(inbox, &|outcome| drop(built.send(outcome)));
            rank_threads.push(std::thread::Builder::new().name(format!("rank-{rank}")).spawn(body)?);
            ranks.push(jobs);
        }
        // A rank that panics says nothing.
        drop(built);
        for _ in &ranks {
            on_built.recv()??;
        }
        Ok(LocalGroup { plan, ranks, threads: rank_threads, in_flight: VecDeque::new() })
    }

    /// Bytes a second of one pass over the weights where they lie, by all ranks at once; none where a backend has no way to.
    pub async fn read_rate(&self) -> Result<Option<f64>> {
        let start = Instant::now();
        let read = self.ranks.iter().map(|jobs| {
            let (answer, on_answer) = oneshot::channel();
            jobs.send(Job::Read(answer)).map(|()| on_answer)
        });
        let read = read.collect::<Result<Vec<_>, _>>().ok().context("a rank's thread is gone")?;
        let bytes: u64 = futures::future::try_join_all(read).await?.into_iter().sum();
        Ok((bytes > 0).then(|| bytes as f64 / start.elapsed().as_secs_f64()))
    }
}

impl Drop for LocalGroup {
    fn drop(&mut self) {
        self.ranks.clear();
        // Who panicked has said so.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// A rank with its weights, to be built on its own thread: cards agree with each other while they are.
type Body = Box<dyn FnOnce(mpsc::UnboundedReceiver<Job>, &dyn Fn(Result<()>)) + Send>;

fn loaded(
    source: &dyn WeightSource,
    assignment: Assignment,
    device: Device,
    link: ThreadsCollective,
) -> Result<Body> {
    match device {
        Device::Cpu(cpu) => {
            let mut weights = RankWeights::new(&assignment.spec, &assignment.plan, assignment.rank)?;
            weights.load_from(source, &mut |_, _| {})?;
            Ok(Box::new(move |inbox, built| {
                built(Ok(()));
                run(on_cpu(&cpu, &assignment, weights, link), inbox);
            }))
        }
        Device::Card(card) => {
            let slices = assignment.plan.slices(&assignment.spec, assignment.rank);
            let mut weights = CudaWeights::new(&card.card, slices)?;
            weights.load_from(source, &mut |_, _| {})?;
            Ok(Box::new(move |inbox, built| match on_card(&card, &assignment, weights, link, DEADLINE) {
                Ok(executor) => {
                    built(Ok(()));
                    run(executor, inbox);
                }
                Err(error) => built(Err(error.into())),
            }))
        }
    }
}

fn run<B, C>(mut executor: Executor<B, C>, mut inbox: mpsc::UnboundedReceiver<Job>)
where
    B: Backend,
    C: Collective + AllReduce<B::Activations>,
{
    // Who no longer waits for an answer needs none.
    while let Some(job) = inbox.blocking_recv() {
        match job {
            Job::Step(plan, answer) => drop(answer.send(executor.execute(&plan))),
            Job::Read(answer) => drop(answer.send(executor.backend().read_weights())),
        }
    }
}

impl Group for LocalGroup {
    fn stages(&self) -> usize {
        self.plan.stages.len()
    }

    fn send(&mut self, plan: &StepPlan) -> Result<(), GroupError> {
        let mut answers = Vec::with_capacity(self.ranks.len());
        for (rank, jobs) in self.ranks.iter().enumerate() {
            let (answer, on_answer) = oneshot::channel();
            let gone = |_| GroupError::Lost { rank: Rank(rank as u16), reason: "its thread is gone".into() };
            jobs.send(Job::Step(plan.clone(), answer)).map_err(gone)?;
            answers.push(Answer { coming: on_answer, outcome: None });
        }
        self.in_flight.push_back((plan.step, answers));
        Ok(())
    }

    async fn outcome(&mut self) -> Result<StepOutcome, GroupError> {
        let (step, answers) = self.in_flight.front_mut().expect("a step was sent");
        let step = *step;
        let ranks = answers.iter_mut().enumerate().filter(|(_, answer)| answer.outcome.is_none());
        let lacking = ranks.map(|(rank, answer)| async move {
            let rank = Rank(rank as u16);
            let died = |_| GroupError::Lost { rank, reason: "its thread died in the step".into() };
            let outcome = (&mut answer.coming).await.map_err(died)?;
            let refused = |error: StepError| GroupError::Refused { rank, step, reason: error.to_string() };
            answer.outcome = Some(outcome.map_err(refused)?);
            Ok(())
        });
        futures::future::try_join_all(lacking.collect::<Vec<_>>()).await?;
        let (_, answers) = self.in_flight.pop_front().expect("it is still there");
        join(&self.plan, answers.into_iter().filter_map(|answer| answer.outcome).collect())
    }
}
