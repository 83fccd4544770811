//! What the fleet tells of itself to metrics: workers that wait, and bytes of weights that went out.

use super::pool::Pool;
use super::weights::Counter;
use flotilla_shared::Place;
use flotilla_trust::ServerTls;
use std::fmt;
use std::sync::Arc;

/// Cheap to clone.
#[derive(Clone)]
pub struct Figures {
    pool: Pool,
    counter: Arc<Counter>,
    tls: Option<ServerTls>,
}

impl Figures {
    pub(super) fn new(pool: Pool, counter: Arc<Counter>, tls: Option<ServerTls>) -> Figures {
        Figures { pool, counter, tls }
    }

    /// Workers that are here and in no group.
    pub fn workers_waiting(&self) -> usize {
        self.pool.count()
    }

    /// When the certificate that workers are shown ends, in seconds since 1970.
    pub fn certificate_ends_at(&self) -> Option<u64> {
        self.tls.as_ref()?.ends_at()
    }

    /// To all workers, since the start.
    pub fn weight_bytes_sent(&self) -> u64 {
        self.counter.bytes_sent()
    }

    /// What workers said that they have loaded, by where it came from, since the start.
    pub fn weight_bytes_loaded(&self, place: Place) -> u64 {
        self.counter.bytes_loaded(place)
    }
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Figures").finish_non_exhaustive()
    }
}
