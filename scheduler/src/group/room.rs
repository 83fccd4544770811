//! Room for a step: blocks for its rows, and nobody beside one that is to be alone.

use super::Group;
use crate::cache::blocks_for;
use crate::event::Trial;
use crate::lanes::Lane;
use crate::line::Line;
use crate::load::Counters;
use crate::sequence::Sequence;
use crate::settings::Settings;

impl Group {
    /// For one that is to be alone: whoever else runs goes back to the line, once nothing is in flight. Until then there is no
    /// step.
    pub(super) fn make_way(&mut self, line: &mut Line, counters: &mut Counters) -> bool {
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

    /// Blocks for a row of each sequence of the lane that decodes, and of the leader. Where they run out, the lowest in
    /// rank gives its own, once nothing is in flight; until then there is no step.
    pub(super) fn make_room(
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
        let knows_tokens = settings.speculation.is_some();
        loop {
            let certain = Certain { leader: self.leader(), lane, length_max, knows_tokens };
            let (full, window) = self.blocks_needed(certain);
            if full <= self.cache.full.free_count() && window <= self.cache.window.free_count() {
                self.take_room(certain);
                return true;
            }
            if !self.in_flight.is_empty() {
                return false;
            }
            self.preempt(line, counters);
        }
    }

    fn blocks_needed(&self, certain: Certain) -> (usize, usize) {
        let (mut full, mut window) = (0, 0);
        for (at, sequence) in self.running.iter().enumerate() {
            if certain.has_row(at, sequence) {
                let blocks = blocks_for(sequence.computed + 1);
                full += blocks.saturating_sub(sequence.tables.full.len());
                window += blocks.saturating_sub(sequence.tables.window_end());
            }
        }
        (full, window)
    }

    /// Before guesses and prompts take what is left.
    fn take_room(&mut self, certain: Certain) {
        for (at, sequence) in self.running.iter_mut().enumerate() {
            if certain.has_row(at, sequence) {
                self.cache.grow(&mut sequence.tables, sequence.computed + 1);
            }
        }
    }

    /// The highest priority number, and of those the last seat. Never the leader, which fits alone.
    fn preempt(&mut self, line: &mut Line, counters: &mut Counters) {
        assert!(self.running.len() > 1, "one sequence alone fits");
        let ranks = self.running.iter().map(Sequence::rank).enumerate();
        let (index, _) = ranks.max_by_key(|(_, rank)| *rank).expect("two at least");
        let sequence = self.remove(index);
        tracing::debug!(sequence = %sequence.id, tokens = sequence.tokens.len(), "preempted");
        counters.preemptions += 1;
        line.resume(sequence);
    }
}

/// Who has a row for certain in a step of the lane.
#[derive(Clone, Copy)]
struct Certain {
    leader: Option<usize>,
    lane: Lane,
    length_max: usize,
    knows_tokens: bool,
}

impl Certain {
    fn has_row(self, at: usize, sequence: &Sequence) -> bool {
        let is_due = (self.leader == Some(at) || sequence.decodes()) && sequence.takes_part(self.lane);
        is_due && sequence.is_ready(self.length_max, self.knows_tokens)
    }
}
