//! Who is taken in from the line, with the beginning that the cache has of it.

use super::Group;
use crate::batch::Batch;
use crate::cache::{BlockHash, Prefix, blocks_for};
use crate::event::Trial;
use crate::line::Line;
use crate::load::Counters;
use crate::sequence::Sequence;
use crate::settings::Settings;
use flotilla_shared::SequenceId;
use flotilla_shared::step::BLOCK_TOKENS;

/// Whether one who waits can be taken in.
enum Fit {
    /// With the beginning that it finds.
    Yes(Prefix),
    /// Soon: another computes what it begins with, or its mask is being made.
    Later,
    No,
}

impl Group {
    /// Takes in who is next while they fit. Who waits for a prefix that another computes at this moment, or for a mask, is
    /// passed over, and looked at again before all others.
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
        let mut at = 0;
        while let Some(next) = line.aside(at).filter(|_| self.has_seat(settings, batch)) {
            match self.fits(next, settings) {
                Fit::Yes(prefix) => {
                    let sequence = line.take_aside(at).expect("looked at just now");
                    self.seat(sequence, prefix, batch, counters);
                }
                Fit::Later => at += 1,
                Fit::No => return,
            }
        }
        while let Some(next) = line.peek().filter(|_| self.has_seat(settings, batch)) {
            match self.fits(next, settings) {
                Fit::Yes(prefix) => {
                    let sequence = line.pop().expect("looked at just now");
                    self.seat(sequence, prefix, batch, counters);
                }
                Fit::Later if line.set_aside() => {}
                Fit::Later | Fit::No => return,
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
    /// is not admitted in the same step.
    fn fits(&mut self, next: &mut Sequence, settings: &Settings) -> Fit {
        if !next.is_ready(usize::MAX, false) {
            return Fit::Later;
        }
        // Nothing is found before that: the walk along a long beginning can wait.
        if next.awaits.is_some_and(|(at, name)| self.computes(at, name)) {
            return Fit::Later;
        }
        // One token at least is computed, for its logits.
        let blocks_max = if settings.prefix_cache { (next.tokens.len() - 1) / BLOCK_TOKENS } else { 0 };
        let prefix = self.cache.find(|at| if at < blocks_max { next.name_of(at) } else { None });
        if prefix.blocks < blocks_max
            && let Some(name) = next.name_of(prefix.blocks)
            && self.computes(prefix.blocks, name)
        {
            next.awaits = Some((prefix.blocks, name));
            return Fit::Later;
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
}
