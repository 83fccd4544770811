//! The scheduler: what happens to the line of sequences on each event. How the next step is put together
//! is told in `group.rs`; here is who arrives, who ends, and what becomes of them when a group is lost.

use crate::event::{Action, Event, FinishReason, GroupFault, Rejection, Request};
use crate::group::Group;
use crate::sequence::{Arrival, Sequence};
use crate::settings::{Settings, SettingsError};
use flotilla_shared::step::Sampled;
use flotilla_shared::{Epoch, SequenceId, StepOutcome};
use std::collections::VecDeque;
use std::time::Duration;

/// A sequence is in the group's `running` or in `waiting`, and nowhere when it has ended.
pub struct Scheduler {
    pub(crate) settings: Settings,
    now: Duration,
    arrival_last: Arrival,
    /// In order of arrival, all of them after the last that runs.
    pub(crate) waiting: VecDeque<Sequence>,
    pub(crate) group: Option<Group>,
    epoch_last: Option<Epoch>,
    actions: VecDeque<Action>,
}

/// How busy the scheduler is: for metrics, and for routing between replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub sequences_running: usize,
    pub sequences_waiting: usize,
    /// 0 without a group.
    pub kv_blocks: usize,
    pub kv_blocks_free: usize,
    /// Since the group formed.
    pub preemptions: u64,
}

impl Scheduler {
    pub fn new(settings: Settings) -> Result<Scheduler, SettingsError> {
        settings.validate()?;
        Ok(Scheduler {
            settings,
            now: Duration::ZERO,
            arrival_last: Arrival(0),
            waiting: VecDeque::new(),
            group: None,
            epoch_last: None,
            actions: VecDeque::new(),
        })
    }

    /// Takes in what happened. `now` is the time since the scheduler's start.
    pub fn handle(&mut self, now: Duration, event: Event) {
        self.now = now;
        match event {
            Event::GroupFormed { epoch, kv_blocks } => self.form_group(epoch, kv_blocks.full as usize),
            Event::GroupLost { epoch } => self.lose_group(epoch),
            Event::Arrived(request) => self.arrive(request),
            Event::Cancelled(sequence) => self.cancel(sequence),
            Event::Masked(_) | Event::Tick => {}
            Event::Stepped(outcome) => self.apply(outcome),
        }
        #[cfg(debug_assertions)]
        self.check();
    }

    /// What must now be done; `None` until the next event. A step is planned when all else is out, so
    /// that it holds whatever was handed in before.
    pub fn poll(&mut self) -> Option<Action> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        let plan = self.group.as_mut()?.plan_step(&self.settings, &mut self.waiting)?;
        #[cfg(debug_assertions)]
        {
            self.check();
            self.check_plan(&plan);
        }
        Some(Action::Step(plan))
    }

    pub fn load(&self) -> Load {
        let group = self.group.as_ref();
        Load {
            sequences_running: group.map_or(0, |group| group.running.len()),
            sequences_waiting: self.waiting.len(),
            kv_blocks: group.map_or(0, |group| group.pool.count()),
            kv_blocks_free: group.map_or(0, |group| group.pool.free_count()),
            preemptions: group.map_or(0, |group| group.preemptions),
        }
    }

    // The group.

    fn form_group(&mut self, epoch: Epoch, kv_blocks: usize) {
        if Some(epoch) <= self.epoch_last {
            tracing::error!(%epoch, epoch_last = ?self.epoch_last, "a group formed in a past epoch, refused");
            return;
        }
        self.epoch_last = Some(epoch);
        self.disband();
        let group = Group::new(epoch, kv_blocks);
        let capacity_tokens = group.pool.capacity_tokens();
        self.group = Some(group);
        if kv_blocks == 0 {
            return self.abandon(GroupFault::NoBlocks);
        }
        if capacity_tokens < self.settings.context_max {
            let context_max = self.settings.context_max;
            tracing::warn!(%epoch, capacity_tokens, context_max, "the cache holds less than one full context");
        }
        self.end_outgrown();
    }

    fn lose_group(&mut self, epoch: Epoch) {
        if self.group.as_ref().is_some_and(|group| group.epoch == epoch) {
            self.disband();
        }
    }

    /// An outcome that is not what was asked for tells that the workers hold something else than we think:
    /// nothing of it is used, and the epoch ends.
    fn abandon(&mut self, fault: GroupFault) {
        if let Some(Group { epoch, .. }) = self.group {
            tracing::error!(%epoch, %fault, "group abandoned");
            self.disband();
            self.actions.push_back(Action::Abandon { epoch, fault });
        }
    }

    /// Everything that runs goes back to the head of the line, to start over from its tokens.
    fn disband(&mut self) {
        let Some(group) = self.group.take() else { return };
        for mut sequence in group.running.into_iter().rev() {
            sequence.start_over();
            self.waiting.push_front(sequence);
        }
    }

    /// Ends what would not fit in the cache of a new group, even alone.
    fn end_outgrown(&mut self) {
        let length_max = self.length_max();
        for sequence in std::mem::take(&mut self.waiting) {
            match sequence.end(length_max) {
                Some(reason) => self.finish(sequence, reason),
                None => self.waiting.push_back(sequence),
            }
        }
    }

    /// Tokens that a sequence may have: the context, or the whole cache where that is less.
    pub(crate) fn length_max(&self) -> usize {
        let capacity_tokens = self.group.as_ref().map_or(usize::MAX, |group| group.pool.capacity_tokens());
        capacity_tokens.min(self.settings.context_max)
    }

    // The clients.

    fn arrive(&mut self, request: Request) {
        if let Some(reason) = self.rejection(&request) {
            return self.actions.push_back(Action::Reject { sequence: request.sequence, reason });
        }
        self.arrival_last.0 += 1;
        let sequence = Sequence::new(self.arrival_last, self.now, request);
        match sequence.end(self.length_max()) {
            Some(reason) => self.finish(sequence, reason),
            None => self.waiting.push_back(sequence),
        }
    }

    fn rejection(&self, request: &Request) -> Option<Rejection> {
        let Settings { waiting_max, .. } = self.settings;
        let tokens_max = self.length_max() - 1;
        let tokens = request.prompt.len();
        if self.sequences().any(|sequence| sequence.id == request.sequence) {
            Some(Rejection::DuplicateSequence)
        } else if tokens == 0 {
            Some(Rejection::EmptyPrompt)
        } else if tokens > tokens_max {
            Some(Rejection::PromptTooLong { tokens, tokens_max })
        } else if self.waiting.len() >= waiting_max {
            Some(Rejection::QueueFull { waiting_max })
        } else {
            None
        }
    }

    fn cancel(&mut self, id: SequenceId) {
        if let Some(index) = self.waiting.iter().position(|sequence| sequence.id == id) {
            let sequence = self.waiting.remove(index).expect("found just now");
            self.finish(sequence, FinishReason::Cancelled);
        } else if let Some(group) = &mut self.group
            && let Some(index) = group.running.iter().position(|sequence| sequence.id == id)
        {
            let sequence = group.remove(index);
            self.finish(sequence, FinishReason::Cancelled);
        }
    }

    /// All of them, oldest first.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.group.iter().flat_map(|group| &group.running).chain(&self.waiting)
    }

    // The step.

    fn apply(&mut self, outcome: StepOutcome) {
        let StepOutcome { epoch, step, sampled, .. } = outcome;
        let in_flight = self.group.as_mut().and_then(|group| {
            let expected = group.epoch == epoch && group.in_flight.as_ref().is_some_and(|it| it.step == step);
            if expected { group.in_flight.take() } else { None }
        });
        let Some(in_flight) = in_flight else {
            return tracing::debug!(%epoch, %step, "stale outcome ignored");
        };
        if let Err(fault) = in_flight.verify(&sampled) {
            return self.abandon(fault);
        }
        for (sample, sampled) in in_flight.samples.iter().zip(sampled) {
            self.extend(sample.arrival, sampled);
        }
    }

    /// One more token, unless the client left while the step was in flight.
    fn extend(&mut self, arrival: Arrival, Sampled { token, logprobs, .. }: Sampled) {
        let length_max = self.length_max();
        let Some(group) = &mut self.group else { return };
        let Some(index) = group.find(arrival) else { return };
        let sequence = &mut group.running[index];
        sequence.tokens.push(token);
        self.actions.push_back(Action::Emit { sequence: sequence.id, token, logprobs });
        if let Some(reason) = sequence.end(length_max) {
            let sequence = group.remove(index);
            self.finish(sequence, reason);
        }
    }

    /// The one place where a sequence that was taken in ends.
    fn finish(&mut self, sequence: Sequence, reason: FinishReason) {
        let (id, usage) = (sequence.id, sequence.usage());
        let alive = self.now.saturating_sub(sequence.arrived_at);
        tracing::debug!(sequence = %id, ?reason, ?usage, ?alive, "finished");
        self.actions.push_back(Action::Finish { sequence: id, reason, usage });
    }
}
