//! When the ranks of a group meet: once all have their weights. Whoever came earlier would wait for the slowest load, and no
//! longer than `--collective-timeout`.

use super::worker::Worker;
use flotilla_proto::wire::{Meet, ToWorker, to_worker};
use flotilla_shared::Epoch;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc;
use tonic::Status;

pub(super) struct Meeting {
    epoch: Epoch,
    /// Ranks that still load.
    lacking: AtomicUsize,
    hears: Vec<mpsc::UnboundedSender<Result<ToWorker, Status>>>,
}

impl Meeting {
    pub fn of(epoch: Epoch, workers: &[Worker]) -> Meeting {
        let hears = workers.iter().map(|worker| worker.hears.clone()).collect();
        Meeting { epoch, lacking: AtomicUsize::new(workers.len()), hears }
    }

    /// One more rank, told of once; after the last of them all are told to meet.
    pub fn has_its_weights(&self) {
        if self.lacking.fetch_sub(1, Ordering::Relaxed) == 1 {
            let meet = to_worker::Message::Meet(Meet { epoch: self.epoch.0 });
            for hears in &self.hears {
                // One that is gone is noticed by whoever listens to it.
                let _ = hears.send(Ok(ToWorker { message: Some(meet.clone()) }));
            }
        }
    }
}
