//! The scheduler: what happens to the line of sequences on each event. How the next step is put together
//! is told in `group.rs`, who is next in `line.rs`; here is who arrives, who ends, and what becomes of them
//! when a group is lost.

use crate::batch::Sample;
use crate::cache::KvCache;
use crate::event::{Action, Event, FinishReason, GroupFault, Rejection, Request, Usage};
use crate::group::Group;
use crate::line::Line;
use crate::load::{Counters, Load};
use crate::sequence::{Arrival, Sequence};
use crate::settings::{Settings, SettingsError};
use flotilla_shared::step::Sampled;
use flotilla_shared::{Epoch, KvBlocks, SequenceId, StepOutcome, StepPlan};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// A sequence is in the group's `running` or in `line`, and nowhere when it has ended.
pub struct Scheduler {
    pub(crate) settings: Settings,
    now: Duration,
    arrival_last: Arrival,
    pub(crate) line: Line,
    pub(crate) group: Option<Group>,
    epoch_last: Option<Epoch>,
    actions: VecDeque<Action>,
    /// Those that have not ended.
    ids: BTreeSet<SequenceId>,
    /// No deadline comes before it.
    deadline_next: Option<Duration>,
    counters: Counters,
    /// Debug builds check what is always true.
    checked: bool,
}

impl Scheduler {
    pub fn new(settings: Settings) -> Result<Scheduler, SettingsError> {
        settings.validate()?;
        Ok(Scheduler {
            settings,
            now: Duration::ZERO,
            arrival_last: Arrival(0),
            line: Line::default(),
            group: None,
            epoch_last: None,
            actions: VecDeque::new(),
            ids: BTreeSet::new(),
            deadline_next: None,
            counters: Counters::default(),
            checked: true,
        })
    }

    /// Debug builds no longer check what is always true: for those who count allocations.
    #[doc(hidden)]
    pub fn leave_unchecked(&mut self) {
        self.checked = false;
    }

    /// Takes in what happened. `now` is the time since the scheduler's start.
    pub fn handle(&mut self, now: Duration, event: Event) {
        self.now = now;
        match event {
            Event::GroupFormed { epoch, kv_blocks, stages } => self.form_group(epoch, kv_blocks, stages),
            Event::GroupLost { epoch } => self.lose_group(epoch),
            Event::Arrived(request) => self.arrive(request),
            Event::Cancelled(sequence) => self.end_early(sequence, FinishReason::Cancelled),
            Event::Masked(sequence) => self.mask_arrived(sequence),
            Event::OnTrial(trial) => {
                self.line.on_trial = trial.filter(|trial| self.ids.contains(&trial.sequence));
            }
            Event::Tick => {}
            Event::Stepped(outcome) => self.apply(outcome),
        }
        self.end_late();
        #[cfg(debug_assertions)]
        if self.checked {
            self.check();
        }
    }

    /// What must now be done; `None` until the next event. A step is planned when all else is out, so
    /// that it holds whatever was handed in before.
    pub fn poll(&mut self) -> Option<Action> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        let group = self.group.as_mut()?;
        let plan = group.plan_step(self.now, &self.settings, &mut self.line, &mut self.counters)?;
        #[cfg(debug_assertions)]
        if self.checked {
            self.check();
            self.check_plan(&plan);
        }
        Some(Action::Step(plan))
    }

    /// Gives back a plan that was sent, so that the next one needs no memory of its own.
    pub fn reclaim(&mut self, plan: StepPlan) {
        if let Some(group) = &mut self.group {
            group.spares.take_back(plan);
        }
    }

    /// When an [`Event::Tick`] is due at the latest: the next deadline, or the end of a wait for masks.
    pub fn wakes_at(&self) -> Option<Duration> {
        let masks = self.group.as_ref().and_then(|group| group.wakes_at(self.now));
        self.deadline_next.into_iter().chain(masks).min()
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn load(&self) -> Load {
        let mut load = Load { sequences_waiting: self.line.len(), ..Load::default() };
        if let Some(group) = &self.group {
            let KvCache { full, window, .. } = &group.cache;
            load.sequences_running = group.running.len();
            load.steps_in_flight = group.in_flight.len();
            (load.kv_blocks, load.window_blocks) = (full.count(), window.count());
            (load.kv_blocks_free, load.window_blocks_free) = (full.free_count(), window.free_count());
            (load.kv_blocks_cached, load.window_blocks_cached) = (full.cached_count(), window.cached_count());
        }
        load
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    // The group.

    fn form_group(&mut self, epoch: Epoch, kv_blocks: KvBlocks, stages: usize) {
        if Some(epoch) <= self.epoch_last {
            tracing::error!(%epoch, epoch_last = ?self.epoch_last, "a group formed in a past epoch, refused");
            return;
        }
        self.epoch_last = Some(epoch);
        self.disband();
        let group = Group::new(epoch, kv_blocks, stages, &self.settings);
        let capacity_tokens = group.cache.capacity_tokens();
        self.group = Some(group);
        if !KvCache::can_serve(kv_blocks, self.settings.window_tokens) {
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

    /// Everything that runs goes back to the line, to start over from its tokens.
    fn disband(&mut self) {
        let Some(mut group) = self.group.take() else { return };
        while let Some(last) = group.running.len().checked_sub(1) {
            self.line.resume(group.remove(last));
        }
    }

    /// Ends what would not fit in the cache of a new group, even alone.
    fn end_outgrown(&mut self) {
        let length_max = self.length_max();
        let ends = self.line.iter().filter_map(|sequence| Some((sequence.id, sequence.end(length_max)?)));
        let ends: Vec<_> = ends.collect();
        ends.into_iter().for_each(|(id, reason)| self.end_early(id, reason));
    }

    pub(crate) fn length_max(&self) -> usize {
        self.group.as_ref().map_or(self.settings.context_max, |group| group.length_max(&self.settings))
    }

    // The clients.

    fn arrive(&mut self, request: Request) {
        if let Some(reason) = self.rejection(&request) {
            return self.actions.push_back(Action::Reject { sequence: request.sequence, reason });
        }
        self.arrival_last.0 += 1;
        self.ids.insert(request.sequence);
        // Of what goes on it was counted.
        if request.said.is_none() {
            self.counters.prompt_tokens += request.prompt.len() as u64;
        }
        let earlier = self.deadline_next.into_iter().chain(request.deadline).min();
        self.deadline_next = earlier;
        let sequence = Sequence::new(self.arrival_last, self.now, request);
        let (id, end) = (sequence.id, sequence.end(self.length_max()));
        self.line.adopt(sequence);
        if let Some(reason) = end {
            self.end_early(id, reason);
        }
    }

    fn rejection(&self, request: &Request) -> Option<Rejection> {
        let Settings { waiting_max, .. } = self.settings;
        let tokens_max = self.length_max() - 1;
        let tokens = request.prompt.len();
        if self.ids.contains(&request.sequence) {
            Some(Rejection::DuplicateSequence)
        } else if tokens == 0 {
            Some(Rejection::EmptyPrompt)
        } else if tokens > tokens_max {
            Some(Rejection::PromptTooLong { tokens, tokens_max })
        } else if request.said.is_none() && !self.line.has_room(request.client, waiting_max) {
            Some(Rejection::QueueFull { waiting_max })
        } else {
            None
        }
    }

    /// Out of the line and off all accounts; it has not ended.
    pub(crate) fn take_waiting(&mut self, id: SequenceId) -> Option<Sequence> {
        let sequence = self.line.remove(id)?;
        self.ids.remove(&id);
        self.line.leave(sequence.account());
        self.line.end_trial(id);
        Some(sequence)
    }

    pub(crate) fn take_over(&mut self, now: Duration, mut sequence: Sequence) {
        self.now = now;
        self.arrival_last.0 += 1;
        (sequence.arrival, sequence.adopted) = (self.arrival_last, true);
        (sequence.awaits, sequence.refused) = (None, None);
        self.ids.insert(sequence.id);
        self.deadline_next = self.deadline_next.into_iter().chain(sequence.deadline).min();
        let (id, end) = (sequence.id, sequence.end(self.length_max()));
        self.line.adopt(sequence);
        if let Some(reason) = end {
            self.end_early(id, reason);
        }
        #[cfg(debug_assertions)]
        if self.checked {
            self.check();
        }
    }

    fn mask_arrived(&mut self, id: SequenceId) {
        let running = self.group.iter_mut().flat_map(|group| &mut group.running);
        if let Some(sequence) = running.chain(self.line.iter_mut()).find(|sequence| sequence.id == id) {
            sequence.mask_arrived();
        }
    }

    /// Ends a sequence that waits or runs; of one that has ended there is nothing left to end.
    fn end_early(&mut self, id: SequenceId, reason: FinishReason) {
        if !self.ids.contains(&id) {
            return;
        }
        let waiting = self.line.remove(id);
        let found = waiting.or_else(|| {
            let group = self.group.as_mut()?;
            let index = group.running.iter().position(|sequence| sequence.id == id)?;
            Some(group.remove(index))
        });
        if let Some(sequence) = found {
            self.finish(sequence, reason);
        }
    }

    /// Ends those whose deadline has come.
    fn end_late(&mut self) {
        if self.deadline_next.is_none_or(|deadline| self.now < deadline) {
            return;
        }
        let late = |sequence: &Sequence| sequence.deadline.is_some_and(|deadline| deadline <= self.now);
        let late: Vec<SequenceId> =
            self.sequences().filter(|s| late(s)).map(|sequence| sequence.id).collect();
        late.into_iter().for_each(|id| self.end_early(id, FinishReason::Deadline));
        self.deadline_next = self.sequences().filter_map(|sequence| sequence.deadline).min();
    }

    /// All of them: those that run, then those that wait.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.group.iter().flat_map(|group| &group.running).chain(self.line.iter())
    }

    // The step.

    fn apply(&mut self, outcome: StepOutcome) {
        let StepOutcome { epoch, step, sampled, .. } = outcome;
        let in_flight = self.group.as_mut().and_then(|group| group.take_oldest(epoch, step));
        let Some(in_flight) = in_flight else {
            return tracing::debug!(%epoch, %step, "stale outcome ignored");
        };
        if let Err(fault) = in_flight.verify(&sampled) {
            return self.abandon(fault);
        }
        let mut sampled = sampled.into_iter().peekable();
        for &sample in &in_flight.samples {
            let mut accepted = 0;
            while let Some(token) = sampled.next_if(|sampled| sampled.sequence == sample.sequence) {
                self.extend(sample, token);
                accepted += 1;
            }
            self.counters.accepted_tokens += accepted - 1;
            self.settle(sample);
        }
        if let Some(group) = &mut self.group {
            group.spares.take_back_samples(in_flight.samples);
        }
    }

    /// One more token, unless the sequence ended while the step was in flight.
    fn extend(&mut self, sample: Sample, Sampled { token, logprobs, .. }: Sampled) {
        let length_max = self.length_max();
        let Some(group) = &mut self.group else { return };
        let Some(index) = group.find(sample.seat) else { return };
        let sequence = &mut group.running[index];
        sequence.extend(token);
        self.counters.generated_tokens += 1;
        let Usage { cached_tokens, queued, .. } = sequence.usage(self.now);
        self.actions.push_back(Action::Emit {
            sequence: sequence.id,
            token,
            logprobs,
            cached_tokens,
            queued,
        });
        if let Some(reason) = sequence.end(length_max) {
            let sequence = group.remove(index);
            self.finish(sequence, reason);
        }
    }

    fn settle(&mut self, sample: Sample) {
        let Some(group) = self.group.as_mut().filter(|_| sample.drafts > 0) else { return };
        if let Some(index) = group.find(sample.seat) {
            group.running[index].settle_drafts();
        }
    }

    /// The one place where a sequence that was taken in ends.
    fn finish(&mut self, sequence: Sequence, reason: FinishReason) {
        let (id, usage) = (sequence.id, sequence.usage(self.now));
        let alive = self.now.saturating_sub(sequence.arrived_at);
        tracing::debug!(sequence = %id, ?reason, ?usage, ?alive, "finished");
        self.ids.remove(&id);
        self.line.leave(sequence.account());
        self.line.end_trial(id);
        self.actions.push_back(Action::Finish { sequence: id, reason, usage });
    }
}
