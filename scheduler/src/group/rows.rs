//! The rows of a step: those that decode have one each, prompts share the rest.

use super::Group;
use crate::batch::Batch;
use crate::drafts::{Speculation, propose};
use crate::line::Line;
use crate::load::Counters;
use crate::sequence::Sequence;
use crate::settings::Settings;
use flotilla_shared::TokenId;
use flotilla_shared::step::BLOCK_TOKENS;

impl Group {
    /// One row each of the step's lane, for which there is room, and guesses after it while rows are left for them.
    pub(super) fn add_decodes(
        &mut self,
        settings: &Settings,
        length_max: usize,
        line: &Line,
        batch: &mut Batch,
        counters: &mut Counters,
    ) {
        let (speculation, lane) = (settings.speculation, batch.lane);
        let decodes = |sequence: &Sequence| {
            let is_due = sequence.lane == lane && sequence.decodes();
            is_due && sequence.is_ready(length_max, speculation.is_some())
        };
        let count = self.running.iter().filter(|sequence| decodes(sequence)).count();
        let mut for_guesses = match speculation {
            Some(_) => self.rows_for_guesses(settings, length_max, line, batch.rows_free - count),
            None => 0,
        };
        for sequence in self.running.iter_mut().filter(|sequence| decodes(sequence)) {
            self.drafts.clear();
            if let Some(speculation) = speculation.filter(|_| sequence.may_draft()) {
                guess(sequence, &speculation, for_guesses, length_max, &mut self.drafts);
            }
            let end = sequence.computed + 1 + self.drafts.len();
            let end = self.cache.grow(&mut sequence.tables, end);
            self.drafts.truncate(end - sequence.computed - 1);
            for_guesses -= self.drafts.len();
            counters.drafted_tokens += self.drafts.len() as u64;
            batch.add(sequence, 1, &self.drafts);
            self.cache.name_settled(sequence);
        }
    }

    /// Of so many rows that are left by those who decode: half where a prompt wants the others, for guesses of many
    /// could take them all, step after step.
    fn rows_for_guesses(&self, settings: &Settings, length_max: usize, line: &Line, left: usize) -> usize {
        let has_seat = self.running.len() < settings.sequences_max;
        let may_come = line.len() > 0 && has_seat && !line.is_refused((self.epoch, self.changes));
        let is_wanted = may_come || self.running.iter().any(|sequence| is_prompt(sequence, length_max));
        if is_wanted { left / 2 } else { left }
    }

    /// Prompts share the rest. The first of them in rank has at least half, and all that nobody wants who is as important:
    /// shorter ones go before it, so that a long prompt does not hold up short ones, and so do new ones.
    pub(super) fn add_prompts(
        &mut self,
        settings: &Settings,
        length_max: usize,
        line: &mut Line,
        batch: &mut Batch,
        counters: &mut Counters,
    ) {
        let prompts = self.running.iter().filter(|sequence| is_prompt(sequence, length_max));
        let first = prompts.min_by_key(|sequence| sequence.rank());
        let (priority, lacking) = first.map_or((i32::MAX, 0), |first| (first.priority, first.rows_lacking()));
        let half = lacking.min(batch.rows_free.div_ceil(2));
        batch.rows_free -= half;
        self.add_shorter(priority, lacking, length_max, batch);
        batch.rows_free += half;
        let is_next_less = line.peek().is_some_and(|next| next.priority > priority);
        let reserved = if is_next_less { lacking.min(batch.rows_free) } else { half };
        batch.rows_free -= reserved;
        let before = self.running.len();
        self.admit(settings, line, batch, counters);
        batch.rows_free += reserved;
        let rest = self.running[..before].iter().enumerate().filter(|(_, it)| is_prompt(it, length_max));
        let mut ranked = std::mem::take(&mut self.ranked);
        ranked.extend(rest.map(|(at, sequence)| (sequence.rank(), at)));
        ranked.sort_unstable();
        ranked.drain(..).for_each(|(_, at)| self.add_rows(at, batch));
        self.ranked = ranked;
    }

    /// Prompts as important as the first, that lack less than it.
    fn add_shorter(&mut self, priority: i32, lacking: usize, length_max: usize, batch: &mut Batch) {
        let shorter = |it: &Sequence| it.priority == priority && it.rows_lacking() < lacking;
        let prompts = self.running.iter().enumerate().filter(|(_, it)| is_prompt(it, length_max));
        let mut shortest = std::mem::take(&mut self.shortest);
        shortest.extend(prompts.filter(|(_, it)| shorter(it)).map(|(at, it)| (it.rows_lacking(), at)));
        shortest.sort_unstable();
        shortest.drain(..).for_each(|(_, at)| self.add_rows(at, batch));
        self.shortest = shortest;
    }

    /// As many rows of one sequence as are left, and as it gets blocks for, unless it has rows already. It
    /// leaves a window block to each other that runs; the leader has one already.
    pub(super) fn add_rows(&mut self, at: usize, batch: &mut Batch) {
        let spare = self.running.len() - 1;
        let sequence = &mut self.running[at];
        if batch.rows_free == 0 || batch.plan.work.iter().any(|work| work.sequence == sequence.id) {
            return;
        }
        let window_blocks =
            self.cache.window.free_count().saturating_sub(spare) + sequence.tables.window_end();
        let end = sequence.computed + sequence.rows_lacking().min(batch.rows_free);
        let end = end.min((window_blocks * BLOCK_TOKENS).max(sequence.computed));
        let end = self.cache.grow(&mut sequence.tables, end);
        batch.add(sequence, end.saturating_sub(sequence.computed), &[]);
        self.cache.name_settled(sequence);
    }
}

/// Whether it has rows of a prompt for the next step.
fn is_prompt(sequence: &Sequence, length_max: usize) -> bool {
    sequence.rows_lacking() > 1 && sequence.is_ready(length_max, false)
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
