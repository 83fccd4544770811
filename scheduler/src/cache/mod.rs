//! The KV cache of a group as the scheduler sees it: two pools of blocks, for the full and for the window
//! layers, and each sequence's tables into them. What a sequence's window has passed goes back; what is
//! complete gets a name, the hash of all tokens up to its end, by which a later prompt that begins alike
//! finds it. Nothing here decides who gets blocks.

mod index;
mod pool;

use crate::sequence::Sequence;
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{BlockId, KvBlocks, TokenId};
use std::collections::VecDeque;

pub use pool::BlockPool;

/// Blocks that `tokens` positions need.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

/// Names the tokens of a block and all before it: 128 bits of blake3, so that nobody can make a prompt that
/// is taken for another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockHash(pub u128);

impl BlockHash {
    /// Of nothing yet, within one salt.
    pub fn root(salt: u64) -> BlockHash {
        BlockHash(u128::from(salt))
    }

    /// Of a block that follows.
    pub fn then(self, tokens: &[TokenId]) -> BlockHash {
        let mut bytes = [0; 16 + 4 * BLOCK_TOKENS];
        bytes[..16].copy_from_slice(&self.0.to_le_bytes());
        for (bytes, token) in bytes[16..].as_chunks_mut::<4>().0.iter_mut().zip(tokens) {
            *bytes = token.to_le_bytes();
        }
        let hash = blake3::hash(&bytes);
        BlockHash(u128::from_le_bytes(*hash.as_bytes().first_chunk().expect("16 of 32 bytes")))
    }
}

/// The blocks of one sequence.
#[derive(Default)]
pub struct Tables {
    /// Block i holds positions 16·i to 16·i + 15.
    pub full: Vec<BlockId>,
    /// The same, without its first `window_gone`.
    pub window: VecDeque<BlockId>,
    pub window_gone: usize,
    /// So many of the first blocks have their names.
    named: usize,
}

impl Tables {
    pub fn window_end(&self) -> usize {
        self.window_gone + self.window.len()
    }
}

/// What a prompt can begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// Whole blocks.
    pub blocks: usize,
    /// Of its blocks, those that nobody holds now, by kind.
    pub free: usize,
    pub window_free: usize,
}

pub struct KvCache {
    pub full: BlockPool,
    pub window: BlockPool,
    /// Positions that a row of a window layer sees, its own among them.
    window_tokens: usize,
    /// Blocks get names.
    names: bool,
    /// Blocks that were looked for.
    #[cfg(test)]
    pub walked: std::cell::Cell<usize>,
}

impl KvCache {
    /// `names`: whether later prompts may find what is in it.
    pub fn new(blocks: KvBlocks, window_tokens: usize, names: bool) -> KvCache {
        KvCache {
            names,
            #[cfg(test)]
            walked: std::cell::Cell::new(0),
            full: BlockPool::new(blocks.full as usize),
            window: BlockPool::new(blocks.window as usize),
            window_tokens,
        }
    }

    /// Whether one sequence alone can have all full blocks, row by row.
    pub fn can_serve(blocks: KvBlocks, window_tokens: usize) -> bool {
        let enough = blocks_for(window_tokens) + 1;
        blocks.full > 0 && blocks.window as usize >= enough.min(blocks.full as usize)
    }

    pub fn capacity_tokens(&self) -> usize {
        self.full.count().saturating_mul(BLOCK_TOKENS)
    }

    /// Blocks that no row from `position` on sees in window layers.
    pub fn gone_before(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window_tokens) / BLOCK_TOKENS
    }

    /// The longest beginning of a sequence that is in both pools: all of its full blocks, and the window of
    /// the row after it. `name` gives the hash of block i, and `None` where it must be computed.
    pub fn find(&self, mut name: impl FnMut(usize) -> Option<BlockHash>) -> Prefix {
        let (mut best, mut free, mut in_a_row) = (Prefix::default(), 0, 0);
        for blocks in 1.. {
            let Some(hash) = name(blocks - 1) else { break };
            #[cfg(test)]
            self.walked.update(|walked| walked + 1);
            let Some(block) = self.full.find(hash) else { break };
            free += usize::from(self.full.is_free(block));
            in_a_row = if self.window.find(hash).is_some() { in_a_row + 1 } else { 0 };
            if in_a_row >= blocks - self.gone_before(blocks * BLOCK_TOKENS) {
                best = Prefix { blocks, free, window_free: 0 };
            }
        }
        for seen in self.gone_before(best.blocks * BLOCK_TOKENS)..best.blocks {
            let block = name(seen).and_then(|hash| self.window.find(hash)).expect("found just now");
            best.window_free += usize::from(self.window.is_free(block));
        }
        best
    }

    /// Begins empty tables with a prefix that was found.
    pub fn begin(&mut self, tables: &mut Tables, prefix: Prefix, names: &[BlockHash]) {
        debug_assert!(tables.full.is_empty() && tables.window_end() == 0, "tables begin once");
        tables.window_gone = self.gone_before(prefix.blocks * BLOCK_TOKENS);
        for (at, &name) in names[..prefix.blocks].iter().enumerate() {
            let block = self.full.find(name).expect("a prefix that was found");
            self.full.share(block);
            tables.full.push(block);
            if at >= tables.window_gone {
                let block = self.window.find(name).expect("a window that was found");
                self.window.share(block);
                tables.window.push_back(block);
            }
        }
        tables.named = prefix.blocks;
    }

    /// Gives back what no row from `position` on sees in window layers.
    pub fn pass(&mut self, tables: &mut Tables, position: usize) {
        let gone = self.gone_before(position);
        while tables.window_gone < gone {
            match tables.window.pop_front() {
                Some(block) => self.window.give(block),
                None => {
                    tables.window_gone = gone;
                    return;
                }
            }
            tables.window_gone += 1;
        }
    }

    /// Grows the tables towards `end` positions, as far as there are blocks; returns the positions that
    /// they now hold.
    pub fn grow(&mut self, tables: &mut Tables, end: usize) -> usize {
        while tables.full.len() < blocks_for(end) {
            let Some(block) = self.full.take() else { break };
            tables.full.push(block);
        }
        while tables.window_end() < blocks_for(end) {
            let Some(block) = self.window.take() else { break };
            tables.window.push_back(block);
        }
        end.min(tables.full.len().min(tables.window_end()) * BLOCK_TOKENS)
    }

    /// Blocks of full layers for `end` positions; the caller has seen that there are enough.
    pub fn grow_full(&mut self, tables: &mut Tables, end: usize) {
        let lacking = blocks_for(end).saturating_sub(tables.full.len());
        tables.full.extend((0..lacking).map_while(|_| self.full.take()));
    }

    /// Names every block of a sequence that is computed and known.
    pub fn name_settled(&mut self, sequence: &mut Sequence) {
        if !self.names {
            return;
        }
        let settled = sequence.settled();
        if let Some(last) = (settled / BLOCK_TOKENS).checked_sub(1) {
            sequence.name_of(last);
        }
        let (tables, names) = sequence.tables_and_names();
        self.name(tables, names, settled);
    }

    /// Names every block that is full of the first `tokens` positions. `names[i]` is the hash of block i.
    pub fn name(&mut self, tables: &mut Tables, names: &[BlockHash], tokens: usize) {
        let names = names.iter().take(tokens / BLOCK_TOKENS).enumerate();
        for (at, &name) in names.skip(tables.named) {
            self.full.name(tables.full[at], name);
            if let Some(&block) = at.checked_sub(tables.window_gone).and_then(|at| tables.window.get(at)) {
                self.window.name(block, name);
            }
            tables.named = at + 1;
        }
    }

    /// Gives everything back. The end goes first, so that beginnings stay longest.
    pub fn give_back(&mut self, tables: &mut Tables) {
        tables.full.drain(..).rev().for_each(|block| self.full.give(block));
        tables.window.drain(..).rev().for_each(|block| self.window.give(block));
        (tables.window_gone, tables.named) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<BlockHash> {
        let mut last = BlockHash::root(0);
        let next = |at| {
            last = last.then(&[at as TokenId; BLOCK_TOKENS]);
            last
        };
        (0..count).map(next).collect()
    }

    /// A cache in which a sequence of `tokens` tokens was computed in chunks, and ended.
    fn cache_after(tokens: usize, blocks: KvBlocks, window: usize) -> KvCache {
        let mut cache = KvCache::new(blocks, window, true);
        let mut tables = Tables::default();
        for start in (0..tokens).step_by(24) {
            let end = (start + 24).min(tokens);
            cache.pass(&mut tables, start);
            assert_eq!(cache.grow(&mut tables, end), end);
            cache.name(&mut tables, &names(20), end);
        }
        cache.give_back(&mut tables);
        cache
    }

    #[test]
    fn a_prompt_finds_the_longest_beginning_whose_window_is_there_too() {
        let cache = cache_after(100, KvBlocks::plain(20), 32);
        let names = names(20);
        let find = |blocks: usize| cache.find(|at| (at < blocks).then(|| names[at])).blocks;
        assert_eq!([find(0), find(1), find(3), find(6), find(20)], [0, 1, 3, 6, 6]);
    }

    #[test]
    fn without_its_window_a_beginning_is_not_used() {
        // Four window blocks: the first were taken again for the last.
        let cache = cache_after(100, KvBlocks { full: 20, window: 4 }, 32);
        let names = names(20);
        let find = |blocks: usize| cache.find(|at| (at < blocks).then(|| names[at])).blocks;
        assert_eq!([find(3), find(6), find(20)], [0, 6, 6]);
    }

    #[test]
    fn another_salt_finds_nothing() {
        let tokens = [5; BLOCK_TOKENS];
        assert_ne!(BlockHash::root(1).then(&tokens), BlockHash::root(2).then(&tokens));
    }

    #[test]
    fn window_blocks_are_given_back_as_the_window_passes() {
        let mut cache = KvCache::new(KvBlocks { full: 40, window: 4 }, 32, true);
        let mut tables = Tables::default();
        for position in 0..40 * BLOCK_TOKENS {
            cache.pass(&mut tables, position);
            assert_eq!(cache.grow(&mut tables, position + 1), position + 1);
            assert!(tables.window.len() <= 3);
        }
        assert_eq!((tables.full.len(), tables.window_end()), (40, 40));
        cache.give_back(&mut tables);
        assert_eq!((cache.full.free_count(), cache.window.free_count()), (40, 4));
    }
}
