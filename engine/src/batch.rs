//! The rows of one step, laid out for the backend: tokens, positions and block tables of all
//! sequences behind each other, in vectors that are reused from step to step.

use flotilla_shared::{BlockId, TokenId};
use std::ops::Range;

/// T rows of some sequences.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// [T]
    pub tokens: Vec<TokenId>,
    /// [T]
    pub positions: Vec<u32>,
    pub sequences: Vec<BatchSequence>,
    /// Block tables of all sequences, behind each other.
    pub blocks: Vec<BlockId>,
    /// Rows whose logits are wanted, rising.
    pub logit_rows: Vec<usize>,
    /// Keep every row's routing for the caller.
    pub keep_routing: bool,
}

/// The rows of one sequence, in rising positions without a gap.
#[derive(Clone, Debug)]
pub struct BatchSequence {
    /// Into `tokens` and `positions`.
    pub rows: Range<usize>,
    /// Into `blocks`: the whole table, position 0 first.
    pub blocks: Range<usize>,
}

impl Batch {
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.blocks.clear();
        self.logit_rows.clear();
        self.keep_routing = false;
    }

    /// T
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Appends rows at `position` and on, of a sequence with the block table `table`.
    pub fn push(&mut self, tokens: &[TokenId], position: u32, table: &[BlockId]) -> Range<usize> {
        let rows = self.rows()..self.rows() + tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend(position..position + tokens.len() as u32);
        let blocks = self.blocks.len()..self.blocks.len() + table.len();
        self.blocks.extend_from_slice(table);
        self.sequences.push(BatchSequence { rows: rows.clone(), blocks });
        rows
    }

    /// The block table of a sequence.
    pub fn table(&self, sequence: &BatchSequence) -> &[BlockId] {
        &self.blocks[sequence.blocks.clone()]
    }
}
