//! Chance for the API: names that collide with no other, and seeds for clients that give none. Not for
//! secrets.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub struct Ids {
    /// Keyed by the operating system's randomness.
    hasher: RandomState,
    given: AtomicU64,
}

impl Ids {
    pub fn seed(&self) -> u64 {
        self.hasher.hash_one(self.given.fetch_add(1, Ordering::Relaxed))
    }

    /// `chatcmpl-` and 32 hexadecimal digits, say.
    pub fn name(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}{:016x}", self.seed(), self.seed())
    }
}
