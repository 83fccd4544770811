//! The rows of one step, laid out for the backend: tokens, positions and block tables of all
//! sequences behind each other, in vectors that are reused from step to step. Full and window layers have
//! tables of their own, over pools of their own; which blocks are in them is not decided here.

use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{BlockId, LayerKind, TokenId};
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
    full: TableRange,
    window: TableRange,
}

/// Where a table lies in a batch.
#[derive(Clone, Debug)]
struct TableRange {
    gone: usize,
    blocks: Range<usize>,
}

/// A sequence's blocks of one kind of layer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Table<'a> {
    /// Entries from position 0 on that are no more: no row of the step sees their positions.
    pub gone: usize,
    /// Those that follow.
    pub blocks: &'a [BlockId],
}

impl<'a> Table<'a> {
    /// A table from position 0 on.
    pub fn whole(blocks: &'a [BlockId]) -> Self {
        Table { gone: 0, blocks }
    }

    /// The block of a position whose entry is still there.
    pub fn block(&self, position: usize) -> BlockId {
        self.blocks[position / BLOCK_TOKENS - self.gone]
    }

    /// The positions whose entries are there.
    pub fn positions(&self) -> Range<usize> {
        self.gone * BLOCK_TOKENS..(self.gone + self.blocks.len()) * BLOCK_TOKENS
    }
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

    /// Appends rows at `position` and on, of a sequence with these tables of full and of window layers.
    pub fn push(
        &mut self,
        tokens: &[TokenId],
        position: u32,
        full: Table<'_>,
        window: Table<'_>,
    ) -> Range<usize> {
        let rows = self.rows()..self.rows() + tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend(position..position + tokens.len() as u32);
        let (full, window) = (self.append(full), self.append(window));
        self.sequences.push(BatchSequence { rows: rows.clone(), full, window });
        rows
    }

    fn append(&mut self, table: Table<'_>) -> TableRange {
        let blocks = self.blocks.len()..self.blocks.len() + table.blocks.len();
        self.blocks.extend_from_slice(table.blocks);
        TableRange { gone: table.gone, blocks }
    }

    /// The block table of a sequence for layers of `kind`.
    pub fn table(&self, sequence: &BatchSequence, kind: LayerKind) -> Table<'_> {
        let TableRange { gone, blocks } = sequence.range(kind);
        Table { gone: *gone, blocks: &self.blocks[blocks.clone()] }
    }
}

impl BatchSequence {
    /// Where in the batch's blocks the entry of position 0 would lie, in arithmetic that wraps: it is below
    /// the first of all where more entries are gone than lie before the table.
    pub fn table_start(&self, kind: LayerKind) -> u32 {
        let TableRange { gone, blocks } = self.range(kind);
        (blocks.start as u32).wrapping_sub(*gone as u32)
    }

    fn range(&self, kind: LayerKind) -> &TableRange {
        match kind {
            LayerKind::Full => &self.full,
            LayerKind::Window => &self.window,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_both_kinds_lie_behind_each_other_and_know_what_is_gone() {
        let ids = |ids: &[u32]| ids.iter().copied().map(BlockId).collect::<Vec<_>>();
        let (full, window) = (ids(&[4, 5, 6]), ids(&[9]));
        let mut batch = Batch::default();
        batch.push(&[1], 40, Table::whole(&full), Table { gone: 2, blocks: &window });
        batch.push(&[1, 2], 0, Table::whole(&full[..1]), Table::whole(&window));
        let [first, second] = [0, 1].map(|at| batch.sequences[at].clone());

        assert_eq!(batch.table(&first, LayerKind::Full).block(40), BlockId(6));
        let seen = batch.table(&first, LayerKind::Window);
        assert_eq!((seen.block(32), seen.block(47), seen.positions()), (BlockId(9), BlockId(9), 32..48));
        assert_eq!(batch.table(&second, LayerKind::Window).block(15), BlockId(9));

        // As a card reads them: from the start, plus the number of the position's entry.
        let read = |start: u32, entry: u32| batch.blocks[start.wrapping_add(entry) as usize];
        assert_eq!(read(first.table_start(LayerKind::Window), 2), BlockId(9));
        assert_eq!(read(second.table_start(LayerKind::Full), 0), BlockId(4));
        let alone = BatchSequence { full: TableRange { gone: 3, blocks: 0..1 }, ..first };
        assert_eq!(read(alone.table_start(LayerKind::Full), 3), BlockId(4));
    }
}
