//! A worker that has said Hello: what it brings, and both directions of its conversation.

use super::holders::Holding;
use super::pool::{Homecoming, Pool};
use crate::group::GroupError;
use flotilla_proto::wire::{Dissolve, ToWorker, from_worker, to_worker};
use flotilla_proto::{Hello, released_from};
use flotilla_shared::{Epoch, Held, Rank};
use std::borrow::Borrow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tracing::{info, warn};

/// Time for a worker to leave a group that is over: a step on a slow processor may still run.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(75);
/// Times in a row that a worker may fail by its own fault before it is sent away.
const FAILURES_MAX: u32 = 3;
/// Between a worker's own failure and its next group, for each failure before.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Worker {
    pub hello: Hello,
    pub says: mpsc::Receiver<Result<from_worker::Message, String>>,
    pub hears: mpsc::UnboundedSender<Result<ToWorker, Status>>,
    /// Why its stream ended, once it has.
    pub ended: watch::Receiver<Option<String>>,
    /// Whether it said that it leaves; before its stream ends.
    pub leaves: Arc<AtomicBool>,
    /// What it holds, for others to ask it.
    pub holding: Arc<Holding>,
    /// Failures of its own since it last was in a group that stood.
    pub failures: u32,
    /// Groups in a row that ended because it and another could not reach each other.
    pub disputes: u32,
    /// What it says of the step that ended its group does not count.
    pub acquitted: bool,
}

/// What a plan is made of.
impl Borrow<Hello> for Worker {
    fn borrow(&self) -> &Hello {
        &self.hello
    }
}

impl Worker {
    pub fn name(&self) -> &str {
        &self.hello.inventory.name
    }

    /// Whether its stream still stands, as far as is known.
    pub fn is_here(&self) -> bool {
        !self.hears.is_closed() && self.ended.borrow().is_none()
    }

    /// Why a group that it is part of is no more, now that its stream has ended.
    pub fn gone(leaves: &AtomicBool, rank: Rank, reason: String) -> GroupError {
        match leaves.load(Ordering::Acquire) {
            true => GroupError::Left { rank, reason },
            false => GroupError::Lost { rank, reason },
        }
    }

    /// What it says of a failure counts against it: its own at once, one that it blames on another when it is repeated.
    pub fn failed(&mut self, blames_another: bool) {
        match blames_another {
            _ if self.acquitted => {}
            true => self.disputes += 1,
            false => self.failures += 1,
        }
    }

    /// A step was answered.
    pub fn did_well(&mut self) {
        (self.failures, self.disputes) = (0, 0);
    }

    /// What failed is laid to a request: until it is home, nothing counts against it.
    pub fn acquit(&mut self) {
        self.did_well();
        self.acquitted = true;
    }

    pub fn held(&self) -> Option<&Held> {
        self.hello.held.as_ref()
    }

    /// Tells it what to do. A worker that is gone is noticed by whoever listens to it.
    pub fn tell(&self, message: to_worker::Message) {
        let _ = self.hears.send(Ok(ToWorker { message: Some(message) }));
    }

    /// Lets it go from the group of this epoch, and puts it into the pool once it has left.
    pub fn go_home(self, epoch: Epoch, pool: Pool) {
        // Until it says what it keeps.
        self.holding.left_with(None);
        self.tell(to_worker::Message::Dissolve(Dissolve { epoch: epoch.0 }));
        // Without a runtime the process ends, and its links with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(self.leave(epoch, pool.homecoming(), pool));
        }
    }

    async fn leave(mut self, epoch: Epoch, homecoming: Homecoming, pool: Pool) {
        let name = self.name().to_owned();
        match tokio::time::timeout(RELEASE_TIMEOUT, self.released(epoch)).await {
            Err(_) => return warn!(name, %epoch, "a worker does not leave its group, and is sent away"),
            Ok(Err(reason)) => return info!(name, %epoch, reason, "a worker is gone"),
            Ok(Ok(())) => {}
        }
        if self.failures >= FAILURES_MAX {
            warn!(name, failures = self.failures, "a worker fails again and again, and is sent away");
            let _ = self.hears.send(Err(Status::failed_precondition(format!(
                "it failed {} times in a row\nhint: its log says why",
                self.failures
            ))));
            return;
        }
        self.acquitted = false;
        // Nobody waits for one that pauses.
        let homecoming = (self.failures == 0).then_some(homecoming);
        tokio::time::sleep(FAILURE_PAUSE * self.failures).await;
        if !pool.enter(self) {
            warn!(name, "too many workers wait already, one is sent away");
        }
        drop(homecoming);
    }

    /// Passes over what it said before it heard that the group is over.
    async fn released(&mut self, epoch: Epoch) -> Result<(), String> {
        loop {
            match self.says.recv().await {
                Some(Ok(from_worker::Message::Released(released))) => {
                    let held = released_from(released, epoch).map_err(|error| error.to_string())?;
                    if let Some(held) = held {
                        self.holding.left_with(held.clone());
                        self.hello.held = held;
                        return Ok(());
                    }
                }
                Some(Ok(from_worker::Message::Failed(failed))) => self.failed(failed.blames_another),
                Some(Ok(_)) => {}
                Some(Err(reason)) => return Err(reason),
                None => return Err("it is gone".into()),
            }
        }
    }
}
