//! How far a run is, to be looked at while it goes on.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Debug, Default)]
pub struct Live {
    sent: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    pieces: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub sent: u64,
    pub done: u64,
    pub failed: u64,
    /// Of answers; mostly a token each. Of an answer in one body its tokens.
    pub pieces: u64,
}

impl Live {
    pub fn seen(&self) -> Seen {
        let [sent, done, failed, pieces] =
            [&self.sent, &self.done, &self.failed, &self.pieces].map(|count| count.load(Relaxed));
        Seen { sent, done, failed, pieces }
    }

    pub(crate) fn sent(&self) {
        self.sent.fetch_add(1, Relaxed);
    }

    pub(crate) fn ended(&self, done: bool) {
        (if done { &self.done } else { &self.failed }).fetch_add(1, Relaxed);
    }

    pub(crate) fn pieces(&self, count: u64) {
        self.pieces.fetch_add(count, Relaxed);
    }
}

impl Seen {
    pub fn in_flight(&self) -> u64 {
        self.sent.saturating_sub(self.done + self.failed)
    }
}
