//! The one OS thread that owns the engine. The async side hands it a step and awaits the answer.

use crate::executor::{Executor, StepError};
use flotilla_engine::backend::Backend;
use flotilla_engine::collective::{AllReduce, Collective};
use flotilla_shared::{StepOutcome, StepPlan};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

type Job = (StepPlan, oneshot::Sender<Result<StepOutcome, StepError>>);

/// Handle to the thread; dropping it ends the thread after its step.
#[derive(Debug)]
pub struct EngineThread {
    jobs: mpsc::UnboundedSender<Job>,
}

impl EngineThread {
    /// Starts the thread, builds the executor on it, and returns once that is done.
    ///
    /// `build` may block: it loads pages, and forms the collective with the other ranks.
    pub async fn start<B, C, E>(
        build: impl FnOnce() -> Result<Executor<B, C>, E> + Send + 'static,
    ) -> Result<EngineThread, E>
    where
        B: Backend + 'static,
        C: Collective + AllReduce<B::Activations> + 'static,
        E: Send + 'static,
    {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let (built, on_built) = oneshot::channel();
        let body = move || match build() {
            Ok(executor) => {
                // The receiver is gone only when the worker is going.
                let _ = built.send(Ok(()));
                execute_all(executor, inbox);
            }
            Err(error) => drop(built.send(Err(error))),
        };
        std::thread::Builder::new().name("engine".into()).spawn(body).expect("the system gives a thread");
        on_built.await.expect("the engine thread answers before it ends")?;
        Ok(EngineThread { jobs })
    }

    /// Runs one step; `None` when the engine thread is gone.
    pub async fn step(&self, plan: StepPlan) -> Option<Result<StepOutcome, StepError>> {
        let (answer, on_answer) = oneshot::channel();
        self.jobs.send((plan, answer)).ok()?;
        on_answer.await.ok()
    }
}

fn execute_all<B, C>(mut executor: Executor<B, C>, mut inbox: mpsc::UnboundedReceiver<Job>)
where
    B: Backend,
    C: Collective + AllReduce<B::Activations>,
{
    while let Some((plan, answer)) = inbox.blocking_recv() {
        let start = Instant::now();
        let outcome = executor
            .execute(&plan)
            .map(|outcome| StepOutcome { compute_us: start.elapsed().as_micros() as u64, ..outcome });
        let _ = answer.send(outcome);
    }
}
