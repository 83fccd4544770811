//! What becomes of requests: they are taken in or refused, hear of their tokens, and end.

use flotilla_scheduler::{Event, FinishReason, Rejection, Usage};
use flotilla_shared::SequenceId;

use super::handle::{Command, Submission};
use super::stream::Stream;
use super::{Driver, Failure, Readiness, Refusal, TokenEvent, now};
use crate::group::Group;

impl<G: Group> Driver<G> {
    pub(super) fn submit(&mut self, submission: Submission) {
        // Its client has left: the cancellation may have come first, from where it was handed on.
        if submission.events.is_closed() {
            return;
        }
        if self.is_stopped {
            let _ = submission.admission.send(Err(Refusal::Stopped));
            return;
        }
        let readiness = self.readiness.borrow().clone();
        let is_ready = matches!(readiness, Readiness::Ready { .. });
        // The group was lost since this replica was chosen.
        if !is_ready && let Some(other) = self.replicas.idlest() {
            let _ = other.send(Command::Submit(Box::new(submission)));
            return;
        }
        let Submission { mut request, timeout, guide, events, admission, trace, span } = submission;
        let mut stream = Stream { events, admission: Some(admission), trace, span };
        // What goes on has a group that it lost between two tokens, and waits for another as all do that ran in it.
        if !is_ready && request.said.is_none() {
            return stream.answer(Err(Refusal::NotReady(readiness)));
        }
        request.deadline = timeout.map(|timeout| now() - self.started + timeout);
        request.guided = guide.is_some();
        if let Some(guide) = guide {
            self.guides.begin(request.sequence, guide);
        }
        self.streams.insert(request.sequence, stream);
        self.arrived.push(request.sequence);
        self.tell(Event::Arrived(request));
        if !is_ready {
            self.orphan_those_who_came();
        }
    }

    /// Nobody is left without a word.
    pub(super) fn stop(&mut self) {
        self.is_stopped = true;
        self.fail_all(Failure::Stopped);
    }

    /// The scheduler rejects with its next actions or not at all.
    pub(super) fn admit(&mut self) {
        for sequence in self.arrived.drain(..) {
            if let Some(stream) = self.streams.get_mut(&sequence) {
                stream.answer(Ok(()));
            }
        }
    }

    /// Of a sequence that has ended meanwhile, nothing is left to cancel.
    pub(super) fn cancel(&mut self, sequence: SequenceId) {
        if self.streams.remove(&sequence).is_some() {
            self.guides.end(sequence);
            self.acquit(sequence);
            self.tell(Event::Cancelled(sequence));
        }
    }

    pub(super) fn emit(&self, sequence: SequenceId, event: TokenEvent) {
        if let Some(stream) = self.streams.get(&sequence) {
            stream.say(event);
        }
    }

    pub(super) fn finish(&mut self, sequence: SequenceId, reason: FinishReason, usage: Usage) {
        self.guides.end(sequence);
        if let Some(mut stream) = self.streams.remove(&sequence) {
            // It may have been taken in just now.
            stream.answer(Ok(()));
            stream.say(TokenEvent::Finished { reason, usage });
        }
        self.came_to_end(sequence, reason);
    }

    pub(super) fn reject(&mut self, sequence: SequenceId, reason: Rejection) {
        self.guides.end(sequence);
        if let Some(mut stream) = self.streams.remove(&sequence) {
            stream.answer(Err(Refusal::Rejected(reason)));
        }
    }

    pub(super) fn fail(&mut self, sequence: SequenceId, failure: Failure) {
        if let Some(mut stream) = self.streams.remove(&sequence) {
            stream.answer(Ok(()));
            stream.say(TokenEvent::Failed(failure));
            self.guides.end(sequence);
            self.acquit(sequence);
            self.tell(Event::Cancelled(sequence));
        }
    }

    pub(super) fn fail_all(&mut self, failure: Failure) {
        let sequences: Vec<SequenceId> = self.streams.keys().copied().collect();
        sequences.into_iter().for_each(|sequence| self.fail(sequence, failure.clone()));
    }
}
