//! Sums of values that lie in cards' memories.
//!
//! A [`CardCollective`] wraps the link that the ranks have anyhow, and adds one of four ways to sum:
//! `staged` (through the host, by the link: always possible), `host` (by the cards, through memory of the
//! machine that all of them reach), `shared` (the same through a card's own memory, by threads that have one
//! card), `nccl`. All ranks choose alike, from what all of them have said, and what is chosen has passed a
//! check before it is used ([`check`]).
//!
//! Cards wait for each other behind the host's back. So whoever waits here looks, while it waits, at all
//! that can make waiting vain: an abort, a peer that has gone, NCCL's errors, the deadline; and ends the
//! cards' waiting before it says so.

mod area;
mod check;
mod choose;
mod facts;
mod forming;
pub mod host;
mod member;
mod memory;
pub mod nccl;
mod staged;
mod summing;
mod wait;

pub use check::{Latency, StartReport};
pub use choose::{SumChoice, SumPath, Wire};

use super::{Collective, CollectiveError, Operation};
use crate::cuda::{Card, CudaError, Source};
use area::Area;
use cudarc::driver::CudaEvent;
use host::HostSum;
use nccl::Communicator;
use staged::Staged;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct CardSettings {
    pub choice: SumChoice,
    /// Of sums by NCCL.
    pub wire: Wire,
    /// Values of the largest sum: the most rows of a step, times the model's width.
    pub elements_max: usize,
    /// How long [`settle`](super::AllReduce::settle) waits for sums that do not go on (by `host` and
    /// `shared`) or that are not done (by `nccl`: all that was asked of the card must be done by then). Not
    /// longer than the link's own.
    pub deadline: Duration,
    /// Of each length that is measured at the start; none if 0.
    pub latency_runs: u32,
}

/// One rank of a group whose values lie in a card's memory.
pub struct CardCollective<L: Collective> {
    // Before the way: to let go of a card's memory may take the whole card's rest, and the others must
    // not wait for this rank by then.
    link: L,
    way: Way,
    card: Card,
    /// Marks the end of what is waited for.
    event: CudaEvent,
    ends: Arc<Ends>,
    elements_max: usize,
    deadline: Duration,
    failed: Option<CollectiveError>,
    report: StartReport,
    /// What is handed on, on its way from one card to another.
    handed: Vec<f32>,
}

enum Way {
    /// Nobody to sum with.
    Alone,
    Staged(Staged),
    /// `host` and `shared`.
    Host(HostSum),
    Nccl(Communicator),
}

/// What another thread needs to end this rank's sums.
#[derive(Default)]
struct Ends {
    aborted: AtomicBool,
    area: Mutex<Option<Arc<Area>>>,
}

impl Ends {
    fn area(&self) -> std::sync::MutexGuard<'_, Option<Arc<Area>>> {
        self.area.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, area: Option<Arc<Area>>) {
        *self.area() = area;
        if self.is_aborted() {
            self.abort();
        }
    }

    fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        if let Some(area) = &*self.area() {
            area.abort();
        }
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }
}

impl<L: Collective> CardCollective<L> {
    /// Agrees with the other ranks of `link` on a way, tries it, and takes the next best one if it fails.
    /// All ranks call it together, each with its own card or a clone of the same, and on the thread that will wait for its sums.
    pub fn form(card: &Card, link: L, settings: &CardSettings) -> Result<Self, CollectiveError> {
        let source = host::source(link.size());
        Self::form_with(card, link, settings, &source)
    }

    /// With a program for `host` that may be another than [`host::source`]: tests plant faults in it.
    #[doc(hidden)]
    pub fn form_with(
        card: &Card,
        link: L,
        settings: &CardSettings,
        host_source: &Source,
    ) -> Result<Self, CollectiveError> {
        wait::wake_in_time();
        let event =
            card.stream().context().new_event(None).map_err(|error| failed("make an event", error))?;
        let mut this = CardCollective {
            link,
            way: Way::Alone,
            card: card.clone(),
            event,
            ends: Arc::default(),
            elements_max: settings.elements_max,
            // So that the link still waits for a rank that has waited here.
            deadline: settings.deadline / 2,
            failed: None,
            report: StartReport::default(),
            handed: Vec::new(),
        };
        if this.link.size() > 1 {
            this.agree_on_a_way(settings, host_source)?;
        }
        this.deadline = settings.deadline;
        Ok(this)
    }

    /// `None` for a rank that is alone.
    pub fn path(&self) -> Option<SumPath> {
        match &self.way {
            Way::Alone => None,
            Way::Staged(_) => Some(SumPath::Staged),
            Way::Host(host) => Some(host.path()),
            Way::Nccl(_) => Some(SumPath::Nccl),
        }
    }

    /// Whether a CUDA graph may hold sums. A graph is launched by all ranks, as often, in the same order,
    /// and not after an error.
    pub fn capturable(&self) -> bool {
        !matches!(self.way, Way::Staged(_))
    }

    pub fn report(&self) -> &StartReport {
        &self.report
    }

    pub fn link(&self) -> &L {
        &self.link
    }

    /// Runs something unless an error has ended the group; the first error does.
    fn run<T>(
        &mut self,
        attempt: impl FnOnce(&mut Self) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        attempt(self).inspect_err(|error| {
            self.failed = Some(error.clone());
            // The link first: who is woken by the other asks it why.
            self.link.end(error.clone());
            self.abort_way();
        })
    }
}

fn failed(doing: &'static str, error: cudarc::driver::DriverError) -> CollectiveError {
    CollectiveError::Card { operation: Operation::AllReduce, error: CudaError::doing(doing)(error) }
}
