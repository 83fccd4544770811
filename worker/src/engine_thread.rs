//! The one OS thread that owns the engine. The async side hands it steps and hears their outcomes, in the
//! same order; while it runs one, the next may lie there already. When it ends, what is kept comes back.

use crate::error::WorkerError;
use crate::executor::{Executor, StepError};
use crate::memory::Meter;
use crate::stock::{Leaves, OnDevice};
use flotilla_engine::backend::Backend;
use flotilla_engine::collective::{AllReduce, Collective};
use flotilla_shared::{StepOutcome, StepPlan};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

type Outcome = Result<StepOutcome, StepError>;

/// Handle to the thread; dropping it ends the thread after its step.
pub struct EngineThread {
    steps: mpsc::UnboundedSender<StepPlan>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
    left: oneshot::Receiver<Option<OnDevice>>,
}

/// Why an engine was not built, and the weights that it would have had, if they are as good as before.
pub type NotBuilt = (WorkerError, Option<Box<OnDevice>>);

impl EngineThread {
    /// Starts the thread, builds the executor on it, and returns once that is done.
    ///
    /// `build` may block: it loads pages, and forms the collective with the other ranks. If it panics, as where there is no
    /// memory, the worker lives on and says so.
    pub async fn start<B, C>(
        build: impl FnOnce() -> Result<Executor<B, C>, NotBuilt> + Send + 'static,
    ) -> Result<EngineThread, NotBuilt>
    where
        B: Backend + Leaves + 'static,
        C: Collective + AllReduce<B::Activations> + 'static,
    {
        let (steps, inbox) = mpsc::unbounded_channel();
        let (outbox, outcomes) = mpsc::unbounded_channel();
        let (built, on_built) = oneshot::channel();
        let (leave, left) = oneshot::channel();
        let body = move || match build() {
            Ok(executor) => {
                // The receiver is gone only when the worker is going.
                let _ = built.send(Ok(()));
                let backend = execute_all(executor, inbox, &outbox);
                drop(outbox);
                let _ = leave.send(backend.leave());
            }
            Err(error) => drop(built.send(Err(error))),
        };
        std::thread::Builder::new().name("engine".into()).spawn(body).expect("the system gives a thread");
        on_built.await.unwrap_or(Err((WorkerError::EngineGone, None)))?;
        Ok(EngineThread { steps, outcomes, left })
    }

    /// Lays a step behind those that are there. Of a thread that is gone, [`EngineThread::outcome`] tells.
    pub fn submit(&self, plan: StepPlan) {
        let _ = self.steps.send(plan);
    }

    /// The next outcome; `None` when the engine thread is gone. May be dropped and asked for again.
    pub async fn outcome(&mut self) -> Option<Outcome> {
        self.outcomes.recv().await
    }

    /// Ends the thread after its step, and gives back what it held. A step that waits for other ranks must be
    /// aborted by its collective.
    pub async fn end(self) -> Option<OnDevice> {
        drop((self.steps, self.outcomes));
        // A thread that panicked leaves nothing.
        self.left.await.ok().flatten()
    }
}

/// Until the other side is gone, or a step fails: what follows a failed step could not be right.
fn execute_all<B, C>(
    mut executor: Executor<B, C>,
    mut inbox: mpsc::UnboundedReceiver<StepPlan>,
    outbox: &mpsc::UnboundedSender<Outcome>,
) -> B
where
    B: Backend,
    C: Collective + AllReduce<B::Activations>,
{
    let mut meter = Meter::default();
    while let Some(plan) = inbox.blocking_recv() {
        let start = Instant::now();
        let outcome = executor.execute(&plan).map(|outcome| {
            let compute_us = start.elapsed().as_micros() as u64;
            let memory_bytes = meter.read(start, || executor.backend().memory_bytes());
            StepOutcome { compute_us, memory_bytes, ..outcome }
        });
        let failed = outcome.is_err();
        if outbox.send(outcome).is_err() || failed {
            break;
        }
    }
    executor.into_backend()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_engine::backend::cpu::CpuBackend;
    use flotilla_engine::collective::threads::ThreadsCollective;

    #[tokio::test]
    async fn an_engine_that_panics_while_it_is_built_is_an_error_and_no_end_of_the_worker() {
        let build = || -> Result<Executor<CpuBackend, ThreadsCollective>, NotBuilt> {
            panic!("no memory, in a test")
        };
        let Err((error, None)) = EngineThread::start(build).await else { panic!("it was built") };
        assert!(matches!(error, WorkerError::EngineGone), "{error}");
    }
}
