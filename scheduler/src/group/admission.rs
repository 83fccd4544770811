//! Who is taken in from the line, with the beginning that the cache has of it.

use super::Group;
use crate::batch::Batch;
use crate::cache::{Prefix, blocks_for};
use crate::event::Trial;
use crate::line::Line;
use crate::load::Counters;
use crate::sequence::{Awaited, Sequence};
use crate::settings::Settings;
use flotilla_shared::SequenceId;
use flotilla_shared::step::BLOCK_TOKENS;

/// Whether one who waits can be taken in.
enum Fit {
    /// With the beginning that it finds.
    Yes(Prefix),
    /// Soon: another computes what it begins with, which is told, or its mask is being made.
    Later(Option<Awaited>),
    No,
}

impl Group {
    /// Takes in who is next while they fit. Who waits for a prefix that another computes at this moment, or for a mask, is
    /// passed over, and keeps its place. Who does not fit holds up all behind it: smaller ones would take what it waits for.
    pub(super) fn admit(
        &mut self,
        settings: &Settings,
        line: &mut Line,
        batch: &mut Batch,
        counters: &mut Counters,
    ) {
        if let Some(Trial { sequence, .. }) = line.on_trial {
            return self.admit_only(sequence, settings, line, batch, counters);
        }
        batch.charge(line);
        while self.has_seat(settings, batch)
            && let Some(next) = line.peek()
        {
            match self.fits(next, settings) {
                Fit::Yes(prefix) => {
                    let sequence = line.pop().expect("looked at just now");
                    self.seat(sequence, prefix, batch, counters);
                    // At once: who has had a row less than the others would fill all seats.
                    batch.charge(line);
                }
                Fit::Later(awaited) if line.pass_over(awaited) => {}
                Fit::Later(_) | Fit::No => break,
            }
        }
        line.pass_nobody();
    }

    fn admit_only(
        &mut self,
        id: SequenceId,
        settings: &Settings,
        line: &mut Line,
        batch: &mut Batch,
        counters: &mut Counters,
    ) {
        if !self.has_seat(settings, batch) {
            return;
        }
        let Some(Fit::Yes(prefix)) = line.find_mut(id).map(|next| self.fits(next, settings)) else { return };
        let sequence = line.remove(id).expect("looked at just now");
        self.seat(sequence, prefix, batch, counters);
    }

    fn has_seat(&self, settings: &Settings, batch: &Batch) -> bool {
        batch.rows_free > 0 && self.running.len() < settings.sequences_max
    }

    fn seat(&mut self, mut sequence: Sequence, prefix: Prefix, batch: &mut Batch, counters: &mut Counters) {
        let tokens = sequence.tokens.len();
        let (tables, names) = sequence.tables_and_names();
        self.cache.begin(tables, prefix, names);
        self.cache.grow_full(tables, tokens);
        let cached = prefix.blocks * BLOCK_TOKENS;
        // Who comes back finds its own: that says nothing of how prompts are shared.
        if !sequence.has_run() {
            counters.prefix_queried_tokens += tokens as u64;
            counters.prefix_cached_tokens += cached as u64;
        }
        self.seat_last.0 += 1;
        self.changes += 1;
        sequence.sit(self.seat_last, cached, batch.now);
        sequence.lane = self.lanes.join(batch.lane);
        self.running.push(sequence);
        self.add_rows(self.running.len() - 1, batch);
    }

    /// What the next in line can begin with, if it fits: all its tokens, and a block to grow for each that
    /// runs. Those take one in 16 steps, so what is admitted is not preempted at once, and what is preempted
    /// is not admitted in the same step.
    fn fits(&mut self, next: &mut Sequence, settings: &Settings) -> Fit {
        if !next.is_ready(usize::MAX, false) {
            return Fit::Later(None);
        }
        // Nothing more is found before that: the walk along a long beginning can wait.
        if next.awaits.is_some_and(|(at, id)| self.computes(at, id)) {
            return Fit::Later(next.awaits);
        }
        let refused = Some((self.epoch, self.changes));
        if next.refused == refused {
            return Fit::No;
        }
        // One token at least is computed, for its logits.
        let blocks_max = if settings.prefix_cache { (next.tokens.len() - 1) / BLOCK_TOKENS } else { 0 };
        let prefix = self.cache.find(|at| if at < blocks_max { next.name_of(at) } else { None });
        next.awaits = self.awaited(next, prefix.blocks, blocks_max);
        if next.awaits.is_some() {
            return Fit::Later(next.awaits);
        }
        let full = blocks_for(next.tokens.len()) - prefix.blocks + prefix.free + self.running.len();
        let beyond = usize::from(prefix.blocks * BLOCK_TOKENS < next.tokens.len());
        let window = beyond + prefix.window_free + self.running.len();
        // Full blocks come back only when somebody leaves.
        if full > self.cache.full.free_count() {
            next.refused = refused;
            return Fit::No;
        }
        if window <= self.cache.window.free_count() { Fit::Yes(prefix) } else { Fit::No }
    }

    /// The last block that a prompt which runs has still to compute of what both begin with, block `first` among it.
    fn awaited(&mut self, next: &mut Sequence, first: usize, blocks_max: usize) -> Option<Awaited> {
        let name = if first < blocks_max { next.name_of(first)? } else { return None };
        let mut prompts = self.running.iter_mut().filter(|sequence| is_computing(sequence, first));
        let other = prompts.find_map(|sequence| (sequence.name_of(first)? == name).then_some(sequence))?;
        let shared = next.shared_tokens(other) / BLOCK_TOKENS;
        Some((shared.clamp(first + 1, blocks_max) - 1, other.id))
    }

    /// Whether that one runs, as a prompt, and has this block still to compute.
    fn computes(&self, at: usize, id: SequenceId) -> bool {
        self.running.iter().any(|sequence| sequence.id == id && is_computing(sequence, at))
    }
}

fn is_computing(sequence: &Sequence, at: usize) -> bool {
    sequence.rows_lacking() > 1 && sequence.computed < (at + 1) * BLOCK_TOKENS
}

#[cfg(test)]
mod tests {
    use crate::{Action, Event, Request, Scheduler, Settings};
    use flotilla_shared::step::Sampled;
    use flotilla_shared::{Epoch, KvBlocks, SequenceId, StepOutcome, TokenId};
    use std::time::Duration;

    fn scheduler(blocks: u32) -> Scheduler {
        let mut scheduler = Scheduler::new(Settings::default()).unwrap();
        let kv_blocks = KvBlocks::plain(blocks);
        scheduler.handle(Duration::ZERO, Event::GroupFormed { epoch: Epoch(1), kv_blocks, stages: 1 });
        scheduler
    }

    fn arrive(scheduler: &mut Scheduler, id: u64, prompt: &[TokenId], tokens_max: usize) {
        let (sequence, prompt) = (SequenceId(id), prompt.to_vec());
        let request = Request { sequence, prompt, tokens_max, ..Request::default() };
        scheduler.handle(Duration::ZERO, Event::Arrived(request));
    }

    /// Every plan is carried out at once.
    fn steps(scheduler: &mut Scheduler, count: usize) {
        let mut done = 0;
        while done < count {
            let Some(action) = scheduler.poll() else { return };
            if let Action::Step(plan) = action {
                let work = plan.work.iter().filter(|work| work.sample);
                let sampled = work.map(|it| Sampled { sequence: it.sequence, token: 7, logprobs: None });
                let sampled = sampled.collect();
                let outcome =
                    StepOutcome { epoch: plan.epoch, step: plan.step, sampled, ..StepOutcome::default() };
                scheduler.handle(Duration::ZERO, Event::Stepped(outcome));
                done += 1;
            }
        }
    }

    fn walked(scheduler: &Scheduler) -> usize {
        scheduler.group.as_ref().expect("a group").cache.walked.get()
    }

    #[test]
    fn who_waits_for_a_long_beginning_walks_it_when_it_is_there() {
        let mut scheduler = scheduler(4000);
        let prompt: Vec<TokenId> = (0..16_000).collect();
        (1..=8).for_each(|id| arrive(&mut scheduler, id, &prompt, 2));
        steps(&mut scheduler, 25);
        assert!(walked(&scheduler) < 300, "{} blocks while another computes them", walked(&scheduler));
        steps(&mut scheduler, 40);
        assert_eq!(scheduler.load().sequences_waiting + scheduler.load().sequences_running, 0);
        assert!(walked(&scheduler) < 10 * 1000, "{} blocks", walked(&scheduler));
    }

    #[test]
    fn who_does_not_fit_walks_its_beginning_once_as_long_as_nobody_comes_or_goes() {
        let mut scheduler = scheduler(200);
        let prompt: Vec<TokenId> = (0..2400).collect();
        arrive(&mut scheduler, 1, &prompt[..1600], 1);
        steps(&mut scheduler, 20);
        arrive(&mut scheduler, 2, &[9; 900], 40);
        steps(&mut scheduler, 3);
        arrive(&mut scheduler, 3, &prompt, 2);
        let before = walked(&scheduler);
        steps(&mut scheduler, 20);
        assert_eq!((scheduler.load().sequences_running, scheduler.load().sequences_waiting), (1, 1));
        assert!(walked(&scheduler) - before <= 150, "{} blocks", walked(&scheduler) - before);
        steps(&mut scheduler, 100);
        assert_eq!(scheduler.load().sequences_waiting + scheduler.load().sequences_running, 0);
    }
}
