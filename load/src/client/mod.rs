//! One request, from its body to the end of its answer.

mod ask;
mod body;

use crate::record::ErrorKind;
use crate::stream::{Checked, Endpoint};
use serde_json::{Map, Value};
use std::time::{Duration, Instant};

pub use body::{Chat, body};

/// The server, and what every request to it has in common.
#[derive(Debug)]
pub struct Target {
    pub http: reqwest::Client,
    /// Without a slash at the end.
    pub url: String,
    pub key: Option<String>,
    pub endpoint: Endpoint,
    /// Answers come as one body each, not as streams: of their first token and what lies between tokens nothing is known.
    pub whole: bool,
    pub model: String,
    pub ignore_eos: bool,
    /// Usage is asked for with every chunk: what lies between two pieces is then known exactly.
    pub continuous_usage: bool,
    /// Fields that the body gets besides, or instead of what it has.
    pub extra: Map<String, Value>,
    /// Of a whole request.
    pub timeout: Duration,
}

impl Target {
    /// Whether usage is asked for with every chunk. What it says of several choices before their end, servers do not agree on.
    pub fn counts_as_it_goes(&self) -> bool {
        let has_it = !self.whole && self.endpoint != Endpoint::Responses;
        has_it && self.continuous_usage && self.extra.get("n").is_none_or(|n| *n == 1)
    }
}

/// Microseconds since the run began.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    pub fn us(&self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }

    /// When it shows so much.
    pub fn at(&self, us: u64) -> Instant {
        self.0 + Duration::from_micros(us)
    }
}

/// What came of a request.
#[derive(Debug, Default)]
pub struct Answer {
    pub sent_us: u64,
    pub ended_us: u64,
    pub pieces_us: Vec<u64>,
    /// Tokens that came after the first piece, up to the last, where the server counts as it goes.
    pub tokens_between: Option<u64>,
    pub checked: Checked,
    pub failure: Option<(ErrorKind, String)>,
}
