//! One sum, the wait for it, and who is to blame where it does not end.

use super::staged;
use super::wait::{self, Ended};
use super::{CardCollective, Ends, Way, failed};
use crate::collective::{Collective, CollectiveError, Operation};
use crate::cuda::DeviceSum;
use cudarc::driver::DevicePtrMut;
use flotilla_shared::Rank;
use std::time::{Duration, Instant};

/// A peer that leaves in peace has given its part of every sum before; so long may the rest take.
const GRACE: Duration = Duration::from_millis(500);

/// Why the card was not waited for to the end.
pub(super) enum Trouble {
    Aborted,
    /// Another rank has ended the group, or has gone: the link knows.
    Ended,
    Late(Duration),
    Failed(CollectiveError),
}

impl Trouble {
    pub(super) fn reason(&self) -> String {
        match self {
            Trouble::Aborted => "it was aborted".into(),
            Trouble::Ended => "another rank gave up".into(),
            Trouble::Late(waited) => format!("a sum was not done within {waited:?}"),
            Trouble::Failed(error) => error.to_string(),
        }
    }
}

impl<L: Collective> CardCollective<L> {
    pub(super) fn try_sum(&mut self, x: &mut DeviceSum) -> Result<(), CollectiveError> {
        let (n, operation) = (x.len, Operation::AllReduce);
        assert!(n <= x.values.len(), "{n} values in a buffer of {}", x.values.len());
        assert!(x.stream == *self.card.stream(), "values of another stream");
        if self.ends.is_aborted() {
            return Err(CollectiveError::Aborted);
        }
        if n > self.elements_max {
            let (bytes, max) = (bytes(n), bytes(self.elements_max));
            return Err(CollectiveError::TooLong { operation, bytes, max });
        }
        if n == 0 {
            return Ok(());
        }
        let (y, _record) = x.values.device_ptr_mut(&x.stream);
        match &mut self.way {
            Way::Alone => Ok(()),
            Way::Staged(staged) => {
                let ends = &self.ends;
                staged.sum(&mut self.link, y, n, self.deadline, || ends.is_aborted())
            }
            Way::Host(host) => {
                host.enqueue(&x.stream, y, n).map_err(|error| CollectiveError::Card { operation, error })
            }
            Way::Nccl(nccl) => {
                let (link, ends) = (&mut self.link, &self.ends);
                let mut broken_since = None;
                let is_vain = || ends.is_aborted() || has_gone(link, &mut broken_since);
                nccl.enqueue(&x.stream, y, n, is_vain).map_err(|reason| self.why_not_begun(reason))
            }
        }
    }

    /// NCCL could not begin a sum, for this reason, or was not waited for any longer.
    fn why_not_begun(&mut self, reason: String) -> CollectiveError {
        let trouble = if self.ends.is_aborted() {
            Trouble::Aborted
        } else if self.link.is_broken() {
            Trouble::Ended
        } else {
            Trouble::Failed(CollectiveError::Nccl { operation: Operation::AllReduce, reason })
        };
        self.abort_way();
        self.blame(trouble, Vec::new())
    }

    pub(super) fn try_settle(&mut self) -> Result<(), Trouble> {
        let stream = self.card.stream();
        self.event.record(stream).map_err(|error| Trouble::Failed(failed("record an event", error)))?;
        let (way, link, ends) = (&self.way, &mut self.link, &self.ends);
        let mut broken_since = None;
        let look_around = || {
            look(way, ends)?;
            if has_gone(link, &mut broken_since) {
                return Err(Trouble::Ended);
            }
            Ok(if let Way::Host(host) = way { host.progress() } else { 0 })
        };
        wait::until_done(|| self.event.try_is_complete(), wait::AWAKE, self.deadline, look_around).map_err(
            |ended| match ended {
                Ended::Driver(error) => Trouble::Failed(failed("finish what was asked of it", error)),
                Ended::Seen(trouble) => trouble,
                Ended::Late(waited) => Trouble::Late(waited),
            },
        )?;
        // It may be done because its waiting was ended.
        look(&self.way, &self.ends)
    }

    /// Ends the cards' waiting for each other, as far as this rank can.
    pub(super) fn abort_way(&mut self) {
        match &mut self.way {
            Way::Alone | Way::Staged(_) => {}
            Way::Host(host) => host.area().abort(),
            Way::Nccl(nccl) => nccl.abort(),
        }
    }

    /// Finds out who is to blame. The cards' waiting has been ended.
    pub(super) fn blame(&mut self, trouble: Trouble, behind: Vec<Rank>) -> CollectiveError {
        let operation = Operation::AllReduce;
        match trouble {
            Trouble::Aborted => CollectiveError::Aborted,
            Trouble::Failed(error) => error,
            Trouble::Late(waited) => match (behind.first(), &self.way) {
                (Some(&peer), _) => {
                    let size = self.link.size();
                    CollectiveError::Deadline { peer, missing: behind, size, operation, waited }
                }
                // Who is silent there is silent on the link, too.
                (None, Way::Nccl(_)) => self.link.barrier().err().unwrap_or_else(|| {
                    let reason = format!("not done within {waited:?}, though all ranks answer");
                    CollectiveError::Nccl { operation, reason }
                }),
                (None, _) => CollectiveError::Card { operation, error: staged::late(waited) },
            },
            Trouble::Ended => self.link.barrier().err().unwrap_or_else(|| CollectiveError::System {
                doing: "sum over ranks",
                reason: "the cards' waiting was ended, and no rank says why".into(),
            }),
        }
    }
}

/// Whether a peer has gone, and not in peace.
fn has_gone(link: &mut impl Collective, broken_since: &mut Option<Instant>) -> bool {
    link.is_broken() && broken_since.get_or_insert_with(Instant::now).elapsed() > GRACE
}

fn look(way: &Way, ends: &Ends) -> Result<(), Trouble> {
    if ends.is_aborted() {
        return Err(Trouble::Aborted);
    }
    match way {
        Way::Alone | Way::Staged(_) => Ok(()),
        Way::Host(host) if host.has_ended() => Err(Trouble::Ended),
        Way::Host(_) => Ok(()),
        Way::Nccl(nccl) => nccl.trouble().map_or(Ok(()), |reason| {
            let operation = Operation::AllReduce;
            Err(Trouble::Failed(CollectiveError::Nccl { operation, reason }))
        }),
    }
}

fn bytes(elements: usize) -> u64 {
    (elements * size_of::<f32>()) as u64
}
