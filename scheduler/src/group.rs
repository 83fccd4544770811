//! One epoch of a group: what its workers hold, and the next step for them. It dies with the epoch, and
//! with it every block, table and step in flight. Who decodes in which step where there are several stages is told in
//! `lanes.rs`.
//!
//! Steps are carried out in the order in which they are planned. So a block may be given to another
//! sequence while a step that reads it is in flight, and is found by its name from the moment that its rows
//! are planned: in the same step already, since a layer stores the keys of all rows before any row attends.

mod admission;
mod room;
mod rows;

use crate::accounts::AccountId;
use crate::batch::{Batch, Sample, Spares};
use crate::cache::KvCache;
use crate::event::GroupFault;
use crate::lanes::{Lane, Lanes};
use crate::line::Line;
use crate::load::Counters;
use crate::sequence::{Seat, Sequence};
use crate::settings::Settings;
use flotilla_shared::step::Sampled;
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
    /// Counts who sat down and who left: while nobody does, who did not fit does not fit.
    changes: u64,
    /// What the workers still hold and must forget with the next plan.
    releases: Vec<SequenceId>,
    step_last: StepId,
    /// Oldest first.
    pub in_flight: VecDeque<InFlight>,
    pub spares: Spares,
    pub lanes: Lanes,
    // Lists that are used again from step to step.
    served: Vec<(AccountId, usize)>,
    shortest: Vec<(usize, usize)>,
    ranked: Vec<((i32, Seat), usize)>,
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
            changes: 0,
            releases: Vec::new(),
            step_last: StepId(0),
            in_flight: VecDeque::with_capacity(lanes.steps_in_flight_max(settings)),
            spares: Spares::default(),
            lanes,
            served: Vec::new(),
            shortest: Vec::new(),
            ranked: Vec::new(),
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
            let may_come = line.len() > 0 && self.running.len() < settings.sequences_max;
            if has_room && self.is_worth_a_step(now, settings, length_max, lane, may_come) {
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
        self.add_decodes(settings, length_max, line, &mut batch, counters);
        self.add_prompts(settings, length_max, line, &mut batch, counters);
        batch.charge(line);
        let (mut plan, samples) = (batch.plan, batch.samples);
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
    /// So it does where nobody who runs is ready, but somebody may come from the line.
    fn is_worth_a_step(
        &mut self,
        now: Duration,
        settings: &Settings,
        length_max: usize,
        lane: Lane,
        may_come: bool,
    ) -> bool {
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
        if !is_idle || !waits_for_masks || (ready == 0 && !may_come) {
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
    pub fn wakes_at(&self, now: Duration) -> Option<Duration> {
        self.lanes.wakes_at(now)
    }

    /// The oldest step in flight, if it is that one, is back.
    pub fn take_oldest(&mut self, epoch: Epoch, step: StepId) -> Option<InFlight> {
        let oldest = self.in_flight.pop_front_if(|oldest| (self.epoch, oldest.step) == (epoch, step))?;
        self.lanes.end_step(oldest.lane);
        Some(oldest)
    }

    /// Takes a running sequence out. What is complete of its blocks can still be found.
    pub fn remove(&mut self, index: usize) -> Sequence {
        let mut sequence = self.running.remove(index);
        self.changes += 1;
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

    /// The most important that runs, of those the first: it has rows whenever it is ready, and is never preempted.
    pub fn leader(&self) -> Option<usize> {
        let ranks = self.running.iter().map(Sequence::rank).enumerate();
        ranks.min_by_key(|(_, rank)| *rank).map(|(at, _)| at)
    }

    pub fn find(&self, seat: Seat) -> Option<usize> {
        self.running.binary_search_by_key(&seat, |sequence| sequence.seat).ok()
    }
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
