//! What the driver does about suspects: it says which steps failed, lets them in as they are to be tried, and ends who is
//! found guilty.

use super::seat::Seat;
use super::suspects::{Suspects, Verdict};
use super::{Driver, Failure};
use crate::group::{Group, GroupError};
use flotilla_scheduler::{Event, FinishReason};
use flotilla_shared::SequenceId;

impl<G: Group> Driver<G> {
    /// The group is lost; the step that failed, if one did, is the oldest in flight, or the last that was answered.
    pub(super) fn judge(&mut self, error: &GroupError) -> Verdict {
        if *error == GroupError::Dissolved {
            // Nobody is tried here any more.
            self.suspects = Suspects::default();
        }
        let Seat::Taken { group, in_flight } = &mut self.seat else { return Verdict::Open };
        let step = match error {
            GroupError::Abandoned(_) => &self.answered,
            _ => in_flight.front().map_or(&self.answered, |step| &step.sequences),
        };
        if !error.may_be_of_a_request() || step.is_empty() {
            return Verdict::Open;
        }
        let here: Vec<SequenceId> = self.streams.keys().copied().collect();
        let (verdict, acquits) = self.suspects.failed(step, error, &here);
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
        match reason {
            FinishReason::StopToken(_) | FinishReason::Length => {
                let guilty = self.suspects.finished(sequence);
                self.convict(guilty);
            }
            FinishReason::Cancelled | FinishReason::Deadline => self.suspects.forget(sequence),
        }
    }

    fn convict(&mut self, guilty: Vec<(SequenceId, GroupError)>) {
        for (sequence, error) in guilty {
            if let Some(stream) = self.streams.get(&sequence) {
                stream.span.in_scope(
                    || tracing::error!(%sequence, %error, "steps fail with this request in them: it ends"),
                );
            }
            self.fail(sequence, Failure::StepsFail(error));
        }
    }

    /// Tells the scheduler who alone is to be let in, if that has changed.
    pub(super) fn put_on_trial(&mut self) {
        let next = self.suspects.on_trial(self.streams.keys().copied());
        if next != self.on_trial {
            self.on_trial = next;
            self.tell(Event::OnTrial(next));
        }
    }
}
