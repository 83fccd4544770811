//! Where a worker stands, for whoever looks after its process. It decides nothing here.

use std::fmt;
use std::sync::Arc;
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It looks for its coordinator.
    #[default]
    Alone,
    /// It has joined, and waits for a group.
    Joined,
    /// It loads, or meets the others.
    Forming,
    /// Its group stands, as far as it knows.
    Serving,
}

impl Standing {
    /// Whether it is where the fleet can use it, or does already.
    pub fn is_ready(self) -> bool {
        matches!(self, Standing::Joined | Standing::Serving)
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Standing::Alone => "looks for its coordinator",
            Standing::Joined => "waits for a group",
            Standing::Forming => "loads, or meets its group",
            Standing::Serving => "is in a group",
        })
    }
}

/// Written by the worker, read by others; clones are one.
#[derive(Clone, Debug, Default)]
pub struct StandingCell(Arc<watch::Sender<Standing>>);

impl StandingCell {
    pub fn now(&self) -> Standing {
        *self.0.borrow()
    }

    pub(crate) fn is(&self, standing: Standing) {
        self.0.send_replace(standing);
    }
}
