//! What the driver does about suspects: it says which steps failed, and with which workers were lost, lets them in as they
//! are to be tried, and ends who is found guilty.

use super::losses::{Losses, Rows};
use super::seat::Seat;
use super::suspects::{Suspects, Verdict};
use super::{Driver, Failure};
use crate::group::{Group, GroupError};
use flotilla_scheduler::{Event, FinishReason, Trial};
use flotilla_shared::SequenceId;

impl<G: Group> Driver<G> {
    /// The group is lost; the step that failed, if one did, is the oldest in flight, or the last that was answered.
    pub(super) fn judge(&mut self, error: &GroupError) -> Verdict {
        if *error == GroupError::Dissolved {
            // Nobody is tried here any more.
            (self.suspects, self.losses) = (Suspects::default(), Losses::default());
        }
        let Seat::Taken { group, in_flight } = &mut self.seat else { return Verdict::Open };
        if error.is_loss() {
            // Any of them may run, where there are stages; and the oldest may be done.
            let rows: Vec<Rows> = in_flight.iter().flat_map(|step| &step.rows).copied().collect();
            let guilty = self.losses.lost(&rows, |sequence| self.streams.contains_key(&sequence));
            return guilty.map_or(Verdict::Open, Verdict::Guilty);
        }
        let step = match error {
            GroupError::Abandoned(_) => &self.answered,
            _ => in_flight.front().map_or(&self.answered, |step| &step.rows),
        };
        if !error.may_be_of_a_request() || step.is_empty() {
            return Verdict::Open;
        }
        let step: Vec<SequenceId> = step.iter().map(|rows| rows.sequence).collect();
        let here: Vec<SequenceId> = self.streams.keys().copied().collect();
        let (verdict, acquits) = self.suspects.failed(&step, error, &here);
        if acquits {
            group.acquit();
        }
        verdict
    }

    pub(super) fn carry_out_verdict(&mut self, verdict: Verdict, error: &GroupError) {
        match verdict {
            Verdict::Open => {}
            Verdict::Guilty(sequence) => self.convict(vec![(sequence, error.clone())]),
            Verdict::Fleet { ended, again } => {
                if !again {
                    let sequences = ended.len();
                    tracing::error!(%error, sequences, "every step fails, whoever is in it: their requests end");
                }
                ended.into_iter().for_each(|sequence| self.fail(sequence, Failure::GroupLost(error.clone())));
            }
        }
    }

    /// A token of it came.
    pub(super) fn went_on(&mut self, sequence: SequenceId) {
        let guilty = self.suspects.emitted(sequence);
        self.convict(guilty);
    }

    pub(super) fn came_to_end(&mut self, sequence: SequenceId, reason: FinishReason) {
        self.losses.forget(sequence);
        match reason {
            FinishReason::StopToken(_) | FinishReason::Length => {
                let guilty = self.suspects.finished(sequence);
                self.convict(guilty);
            }
            FinishReason::Cancelled | FinishReason::Deadline => _ = self.suspects.forget(sequence),
        }
    }

    fn convict(&mut self, guilty: Vec<(SequenceId, GroupError)>) {
        for (sequence, error) in guilty {
            let is_loss = error.is_loss();
            if let Some(stream) = self.streams.get(&sequence) {
                stream.span.in_scope(|| match is_loss {
                    true => {
                        tracing::error!(%sequence, %error, "workers are lost with this request alone: it ends")
                    }
                    false => tracing::error!(%sequence, %error, "steps fail with this request in them: it ends"),
                });
            }
            let failure = if is_loss { Failure::LosesWorkers } else { Failure::StepsFail };
            self.fail(sequence, failure(error));
        }
    }

    /// It ended or will not be tried.
    pub(super) fn acquit(&mut self, sequence: SequenceId) {
        self.suspects.forget(sequence);
        self.losses.forget(sequence);
    }

    /// It is tried here, and does not go on in `other`: as long as this replica may soon be back, and, where workers were
    /// lost with it, others would have to make way for it there: those that serve there, or that go there with it.
    pub(super) fn must_stay(&self, sequence: SequenceId, makes_way: bool) -> bool {
        if self.orphaned.as_ref().is_some_and(|orphaned| orphaned.is_held_no_more()) {
            return false;
        }
        self.suspects.holds(sequence) || self.losses.holds(sequence) && makes_way
    }

    /// Tells the scheduler who alone is to be let in, if that has changed.
    pub(super) fn put_on_trial(&mut self) {
        let of_steps = self.suspects.on_trial(self.streams.keys().copied());
        let of_steps = of_steps.map(|sequence| Trial { sequence, alone: false });
        let next = of_steps.or_else(|| self.losses.on_trial());
        if next != self.on_trial {
            self.on_trial = next;
            self.tell(Event::OnTrial(next));
        }
    }
}
