//! A sequence that goes on in another scheduler: when its group is lost and another replica stands. It takes along
//! all that it has here, which is its tokens and its claims; of a group there is nothing.

use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use flotilla_shared::SequenceId;
use std::time::Duration;

/// Between two schedulers. One that is dropped has ended without a word.
pub struct Traveller {
    sequence: Sequence,
    age: Duration,
    deadline_in: Option<Duration>,
}

impl Traveller {
    pub fn id(&self) -> SequenceId {
        self.sequence.id
    }
}

impl Scheduler {
    /// Takes out a sequence that waits, as all do while there is no group. Nothing is said of it any more here.
    pub fn depart(&mut self, now: Duration, id: SequenceId) -> Option<Traveller> {
        let sequence = self.take_waiting(id)?;
        let age = now.saturating_sub(sequence.arrived_at);
        let deadline_in = sequence.deadline.map(|deadline| deadline.saturating_sub(now));
        Some(Traveller { sequence, age, deadline_in })
    }

    /// Takes in one that departed from another: where it ran, before its equals that have not; else it waits as they do. It
    /// was taken in once already: no queue is too full for it.
    pub fn adopt(&mut self, now: Duration, traveller: Traveller) {
        let Traveller { mut sequence, age, deadline_in } = traveller;
        sequence.arrived_at = now.saturating_sub(age);
        sequence.deadline = deadline_in.map(|left| now + left);
        self.take_over(now, sequence);
    }
}
