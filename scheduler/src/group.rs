//! One epoch of a group: what its workers hold, and the next step for them. It dies with the epoch, and
//! with it every block, table and step in flight. Who decodes in which step where there are several stages is told in
//! `lanes.rs`.
//!
//! Steps are carried out in the order in which they are planned. So a block may be given to another
//! sequence while a step that reads it is in flight, and is found by its name from the moment that its rows
//! are planned: in the same step already, since a layer stores the keys of all rows before any row attends.

use crate::batch::{Batch, Sample, Spares};
use crate::cache::{BlockHash, KvCache, Prefix, blocks_for};
use crate::drafts::{Speculation, propose};
use crate::event::{ClientId, GroupFault, Trial};
use crate::lanes::{Lane, Lanes};
use crate::line::Line;
use crate::load::Counters;
use crate::sequence::{Seat, Sequence};
use crate::settings::Settings;
use flotilla_shared::step::{BLOCK_TOKENS, Sampled};
use flotilla_shared::{Epoch, KvBlocks, SequenceId, StepId, StepPlan, TokenId};
use std::collections::VecDeque;
use std::time::Duration;

/// So long a step waits for masks: most take some 0.05 ms, few more than this.
const MASKS_WAIT: Duration = Duration::from_millis(2);

pub struct Group {
    pub epoch: Epoch,
    pub cache: KvCache,
    /// In the order of their seats.
    pub running: Vec<Sequence>,
    seat_last: Seat,
    /// What the workers still hold and must forget with the next plan.
    releases: Vec<SequenceId>,
    step_last: StepId,
    /// Oldest first.
    pub in_flight: VecDeque<InFlight>,
    pub spares: Spares,
    pub lanes: Lanes,
    // Lists that are used again from step to step.
    served: Vec<(ClientId, usize)>,
    shorter: Vec<(usize, usize)>,
    drafts: Vec<TokenId>,
}

impl Group {
    pub fn new(epoch: Epoch, kv_blocks: KvBlocks, stages: usize, settings: &Settings) -> Group {
        let lanes = Lanes::new(stages);
        Group {
            epoch,
            cache: KvCache::new(kv_blocks, settings.window_tokens, settings.prefix_cache),
            running: Vec::with_capacity(settings.sequences_max),
            seat_last: Seat(0),
            releases: Vec::new(),
            step_last: StepId(0),
            in_flight: VecDeque::with_capacity(lanes.steps_in_flight_max(settings)),
            spares: Spares::default(),
            lanes,
            served: Vec::new(),
            shorter: Vec::new(),
            drafts: Vec::new(),
        }
    }

    /// Tokens that a sequence may have: the context, or the whole cache where that is less.
    pub fn length_max(&self, settings: &Settings) -> usize {
        self.cache.capacity_tokens().min(settings.context_max)
    }

    /// The next step, unless enough are in flight or nothing is to be done yet.
    pub fn plan_step(
        &mut self,
        now: Duration,
        settings: &Settings,
        line: &mut Line,
        counters: &mut Counters,
    ) -> Option<StepPlan> {
        if self.in_flight.len() >= self.lanes.steps_in_flight_max(settings) {
            return None;
        }
        if !self.make_way(line, counters) {
            return None;
        }
        let length_max = self.length_max(settings);
        for _ in 0..self.lanes.count() {
            let lane = self.lanes.turn();
            let has_room = self.lanes.in_flight(lane) < settings.steps_in_flight_max;
            if has_room && self.is_worth_a_step(now, settings, length_max, lane) {
                // Whoever lacks blocks keeps its turn until nothing is in flight, and then takes another's.
                if !self.make_room(settings, length_max, lane, line, counters) {
                    return None;
                }
                let plan = self.plan_lane(now, settings, length_max, lane, line, counters);
                if plan.is_some() {
                    self.lanes.pass();
                    return plan;
                }
            }
            self.lanes.pass();
        }
        None
    }

    /// A step in which those of `lane` decode.
    fn plan_lane(
        &mut self,
        now: Duration,
        settings: &Settings,
        length_max: usize,
        lane: Lane,
        line: &mut Line,
        counters: &mut Counters,
    ) -> Option<StepPlan> {
        let (plan, samples) = (self.spares.plan(), self.spares.samples());
        let (mut served, mut spares) = (std::mem::take(&mut self.served), std::mem::take(&mut self.spares));
        let mut batch = Batch {
            now,
            lane,
            rows_free: settings.tokens_per_step_max,
            plan,
            samples,
            served: &mut served,
            spares: &mut spares,
        };
        self.add_decodes(settings, length_max, &mut batch, counters);
        self.add_prompts(settings, length_max, line, &mut batch, counters);
        let (mut plan, samples) = (batch.plan, batch.samples);
        served.drain(..).for_each(|(client, rows)| line.serve(client, rows));
        (self.served, self.spares) = (served, spares);
        if plan.work.is_empty() {
            self.spares.take_back(plan);
            self.spares.take_back_samples(samples);
            return None;
        }
        self.step_last.0 += 1;
        (plan.epoch, plan.step) = (self.epoch, self.step_last);
        plan.release.append(&mut self.releases);
        self.lanes.begin_step(lane);
        self.in_flight.push_back(InFlight { step: plan.step, lane, samples });
        counters.steps += 1;
        Some(plan)
    }

    /// A step with few rows costs about as much as one with all: where most of what runs waits for tokens that
    /// are in flight, the step waits too; and where most are guided, it waits for their masks, but not long,
    /// for how long a mask takes is up to whoever wrote the grammar.
    fn is_worth_a_step(&mut self, now: Duration, settings: &Settings, length_max: usize, lane: Lane) -> bool {
        let knows_tokens = settings.speculation.is_some();
        let (mut waiting, mut ready, mut ready_unguided) = (0, 0, 0);
        let (mut guided, mut masks_lacking) = (0, 0);
        for sequence in self.running.iter().filter(|sequence| sequence.takes_part(lane)) {
            let waits = sequence.waits(length_max, knows_tokens);
            let goes = sequence.is_ready(length_max, knows_tokens);
            (waiting, ready) = (waiting + usize::from(waits), ready + usize::from(goes));
            ready_unguided += usize::from(goes && !sequence.guided);
            guided += usize::from(sequence.guided && (waits || goes));
            masks_lacking += usize::from(waits && sequence.lacks_mask());
        }
        let waits_for_masks = masks_lacking > 0 && guided > ready_unguided;
        let is_idle = self.lanes.in_flight(lane) == 0;
        let masks_until = self.lanes.masks_until(lane);
        if !is_idle || !waits_for_masks || ready == 0 {
            *masks_until = None;
            return !waits_for_masks && (is_idle || waiting <= ready);
        }
        let is_over = *masks_until.get_or_insert(now + MASKS_WAIT) <= now;
        if is_over {
            *masks_until = None;
        }
        is_over
    }

    /// When who is ready goes on without those whose masks are late.
    pub fn wakes_at(&self) -> Option<Duration> {
        self.lanes.wakes_at()
    }

    /// The oldest step in flight, if it is that one, is back.
    pub fn take_oldest(&mut self, epoch: Epoch, step: StepId) -> Option<InFlight> {
        let oldest = self.in_flight.pop_front_if(|oldest| (self.epoch, oldest.step) == (epoch, step))?;
        self.lanes.end_step(oldest.lane);
        Some(oldest)
    }

    /// For one that is to be alone: whoever else runs goes back to the line, once nothing is in flight. Until then there is no
    /// step.
    fn make_way(&mut self, line: &mut Line, counters: &mut Counters) -> bool {
        let Some(Trial { sequence: tried, alone: true }) = line.on_trial else { return true };
        while let Some(last) = self.running.iter().rposition(|sequence| sequence.id != tried) {
            if !self.in_flight.is_empty() {
                // No lane waits for masks meanwhile.
                self.lanes.wait_no_more();
                return false;
            }
            let sequence = self.remove(last);
            tracing::debug!(sequence = %sequence.id, %tried, "makes way");
            counters.preemptions += 1;
            line.resume(sequence);
        }
        true
    }

    // Blocks.

    /// Blocks for a row of each sequence of the lane that decodes, and of the first. Where they run out, the lowest in
    /// rank gives its own, once nothing is in flight; until then there is no step.
    fn make_room(
        &mut self,
        settings: &Settings,
        length_max: usize,
        lane: Lane,
        line: &mut Line,
        counters: &mut Counters,
    ) -> bool {
        for sequence in self.running.iter_mut().filter(|sequence| !sequence.drafting) {
            self.cache.pass(&mut sequence.tables, sequence.computed);
        }
        loop {
            let (full, window) = self.blocks_needed(settings, length_max, lane);
            if full <= self.cache.full.free_count() && window <= self.cache.window.free_count() {
                return true;
            }
            if !self.in_flight.is_empty() {
                return false;
            }
            self.preempt(line, counters);
        }
    }

    fn blocks_needed(&self, settings: &Settings, length_max: usize, lane: Lane) -> (usize, usize) {
        let knows_tokens = settings.speculation.is_some();
        let (mut full, mut window) = (0, 0);
        for (at, sequence) in self.running.iter().enumerate() {
            let has_row = (at == 0 || sequence.decodes()) && sequence.takes_part(lane);
            if has_row && sequence.is_ready(length_max, knows_tokens) {
                let blocks = blocks_for(sequence.computed + 1);
                full += blocks.saturating_sub(sequence.tables.full.len());
                window += blocks.saturating_sub(sequence.tables.window_end());
            }
        }
        (full, window)
    }

    /// The highest priority number, and of those the last seat. Never the first, which fits alone.
    fn preempt(&mut self, line: &mut Line, counters: &mut Counters) {
        let others = self.running.iter().enumerate().skip(1);
        let last = others.max_by_key(|(_, sequence)| (sequence.priority, sequence.seat));
        let (index, _) = last.expect("one sequence alone fits");
        let sequence = self.remove(index);
        tracing::debug!(sequence = %sequence.id, tokens = sequence.tokens.len(), "preempted");
        counters.preemptions += 1;
        line.resume(sequence);
    }

    // Rows.

    /// One row each of the step's lane, and guesses after it while rows are left.
    fn add_decodes(
        &mut self,
        settings: &Settings,
        length_max: usize,
        batch: &mut Batch,
        counters: &mut Counters,
    ) {
        let (speculation, lane) = (settings.speculation, batch.lane);
        let decodes = |sequence: &Sequence| {
            let is_due = sequence.lane == lane && sequence.decodes();
            is_due && sequence.is_ready(length_max, speculation.is_some())
        };
        let mut left = 0;
        for sequence in self.running.iter_mut().filter(|sequence| decodes(sequence)) {
            left += 1;
            self.cache.grow(&mut sequence.tables, sequence.computed + 1);
        }
        for sequence in self.running.iter_mut().filter(|sequence| decodes(sequence)) {
            left -= 1;
            self.drafts.clear();
            if let Some(speculation) = speculation.filter(|_| sequence.may_draft()) {
                let rows = batch.rows_free.saturating_sub(left + 1);
                guess(sequence, &speculation, rows, length_max, &mut self.drafts);
            }
            let end = sequence.computed + 1 + self.drafts.len();
            let end = self.cache.grow(&mut sequence.tables, end);
            self.drafts.truncate(end - sequence.computed - 1);
            counters.drafted_tokens += self.drafts.len() as u64;
            batch.add(sequence, 1, &self.drafts);
            self.cache.name_settled(sequence);
        }
    }

    /// Prompts share the rest. The first of them has at least half, and all that nobody else wants; shorter
    /// ones go before it, so that a long prompt does not hold up short ones, and so do new ones.
    fn add_prompts(
        &mut self,
        settings: &Settings,
        length_max: usize,
        line: &mut Line,
        batch: &mut Batch,
        counters: &mut Counters,
    ) {
        let is_prompt = |sequence: &Sequence| {
            !sequence.decodes() && sequence.rows_lacking() > 1 && sequence.is_ready(length_max, false)
        };
        let first = self.running.iter().position(is_prompt);
        let lacking = first.map_or(0, |first| self.running[first].rows_lacking());
        let reserved = lacking.min(batch.rows_free.div_ceil(2));
        batch.rows_free -= reserved;
        let mut shorter = std::mem::take(&mut self.shorter);
        let prompts = self.running.iter().enumerate().filter(|(_, sequence)| is_prompt(sequence));
        shorter.extend(prompts.map(|(at, s)| (s.rows_lacking(), at)).filter(|&(rows, _)| rows < lacking));
        shorter.sort_unstable();
        shorter.drain(..).for_each(|(_, at)| self.add_rows(at, batch));
        self.shorter = shorter;
        let before = self.running.len();
        self.admit(settings, line, batch, counters);
        batch.rows_free += reserved;
        if let Some(first) = first {
            for at in first..before {
                if is_prompt(&self.running[at]) && batch.rows_free > 0 {
                    self.add_rows(at, batch);
                }
            }
        }
    }

    /// As many rows of one sequence as are left, and as it gets blocks for, unless it has rows already. It
    /// leaves a window block to each other that runs; the first may take the last one.
    fn add_rows(&mut self, at: usize, batch: &mut Batch) {
        let spare = self.running.len() - 1;
        let sequence = &mut self.running[at];
        if batch.plan.work.iter().any(|work| work.sequence == sequence.id) {
            return;
        }
        let window_blocks =
            self.cache.window.free_count().saturating_sub(spare) + sequence.tables.window_end();
        let least = sequence.computed + usize::from(at == 0);
        let end = sequence.computed + sequence.rows_lacking().min(batch.rows_free);
        let end = end.min((window_blocks * BLOCK_TOKENS).max(least));
        let end = self.cache.grow(&mut sequence.tables, end);
        batch.add(sequence, end.saturating_sub(sequence.computed), &[]);
        self.cache.name_settled(sequence);
    }

    /// Takes in who is next while they fit. Who waits for a prefix that another computes at this moment is
    /// passed over, and looked at again before all others.
    fn admit(&mut self, settings: &Settings, line: &mut Line, batch: &mut Batch, counters: &mut Counters) {
        if let Some(Trial { sequence, .. }) = line.on_trial {
            return self.admit_only(sequence, settings, line, batch, counters);
        }
        let mut at = 0;
        while let Some(next) = line.aside(at).filter(|_| self.has_seat(settings, batch)) {
            match self.fits(next, settings) {
                Fit::Yes(prefix) => {
                    let sequence = line.take_aside(at).expect("looked at just now");
                    self.seat(sequence, prefix, batch, counters);
                }
                Fit::PrefixIsComing => at += 1,
                Fit::No => return,
            }
        }
        while let Some(next) = line.peek().filter(|_| self.has_seat(settings, batch)) {
            match self.fits(next, settings) {
                Fit::Yes(prefix) => {
                    let sequence = line.pop().expect("looked at just now");
                    self.seat(sequence, prefix, batch, counters);
                }
                Fit::PrefixIsComing if line.set_aside() => {}
                Fit::PrefixIsComing | Fit::No => return,
            }
        }
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
        counters.prefix_queried_tokens += tokens as u64;
        counters.prefix_cached_tokens += cached as u64;
        self.seat_last.0 += 1;
        sequence.sit(self.seat_last, cached, batch.now);
        sequence.lane = self.lanes.join(batch.lane);
        self.running.push(sequence);
        self.add_rows(self.running.len() - 1, batch);
    }

    /// What the next in line can begin with, if it fits: all its tokens, and a block to grow for each that
    /// runs. Those take one in 16 steps, so what is admitted is not preempted at once, and what is preempted
    /// is not admitted in the same step. It waits as well for its mask.
    fn fits(&mut self, next: &mut Sequence, settings: &Settings) -> Fit {
        if !next.is_ready(usize::MAX, false) {
            return Fit::No;
        }
        // One token at least is computed, for its logits.
        let blocks_max = if settings.prefix_cache { (next.tokens.len() - 1) / BLOCK_TOKENS } else { 0 };
        let prefix = self.cache.find(|at| if at < blocks_max { next.name_of(at) } else { None });
        if prefix.blocks < blocks_max
            && let Some(name) = next.name_of(prefix.blocks)
            && self.computes(prefix.blocks, name)
        {
            return Fit::PrefixIsComing;
        }
        let full = blocks_for(next.tokens.len()) - prefix.blocks + prefix.free + self.running.len();
        let beyond = usize::from(prefix.blocks * BLOCK_TOKENS < next.tokens.len());
        let window = beyond + prefix.window_free + self.running.len();
        let fits = full <= self.cache.full.free_count() && window <= self.cache.window.free_count();
        if fits { Fit::Yes(prefix) } else { Fit::No }
    }

    /// Whether a prompt that runs has this block still to compute.
    fn computes(&mut self, at: usize, name: BlockHash) -> bool {
        let prompts = self.running.iter_mut().filter(|sequence| sequence.rows_lacking() > 1);
        let mut lacking = prompts.filter(|sequence| sequence.computed < (at + 1) * BLOCK_TOKENS);
        lacking.any(|sequence| sequence.name_of(at) == Some(name))
    }

    /// Takes a running sequence out. What is complete of its blocks can still be found.
    pub fn remove(&mut self, index: usize) -> Sequence {
        let mut sequence = self.running.remove(index);
        self.cache.name_settled(&mut sequence);
        self.cache.give_back(&mut sequence.tables);
        if sequence.announced {
            self.releases.push(sequence.id);
        }
        sequence.start_over();
        self.lanes.leave(sequence.lane);
        self.even_out(sequence.lane);
        sequence
    }

    /// After one has left `lane`: the last of a lane that has two more goes over, so that the stages have equal
    /// work. Its next row may have to wait for the step before, this once.
    fn even_out(&mut self, lane: Lane) {
        if let Some(fuller) = self.lanes.fuller_than(lane)
            && let Some(last) = self.running.iter_mut().rfind(|sequence| sequence.lane == fuller)
        {
            last.lane = lane;
            self.lanes.move_one(fuller, lane);
        }
    }

    pub fn find(&self, seat: Seat) -> Option<usize> {
        self.running.binary_search_by_key(&seat, |sequence| sequence.seat).ok()
    }
}

/// Whether one who waits can be taken in.
enum Fit {
    /// With the beginning that it finds.
    Yes(Prefix),
    /// Another computes what it begins with.
    PrefixIsComing,
    No,
}

/// As many guesses as may be right and have rows.
fn guess(
    sequence: &Sequence,
    speculation: &Speculation,
    rows: usize,
    length_max: usize,
    drafts: &mut Vec<TokenId>,
) {
    let useful = sequence.tokens_left(length_max).saturating_sub(1);
    propose(&sequence.tokens, speculation, speculation.drafts_max.min(useful).min(rows), drafts);
}

/// A step that the workers run or will, and the tokens that it owes.
pub struct InFlight {
    pub step: StepId,
    pub lane: Lane,
    pub samples: Vec<Sample>,
}

impl InFlight {
    /// The tokens of each sample, if these are what was asked for, in order.
    pub fn verify(&self, sampled: &[Sampled]) -> Result<(), GroupFault> {
        let step = self.step;
        let miscounted =
            || GroupFault::SampledCount { step, expected: self.samples.len(), found: sampled.len() };
        let mut rest = sampled;
        for sample in &self.samples {
            let first = rest.first().ok_or_else(miscounted)?;
            if first.sequence != sample.sequence {
                let (expected, found) = (sample.sequence, first.sequence);
                return Err(GroupFault::SampledSequence { step, expected, found });
            }
            let own = rest.iter().take_while(|sampled| sampled.sequence == sample.sequence).count();
            if own > sample.drafts + 1 {
                return Err(miscounted());
            }
            rest = &rest[own..];
        }
        if rest.is_empty() { Ok(()) } else { Err(miscounted()) }
    }
}
