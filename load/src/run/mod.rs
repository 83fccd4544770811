//! The run: an open loop, in which requests go when they are due, or a closed one, in which so many clients each wait
//! for their answer before they ask again.

mod bell;
mod conversation;
mod heartbeat;
mod live;
mod load;
mod probe;

use crate::client::Target;
use crate::prompt::Prompts;
use crate::record::Record;
use crate::schedule::{Arrivals, Limit};
use hdrhistogram::Histogram;
use std::sync::Arc;
use std::time::Duration;

pub use live::{Live, Seen};
pub use load::run;
pub use probe::{Probe, ProbeError, probe, warm_up};

/// Whom to ask, and what.
#[derive(Debug)]
pub struct Asking {
    pub target: Target,
    pub prompts: Prompts,
    /// Between the turns of a conversation, and between conversations of one client.
    pub think: Duration,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    pub asking: Arc<Asking>,
    pub load: Load,
    pub limit: Limit,
    pub seed: u64,
    /// Prompts of a file are asked from this one on: runs of one command go on where the one before ended.
    pub from: u64,
}

#[derive(Clone, Debug)]
pub enum Load {
    Open(Arrivals),
    Closed { clients: usize },
}

/// What was done.
#[derive(Debug)]
pub struct Run {
    /// In the order in which they were due.
    pub records: Vec<Record>,
    pub elapsed_us: u64,
    /// Answers came as one body each.
    pub whole: bool,
    /// How late this process was to do what it should do just then, in microseconds, a hundred times a second.
    pub late_us: Histogram<u64>,
    /// Ended from outside.
    pub stopped: bool,
}

impl Run {
    /// How many scripts it has asked for.
    pub fn conversations(&self) -> u64 {
        self.records.iter().map(|record| record.conversation + 1).max().unwrap_or(0)
    }
}
