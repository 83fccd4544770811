//! What is always true, checked after every event and every plan in debug builds. A violation is a
//! mistake of ours: it panics, with the values.

use crate::cache::blocks_for;
use crate::event::Trial;
use crate::group::Group;
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use crate::settings::Settings;
use flotilla_shared::{BlockId, SequenceId, StepPlan};
use std::collections::{BTreeMap, BTreeSet};

impl Scheduler {
    pub(crate) fn check(&self) {
        self.check_line();
        self.check_waiting();
        if let Some(group) = &self.group {
            let Settings { sequences_max, .. } = self.settings;
            let steps_in_flight_max = group.lanes.steps_in_flight_max(&self.settings);
            assert!(group.running.len() <= sequences_max, "more sequences than sequences_max");
            assert!(group.in_flight.len() <= steps_in_flight_max, "more steps than steps_in_flight_max");
            group.check_running(&self.settings);
            group.check_lanes(&self.settings);
            group.check_blocks();
        }
    }

    /// Nobody is in it twice, nobody in it who should have ended, and every client's account is right.
    fn check_line(&self) {
        let ids: BTreeSet<SequenceId> = self.sequences().map(|sequence| sequence.id).collect();
        assert_eq!(ids.len(), self.sequences().count(), "a sequence stands twice in the line");
        for sequence in self.sequences() {
            assert_eq!(sequence.end(self.length_max()), None, "sequence {} should have ended", sequence.id);
        }
        assert_eq!(self.line.accounted(), ids.len(), "accounts of clients");
        assert!(
            self.line.on_trial.is_none_or(|trial| ids.contains(&trial.sequence)),
            "all wait for one that is gone"
        );
    }

    fn check_waiting(&self) {
        let came = self.line.iter().filter(|sequence| !sequence.has_run() && !sequence.adopted);
        assert_eq!(self.line.iter().count(), self.line.len(), "the line is miscounted");
        assert!(came.count() <= self.settings.waiting_max, "the queue is not bounded");
        for sequence in self.line.iter() {
            let held = (sequence.computed, sequence.pending, sequence.tables.full.len());
            assert_eq!(held, (0, 0, 0), "sequence {} waits and holds (rows, tokens, blocks)", sequence.id);
        }
    }

    pub(crate) fn check_plan(&self, plan: &StepPlan) {
        let tokens = plan.token_count();
        let tokens_max = self.settings.tokens_per_step_max;
        assert!((1..=tokens_max).contains(&tokens), "a step of {tokens} tokens, {tokens_max} at most");
        let working: BTreeSet<SequenceId> = plan.work.iter().map(|work| work.sequence).collect();
        assert_eq!(working.len(), plan.work.len(), "a sequence works twice in a step");
        for admission in &plan.admit {
            assert!(working.contains(&admission.sequence), "{} admitted for nothing", admission.sequence);
            let is_let_in = self.line.on_trial.is_none_or(|trial| trial.sequence == admission.sequence);
            assert!(is_let_in, "{} let in beside one on trial", admission.sequence);
        }
        if let Some(Trial { sequence, alone: true }) = self.line.on_trial {
            let is_alone = working.iter().all(|working| *working == sequence);
            assert!(is_alone, "{working:?} work beside {sequence}, which is to be alone");
        }
        let group = self.group.as_ref().expect("a plan is a group's");
        let lane = group.in_flight.back().expect("a plan is in flight").lane;
        for work in plan.work.iter().filter(|work| work.ahead) {
            let sequence = group.running.iter().find(|sequence| sequence.id == work.sequence);
            assert_eq!(sequence.map(|it| it.lane), Some(lane), "{} decodes in another's step", work.sequence);
        }
        // What makes progress certain.
        let leader = group.leader().map(|at| &group.running[at]);
        if let Some(leader) = leader.filter(|leader| !working.contains(&leader.id)) {
            let knows_tokens = self.settings.speculation.is_some() && leader.decodes();
            let is_due = leader.takes_part(lane) && leader.is_ready(self.length_max(), knows_tokens);
            assert!(!is_due, "{} leads, is ready, and has no rows", leader.id);
        }
    }
}

impl Group {
    fn check_running(&self, settings: &Settings) {
        assert!(self.running.is_sorted_by(|a, b| a.seat < b.seat), "seats are out of order");
        for sequence in &self.running {
            self.check_tables(sequence, settings);
            let (id, samples) = (sequence.id, |s: &&crate::batch::Sample| s.seat == sequence.seat);
            let owed = self.in_flight.iter().flat_map(|step| &step.samples).filter(samples).count();
            assert_eq!(sequence.pending, owed, "{id} has tokens pending that no step owes");
            assert!(!sequence.drafting || owed == 1, "{id} drafts in no step");
        }
    }

    /// Lanes know what is in them, are as full as each other, and run ahead no further than one would alone.
    fn check_lanes(&self, settings: &Settings) {
        for (lane, running) in self.lanes.running() {
            let count = self.running.iter().filter(|sequence| sequence.lane == lane).count();
            assert_eq!(running, count, "sequences of {lane:?}");
            assert_eq!(self.lanes.fuller_than(lane), None, "{lane:?} has less to do than another");
            let in_flight = self.in_flight.iter().filter(|step| step.lane == lane).count();
            assert_eq!(self.lanes.in_flight(lane), in_flight, "steps of {lane:?} in flight");
            assert!(in_flight <= settings.steps_in_flight_max, "{in_flight} steps of {lane:?}");
        }
    }

    /// Tables hold what was computed, and no more than the tokens and guesses need.
    fn check_tables(&self, sequence: &Sequence, settings: &Settings) {
        let (id, tables) = (sequence.id, &sequence.tables);
        let drafts = settings.speculation.map_or(0, |speculation| speculation.drafts_max);
        let tokens = sequence.tokens.len() + sequence.pending + drafts;
        assert!(sequence.computed <= tokens, "sequence {id} computed unknown tokens");
        let blocks = blocks_for(sequence.computed)..=blocks_for(tokens);
        let (full, window) = (tables.full.len(), tables.window_end());
        assert!(blocks.contains(&full), "the full table of {id} has {full} blocks, not {blocks:?}");
        assert!(blocks.contains(&window), "the window table of {id} ends at {window}, not in {blocks:?}");
        let settled = if sequence.drafting { sequence.tokens.len() - 1 } else { sequence.computed };
        assert!(tables.window_gone <= self.cache.gone_before(settled), "the window of {id} lacks a block");
    }

    /// Every block is held as often as it stands in tables; what is in none is free.
    fn check_blocks(&self) {
        let tables = || self.running.iter().map(|sequence| &sequence.tables);
        let full = tables().flat_map(|tables| tables.full.iter().copied());
        check_pool(&self.cache.full, full, "full");
        let window = tables().flat_map(|tables| tables.window.iter().copied());
        check_pool(&self.cache.window, window, "window");
    }
}

fn check_pool(pool: &crate::cache::BlockPool, held: impl Iterator<Item = BlockId>, kind: &str) {
    let mut holders: BTreeMap<BlockId, usize> = BTreeMap::new();
    held.for_each(|block| *holders.entry(block).or_default() += 1);
    for (&block, &count) in &holders {
        assert_eq!(pool.holders(block), count, "holders of {kind} block {block}");
    }
    let free: BTreeSet<BlockId> = pool.free_blocks().collect();
    assert!(free.iter().all(|block| !holders.contains_key(block)), "a free {kind} block is in a table");
    assert_eq!(free.len(), pool.free_count(), "a {kind} block is free twice");
    assert_eq!(holders.len() + free.len(), pool.count(), "{kind} blocks are lost");
}
