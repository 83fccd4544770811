//! What a rank keeps of a sequence between steps, and what it refuses of work on it. Which blocks are
//! given to whom is the coordinator's affair: here they are only counted.

use flotilla_engine::batch::Table;
use flotilla_shared::step::{Admission, BLOCK_TOKENS, SequenceWork};
use flotilla_shared::{BlockId, KvBlocks, ModelSpec, Sampling, StepId};

/// What is held of a sequence between steps.
#[derive(Debug)]
pub(super) struct Held {
    pub sampling: Sampling,
    /// Positions that are in the cache.
    pub length: usize,
    pub full: BlockTable,
    pub window: BlockTable,
    /// The step that it had work in last.
    worked: StepId,
}

/// The blocks of one kind of layer, less those at the beginning that are gone.
#[derive(Debug, Default)]
pub(super) struct BlockTable {
    gone: usize,
    blocks: Vec<BlockId>,
}

impl BlockTable {
    pub fn table(&self) -> Table<'_> {
        Table { gone: self.gone, blocks: &self.blocks }
    }

    /// Entries, with those that are gone.
    fn reach(&self) -> usize {
        self.gone + self.blocks.len()
    }

    /// Forgets entries until `gone` are; a table that has none yet begins there.
    fn forget(&mut self, gone: usize) {
        let leaving = (gone - self.gone).min(self.blocks.len());
        self.blocks.drain(..leaving);
        self.gone = gone;
    }
}

impl Held {
    pub fn new(admission: &Admission) -> Result<Held, String> {
        let length = admission.cached as usize;
        if !length.is_multiple_of(BLOCK_TOKENS) {
            return Err(format!("{length} positions are said to be in the cache, not whole blocks"));
        }
        let (full, window) = (BlockTable::default(), BlockTable::default());
        Ok(Held { sampling: admission.sampling.clone(), length, full, window, worked: StepId(0) })
    }

    /// Whether this is its first work in `step`.
    pub fn works_in(&mut self, step: StepId) -> bool {
        std::mem::replace(&mut self.worked, step) != step
    }

    /// Takes the work's blocks, and refuses what cannot be computed. Its rows are counted by the caller.
    pub fn take(&mut self, work: &SequenceWork, spec: &ModelSpec, kv_blocks: KvBlocks) -> Result<(), String> {
        self.check(work, spec)?;
        self.check_gone(work.window_gone as usize, spec.window)?;
        self.window.forget(work.window_gone as usize);
        let blocks_needed = (self.length + work.tokens.len()).div_ceil(BLOCK_TOKENS);
        let kinds = [
            ("", &mut self.full, &work.blocks, kv_blocks.full),
            ("window ", &mut self.window, &work.window_blocks, kv_blocks.window),
        ];
        for (kind, table, blocks, pool) in kinds {
            if let Some(block) = blocks.iter().find(|block| block.0 >= pool) {
                return Err(format!("{kind}block {block} is past the {pool} held"));
            }
            table.blocks.extend_from_slice(blocks);
            let reach = table.reach();
            if reach < blocks_needed {
                return Err(format!("its {kind}table has {reach} blocks, {blocks_needed} are needed"));
            }
        }
        Ok(())
    }

    fn check(&self, work: &SequenceWork, spec: &ModelSpec) -> Result<(), String> {
        if work.tokens.is_empty() {
            return Err("work without tokens".into());
        }
        if work.position as usize != self.length {
            return Err(format!(
                "rows begin at position {}, {} are in the cache",
                work.position, self.length
            ));
        }
        let end = self.length + work.tokens.len();
        if end > spec.context_max {
            return Err(format!("rows reach position {end}, the context ends at {}", spec.context_max));
        }
        if let Some(token) = work.tokens.iter().find(|token| **token as usize >= spec.vocab) {
            return Err(format!("token {token} is past the vocabulary of {}", spec.vocab));
        }
        Ok(())
    }

    /// The first row sees `window` positions with its own: none of them may be gone.
    fn check_gone(&self, gone: usize, window: usize) -> Result<(), String> {
        let seen = (self.length + 1).saturating_sub(window);
        if gone * BLOCK_TOKENS > seen {
            return Err(format!("{gone} window blocks are gone, position {seen} is still seen"));
        }
        if gone < self.window.gone {
            return Err(format!("{gone} window blocks are gone, {} were before", self.window.gone));
        }
        Ok(())
    }
}
