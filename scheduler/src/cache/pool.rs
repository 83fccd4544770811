//! The blocks of one kind of layers. A block is held by one sequence or by several that begin alike, or
//! by nobody; what nobody holds may still be found by its hash, until it is taken for something else, the
//! one that was given back longest ago first. What is in a block is the business of the workers.

use crate::cache::BlockHash;
use crate::cache::index::HashIndex;
use flotilla_shared::BlockId;

/// End of the list of those that nobody holds.
const NONE: u32 = u32::MAX;

/// Every block of a kind. Taking, sharing, giving and finding are O(1) and allocate nothing.
pub struct BlockPool {
    blocks: Vec<Block>,
    index: HashIndex,
    /// Nobody's, oldest first: those without a hash stand before all others.
    oldest: u32,
    newest: u32,
    free_count: usize,
    hashed_free_count: usize,
}

#[derive(Clone, Copy, Default)]
struct Block {
    holders: u32,
    /// Under which it is found.
    hash: Option<BlockHash>,
    /// In the list, while nobody holds it.
    before: u32,
    after: u32,
}

impl BlockPool {
    pub fn new(count: usize) -> BlockPool {
        let last = u32::try_from(count).expect("block ids are 32-bit numbers");
        let mut pool = BlockPool {
            blocks: vec![Block::default(); count],
            index: HashIndex::new(count),
            oldest: NONE,
            newest: NONE,
            free_count: 0,
            hashed_free_count: 0,
        };
        (0..last).for_each(|block| pool.append(block));
        pool
    }

    pub fn count(&self) -> usize {
        self.blocks.len()
    }

    /// Held by nobody: may be taken, whether they can be found or not.
    pub fn free_count(&self) -> usize {
        self.free_count
    }

    /// Of these, those that can be found.
    pub fn cached_count(&self) -> usize {
        self.hashed_free_count
    }

    /// One that nobody holds, with nothing in it that can be found any more.
    pub fn take(&mut self) -> Option<BlockId> {
        let block = self.oldest;
        if block == NONE {
            return None;
        }
        self.unlink(block);
        if let Some(hash) = self.block_mut(block).hash.take() {
            self.index.remove(hash);
        }
        self.block_mut(block).holders = 1;
        Some(BlockId(block))
    }

    /// One more holder of a block that was found.
    pub fn share(&mut self, block: BlockId) {
        if self.block_mut(block.0).holders == 0 {
            self.unlink(block.0);
        }
        self.block_mut(block.0).holders += 1;
    }

    /// One holder less. Giving what nobody holds is a mistake of ours, and ends the process before one
    /// client reads another's cache.
    pub fn give(&mut self, block: BlockId) {
        let it = self.block_mut(block.0);
        assert!(it.holders > 0, "block {block} given, but nobody holds it");
        it.holders -= 1;
        if it.holders > 0 {
            return;
        }
        if it.hash.is_some() { self.append(block.0) } else { self.prepend(block.0) }
    }

    /// From now on the block is found by `hash`, unless another is that somebody holds. From one that nobody does it takes
    /// the name over: what is computed again was used just now, and the other would go first.
    pub fn name(&mut self, block: BlockId, hash: BlockHash) {
        debug_assert!(self.blocks[block.index()].holders > 0, "block {block} is named, but nobody holds it");
        if self.blocks[block.index()].hash.is_some() {
            return;
        }
        if let Some(other) = self.index.get(hash) {
            if !self.is_free(other) {
                return;
            }
            self.forget(other.0);
        }
        self.index.insert(hash, block);
        self.block_mut(block.0).hash = Some(hash);
    }

    /// Nobody holds it, and nobody finds it any more.
    fn forget(&mut self, block: u32) {
        self.unlink(block);
        if let Some(hash) = self.block_mut(block).hash.take() {
            self.index.remove(hash);
        }
        self.prepend(block);
    }

    pub fn find(&self, hash: BlockHash) -> Option<BlockId> {
        self.index.get(hash)
    }

    pub fn is_free(&self, block: BlockId) -> bool {
        self.blocks[block.index()].holders == 0
    }

    #[cfg(debug_assertions)]
    pub fn holders(&self, block: BlockId) -> usize {
        self.blocks[block.index()].holders as usize
    }

    /// Walks the list: what is in it, oldest first.
    #[cfg(debug_assertions)]
    pub fn free_blocks(&self) -> impl Iterator<Item = BlockId> {
        let next = |&block: &u32| Some(self.blocks[block as usize].after).filter(|&after| after != NONE);
        std::iter::successors(Some(self.oldest).filter(|&oldest| oldest != NONE), next).map(BlockId)
    }

    fn block_mut(&mut self, block: u32) -> &mut Block {
        &mut self.blocks[block as usize]
    }

    fn append(&mut self, block: u32) {
        let newest = std::mem::replace(&mut self.newest, block);
        (self.block_mut(block).before, self.block_mut(block).after) = (newest, NONE);
        if newest == NONE {
            self.oldest = block
        } else {
            self.block_mut(newest).after = block
        }
        self.count_free(block, 1);
    }

    fn prepend(&mut self, block: u32) {
        let oldest = std::mem::replace(&mut self.oldest, block);
        (self.block_mut(block).before, self.block_mut(block).after) = (NONE, oldest);
        if oldest == NONE {
            self.newest = block
        } else {
            self.block_mut(oldest).before = block
        }
        self.count_free(block, 1);
    }

    fn unlink(&mut self, block: u32) {
        let Block { before, after, .. } = self.blocks[block as usize];
        if before == NONE {
            self.oldest = after
        } else {
            self.block_mut(before).after = after
        }
        if after == NONE {
            self.newest = before
        } else {
            self.block_mut(after).before = before
        }
        self.count_free(block, -1);
    }

    fn count_free(&mut self, block: u32, change: isize) {
        self.free_count = self.free_count.strict_add_signed(change);
        if self.blocks[block as usize].hash.is_some() {
            self.hashed_free_count = self.hashed_free_count.strict_add_signed(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: BlockHash = BlockHash(7);

    #[test]
    fn a_pool_gives_each_block_once() {
        let mut pool = BlockPool::new(2);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        assert_ne!(a, b);
        assert_eq!(pool.take(), None);
        pool.give(b);
        assert_eq!((pool.free_count(), pool.take()), (1, Some(b)));
    }

    #[test]
    #[should_panic(expected = "nobody holds it")]
    fn a_block_is_not_given_twice() {
        let mut pool = BlockPool::new(1);
        let block = pool.take().unwrap();
        pool.give(block);
        pool.give(block);
    }

    #[test]
    fn what_was_named_is_found_until_it_is_taken_and_goes_last() {
        let mut pool = BlockPool::new(3);
        let named = pool.take().unwrap();
        pool.name(named, HASH);
        pool.give(named);
        assert_eq!((pool.free_count(), pool.cached_count(), pool.find(HASH)), (3, 1, Some(named)));
        assert!([pool.take().unwrap(), pool.take().unwrap()].iter().all(|&other| other != named));
        assert_eq!(pool.find(HASH), Some(named));
        assert_eq!((pool.take(), pool.find(HASH)), (Some(named), None));
    }

    #[test]
    fn a_shared_block_is_free_when_the_last_holder_gives_it() {
        let mut pool = BlockPool::new(1);
        let block = pool.take().unwrap();
        pool.name(block, HASH);
        pool.share(block);
        pool.give(block);
        assert_eq!(pool.free_count(), 0);
        pool.give(block);
        pool.share(pool.find(HASH).unwrap());
        assert_eq!((pool.free_count(), pool.cached_count()), (0, 0));
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let mut pool = BlockPool::new(3);
        let taken: Vec<BlockId> = std::iter::from_fn(|| pool.take()).collect();
        for (at, &block) in taken.iter().enumerate() {
            pool.name(block, BlockHash(at as u128));
        }
        [1, 0, 2].into_iter().for_each(|at: usize| pool.give(taken[at]));
        pool.share(taken[1]); // used again
        pool.give(taken[1]);
        assert_eq!([(); 3].map(|()| pool.take().unwrap()), [taken[0], taken[2], taken[1]]);
    }

    #[test]
    fn a_name_goes_over_from_a_block_that_nobody_holds() {
        let mut pool = BlockPool::new(3);
        let (first, other) = (pool.take().unwrap(), pool.take().unwrap());
        pool.name(first, HASH);
        pool.name(other, HASH);
        assert_eq!(pool.find(HASH), Some(first), "it is held");
        pool.give(first);
        pool.name(other, HASH);
        assert_eq!((pool.find(HASH), pool.free_count(), pool.cached_count()), (Some(other), 2, 0));
        pool.give(other);
        assert_eq!(
            (pool.cached_count(), pool.take()),
            (1, Some(first)),
            "there is nothing in it to be found"
        );
    }
}
