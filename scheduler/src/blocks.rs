//! The KV blocks of one group: each is free, or owned by one sequence. Which positions a block holds is
//! the business of its owner's table; what is in it, of the workers.

use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{BlockId, SequenceId};

/// Blocks that `tokens` positions need.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

/// Every block of a group. Taking and giving are O(1).
pub struct BlockPool {
    /// The last one is taken next: the block that was in use a moment ago.
    free: Vec<BlockId>,
    owners: Vec<Option<SequenceId>>,
}

impl BlockPool {
    pub fn new(count: usize) -> BlockPool {
        let last = u32::try_from(count).expect("block ids are 32-bit numbers");
        BlockPool { free: (0..last).rev().map(BlockId).collect(), owners: vec![None; count] }
    }

    pub fn count(&self) -> usize {
        self.owners.len()
    }

    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Positions that all blocks together hold.
    pub fn capacity_tokens(&self) -> usize {
        self.count().saturating_mul(BLOCK_TOKENS)
    }

    pub fn take(&mut self, owner: SequenceId) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.owners[block.index()] = Some(owner);
        Some(block)
    }

    /// Frees a block. Giving what another owns is a mistake of ours, and ends the process before one
    /// client reads another's cache.
    pub fn give(&mut self, block: BlockId, owner: SequenceId) {
        let owned_by = self.owners[block.index()].take();
        assert_eq!(owned_by, Some(owner), "block {block} given by sequence {owner} is not its own");
        self.free.push(block);
    }

    #[cfg(debug_assertions)]
    pub fn owner(&self, block: BlockId) -> Option<SequenceId> {
        self.owners[block.index()]
    }

    #[cfg(debug_assertions)]
    pub fn free_blocks(&self) -> &[BlockId] {
        &self.free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_gives_each_block_once() {
        let mut pool = BlockPool::new(2);
        let (a, b) = (pool.take(SequenceId(1)).unwrap(), pool.take(SequenceId(2)).unwrap());
        assert_ne!(a, b);
        assert_eq!(pool.take(SequenceId(1)), None);
        pool.give(b, SequenceId(2));
        assert_eq!((pool.free_count(), pool.take(SequenceId(3))), (1, Some(b)));
    }

    #[test]
    #[should_panic(expected = "not its own")]
    fn a_block_is_not_given_by_another() {
        let mut pool = BlockPool::new(1);
        let block = pool.take(SequenceId(1)).unwrap();
        pool.give(block, SequenceId(2));
    }

    #[test]
    #[should_panic(expected = "not its own")]
    fn a_block_is_not_given_twice() {
        let mut pool = BlockPool::new(1);
        let block = pool.take(SequenceId(1)).unwrap();
        pool.give(block, SequenceId(1));
        pool.give(block, SequenceId(1));
    }
}
