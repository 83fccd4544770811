//! Sequences with block tables that are shuffled over the cache, and steps over them.

use crate::model::Random;
use crate::subject::KV_BLOCKS;
use flotilla_engine::batch::Batch;
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{BlockId, TokenId};

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
    free: Vec<BlockId>,
    tables: Vec<Vec<BlockId>>,
    lengths: Vec<usize>,
}

impl Sequences {
    pub fn new(count: usize, vocab: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut free: Vec<BlockId> = (0..KV_BLOCKS).map(BlockId).collect();
        for last in (1..free.len()).rev() {
            free.swap(last, random.below(last + 1));
        }
        Sequences { random, vocab, free, tables: vec![Vec::new(); count], lengths: vec![0; count] }
    }

    /// The next rows of some sequences, with random tokens.
    pub fn step(&mut self, works: &[Work]) -> Step {
        let (mut batch, mut places) = (Batch::default(), Vec::new());
        for work in works {
            let position = self.lengths[work.sequence];
            let end = position + work.rows;
            let table = &mut self.tables[work.sequence];
            while table.len() < end.div_ceil(BLOCK_TOKENS) {
                table.push(self.free.pop().expect("the cache holds all sequences"));
            }
            let tokens: Vec<TokenId> =
                (0..work.rows).map(|_| self.random.below(self.vocab) as TokenId).collect();
            let rows = batch.push(&tokens, position as u32, table);
            if work.logits {
                batch.logit_rows.push(rows.end - 1);
            }
            places.extend((position..end).map(|position| Place { sequence: work.sequence, position }));
            self.lengths[work.sequence] = end;
        }
        Step { batch, places }
    }
}
