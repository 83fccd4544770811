//! The end of a server's life: what is under way is finished, and nothing new is begun. Until then it goes on
//! listening, so that whoever asks is told instead of finding a closed door.

use std::fmt;
use std::sync::Arc;

use flotilla_trust::audit::{self, Act};
use tokio::sync::watch;

/// Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Drain(Arc<watch::Sender<State>>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    has_begun: bool,
    underway: usize,
}

/// A request that was begun before, until it is dropped.
#[derive(Debug)]
pub struct Underway(Drain);

/// How it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Answers that were ended by an error.
    pub late: usize,
    /// Those of them that did not get as far as that.
    pub cut_off: usize,
    /// All connections were at an end, and none had to be broken off.
    pub are_closed: bool,
}

impl Ended {
    pub fn tell(self) {
        let (act, who, Ended { late, cut_off, are_closed }) = (Act::Drain, "this server", self);
        match late {
            0 if are_closed => audit::done(act, who, "every request under way had its answer"),
            0 => audit::done(
                act,
                who,
                "every request under way had its answer; some connections had not read theirs, or said nothing",
            ),
            _ => audit::failed(
                act,
                who,
                format!(
                    "{late} answers were ended by an error to stop in time, and {cut_off} of them are cut off"
                ),
            ),
        }
    }
}

impl Default for Drain {
    fn default() -> Drain {
        Drain(Arc::new(watch::Sender::new(State::default())))
    }
}

impl Drain {
    /// None: nothing new is begun any more.
    pub fn enter(&self) -> Option<Underway> {
        let mut may = false;
        self.0.send_modify(|state| {
            may = !state.has_begun;
            state.underway += usize::from(may);
        });
        may.then(|| Underway(self.clone()))
    }

    pub fn has_begun(&self) -> bool {
        self.0.borrow().has_begun
    }

    /// How many requests are under way.
    pub fn begin(&self) -> usize {
        self.0.send_modify(|state| state.has_begun = true);
        self.underway()
    }

    pub fn underway(&self) -> usize {
        self.0.borrow().underway
    }

    /// Resolves when no request is under way.
    pub async fn emptied(&self) {
        // The sender is held here, and cannot go before.
        let _ = self.0.subscribe().wait_for(|state| state.underway == 0).await;
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.underway -= 1);
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.borrow().fmt(f)
    }
}
