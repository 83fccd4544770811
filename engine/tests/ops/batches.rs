//! Sequences with block tables that are shuffled over the pools of both kinds of layers, and steps over them.
//! A window table loses its head as its sequence grows, and the blocks go to others, who write over them.

use crate::model::Random;
use crate::subject::KV_BLOCKS;
use flotilla_engine::batch::{Batch, Table};
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{BlockId, ModelSpec, TokenId};
use std::collections::BTreeSet;

/// Rows of one sequence in a step.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub sequence: usize,
    pub rows: usize,
    /// Take the logits of the last row.
    pub logits: bool,
}

/// `rows` of a sequence, without logits.
pub const fn rows(sequence: usize, rows: usize) -> Work {
    Work { sequence, rows, logits: false }
}

/// One more token of a sequence, with logits.
pub const fn decode(sequence: usize) -> Work {
    Work { sequence, rows: 1, logits: true }
}

/// Which sequence and which position a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub sequence: usize,
    pub position: usize,
}

/// A batch, and what its rows are.
pub struct Step {
    pub batch: Batch,
    pub places: Vec<Place>,
}

impl Step {
    pub fn rows(&self) -> usize {
        self.places.len()
    }
}

/// Sequences as they grow.
pub struct Sequences {
    random: Random,
    vocab: usize,
    window: usize,
    free_full: Vec<BlockId>,
    free_window: Vec<BlockId>,
    sequences: Vec<Sequence>,
    /// Window blocks that several sequences have: they are not given to others.
    shared: BTreeSet<BlockId>,
    /// A mistake, for checks that must notice it: window blocks go to others while they are seen.
    pub gives_too_early: bool,
}

#[derive(Clone, Default)]
struct Sequence {
    length: usize,
    full: Vec<BlockId>,
    window: Vec<BlockId>,
    window_gone: usize,
}

impl Sequences {
    pub fn new(count: usize, spec: &ModelSpec, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut shuffled = |count: u32| {
            let mut free: Vec<BlockId> = (0..count).map(BlockId).collect();
            for last in (1..free.len()).rev() {
                free.swap(last, random.below(last + 1));
            }
            free
        };
        Sequences {
            free_full: shuffled(KV_BLOCKS.full),
            free_window: shuffled(KV_BLOCKS.window),
            sequences: vec![Sequence::default(); count],
            shared: BTreeSet::new(),
            gives_too_early: false,
            vocab: spec.vocab,
            window: spec.window,
            random,
        }
    }

    /// The next rows of some sequences, with random tokens.
    pub fn step(&mut self, works: &[Work]) -> Step {
        let (mut batch, mut places) = (Batch::default(), Vec::new());
        for work in works {
            let tokens: Vec<TokenId> =
                (0..work.rows).map(|_| self.random.below(self.vocab) as TokenId).collect();
            let position = self.sequences[work.sequence].length;
            let end = position + work.rows;
            self.forget_unseen(work.sequence);
            self.grow(work.sequence, end);
            let Sequence { full, window, window_gone, .. } = &self.sequences[work.sequence];
            let window = Table { gone: *window_gone, blocks: window };
            let rows = batch.push(&tokens, position as u32, Table::whole(full), window);
            if work.logits {
                batch.logit_rows.push(rows.end - 1);
            }
            places.extend((position..end).map(|position| Place { sequence: work.sequence, position }));
        }
        Step { batch, places }
    }

    /// `to`, which has nothing yet, begins with the whole blocks of `from`.
    pub fn share(&mut self, from: usize, to: usize) {
        let mut sequence = self.sequences[from].clone();
        let blocks = sequence.length / BLOCK_TOKENS;
        sequence.length = blocks * BLOCK_TOKENS;
        sequence.full.truncate(blocks);
        sequence.window.truncate(blocks - sequence.window_gone);
        self.shared.extend(&sequence.window);
        self.sequences[to] = sequence;
    }

    /// Window blocks that no row from the next one on sees become free.
    fn forget_unseen(&mut self, sequence: usize) {
        let Sequence { length, window, window_gone, .. } = &mut self.sequences[sequence];
        let gone = (*length + 1).saturating_sub(self.window) / BLOCK_TOKENS;
        let unseen = window.drain(..gone - *window_gone);
        self.free_window.extend(unseen.filter(|block| !self.shared.contains(block)));
        *window_gone = gone;
        if self.gives_too_early {
            self.free_window.extend(window.first());
        }
    }

    fn grow(&mut self, sequence: usize, end: usize) {
        let Sequence { length, full, window, window_gone } = &mut self.sequences[sequence];
        let needed = end.div_ceil(BLOCK_TOKENS);
        while full.len() < needed {
            full.push(self.free_full.pop().expect("the cache holds all sequences"));
        }
        while *window_gone + window.len() < needed {
            window.push(self.free_window.pop().expect("the cache holds all windows"));
        }
        *length = end;
    }
}
