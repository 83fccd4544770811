//! What is always true, checked after every event and every plan in debug builds. A violation is a
//! mistake of ours: it panics, with the values.

use crate::blocks::blocks_for;
use crate::group::Group;
use crate::scheduler::Scheduler;
use flotilla_shared::{SequenceId, StepPlan};
use std::collections::BTreeSet;

impl Scheduler {
    pub(crate) fn check(&self) {
        self.check_line();
        self.check_waiting();
        if let Some(group) = &self.group {
            assert!(group.running.len() <= self.settings.sequences_max, "more sequences than sequences_max");
            group.check_running();
            group.check_blocks();
        }
    }

    /// One line in order of arrival, nobody in it twice, nobody in it who should have ended.
    fn check_line(&self) {
        assert!(self.sequences().is_sorted_by(|a, b| a.arrival < b.arrival), "the line is out of order");
        let ids: BTreeSet<SequenceId> = self.sequences().map(|sequence| sequence.id).collect();
        assert_eq!(ids.len(), self.sequences().count(), "a sequence stands twice in the line");
        for sequence in self.sequences() {
            assert_eq!(sequence.end(self.length_max()), None, "sequence {} should have ended", sequence.id);
        }
    }

    fn check_waiting(&self) {
        let waiting_max = self.settings.waiting_max + self.settings.sequences_max;
        assert!(self.waiting.len() <= waiting_max, "the queue is not bounded");
        for sequence in &self.waiting {
            let held = (sequence.computed, sequence.blocks.len());
            assert_eq!(held, (0, 0), "sequence {} waits and holds (positions, blocks)", sequence.id);
        }
    }

    pub(crate) fn check_plan(&self, plan: &StepPlan) {
        let tokens = plan.token_count();
        let tokens_max = self.settings.tokens_per_step_max;
        assert!((1..=tokens_max).contains(&tokens), "a step of {tokens} tokens, {tokens_max} at most");
        let oldest = self.sequences().next().map(|sequence| sequence.id);
        assert!(plan.work.iter().any(|work| Some(work.sequence) == oldest), "the oldest has no rows");
        let working: BTreeSet<SequenceId> = plan.work.iter().map(|work| work.sequence).collect();
        assert_eq!(working.len(), plan.work.len(), "a sequence works twice in a step");
        for admission in &plan.admit {
            assert!(working.contains(&admission.sequence), "{} admitted for nothing", admission.sequence);
        }
    }
}

impl Group {
    /// Tables hold what was computed, and no more than the tokens need.
    fn check_running(&self) {
        for sequence in &self.running {
            let (id, table) = (sequence.id, sequence.blocks.len());
            assert!(sequence.computed <= sequence.tokens.len(), "sequence {id} computed unknown tokens");
            assert!(table >= blocks_for(sequence.computed), "the table of {id} is too short: {table}");
            assert!(table <= blocks_for(sequence.tokens.len()), "the table of {id} is too long: {table}");
            let sampling =
                self.in_flight.as_ref().is_some_and(|step| step.samples.iter().any(|s| s.sequence == id));
            assert_eq!(
                sequence.rows_lacking() == 0,
                sampling,
                "{id} lacks no row exactly when a token is due"
            );
        }
    }

    /// Every block is owned once, by the sequence in whose table it is, or free.
    fn check_blocks(&self) {
        let mut owned = 0;
        for sequence in &self.running {
            for &block in &sequence.blocks {
                assert_eq!(self.pool.owner(block), Some(sequence.id), "block {block} is owned by another");
            }
            let distinct: BTreeSet<_> = sequence.blocks.iter().collect();
            assert_eq!(
                distinct.len(),
                sequence.blocks.len(),
                "a block twice in the table of {}",
                sequence.id
            );
            owned += distinct.len();
        }
        let free: BTreeSet<_> = self.pool.free_blocks().iter().collect();
        assert!(free.iter().all(|&&block| self.pool.owner(block).is_none()), "a free block is owned");
        assert_eq!(free.len(), self.pool.free_count(), "a block is free twice");
        assert_eq!(owned + free.len(), self.pool.count(), "blocks are lost");
    }
}
