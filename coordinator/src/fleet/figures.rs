//! What the fleet tells of itself to metrics: workers that wait, and bytes of weights that went out.

use super::pool::Pool;
use super::weights::Counter;
use std::fmt;
use std::sync::Arc;

/// Cheap to clone.
#[derive(Clone)]
pub struct Figures {
    pool: Pool,
    counter: Arc<Counter>,
}

impl Figures {
    pub(super) fn new(pool: Pool, counter: Arc<Counter>) -> Figures {
        Figures { pool, counter }
    }

    /// Workers that are here and in no group.
    pub fn workers_waiting(&self) -> usize {
        self.pool.count()
    }

    /// To all workers, since the start.
    pub fn weight_bytes_sent(&self) -> u64 {
        self.counter.bytes_sent()
    }
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Figures").finish_non_exhaustive()
    }
}
