//! Which block holds what, by hash: open addressing over memory that is taken once, so that a step
//! allocates nothing. Not a map for others: it knows blocks and the one hash that each may have.

use crate::cache::BlockHash;
use flotilla_shared::BlockId;

/// Room for one entry a block at a load of a half, so that a probe ends soon.
pub struct HashIndex {
    slots: Vec<Option<(BlockHash, BlockId)>>,
}

impl HashIndex {
    pub fn new(block_count: usize) -> HashIndex {
        HashIndex { slots: vec![None; (2 * block_count).next_power_of_two().max(2)] }
    }

    pub fn get(&self, hash: BlockHash) -> Option<BlockId> {
        self.slots[self.find(hash)].map(|(_, block)| block)
    }

    /// The first block of a hash stays; false for any other.
    pub fn insert(&mut self, hash: BlockHash, block: BlockId) -> bool {
        let slot = self.find(hash);
        let free = self.slots[slot].is_none();
        if free {
            self.slots[slot] = Some((hash, block));
        }
        free
    }

    /// Entries behind the one that goes move up, so that no probe meets a gap.
    pub fn remove(&mut self, hash: BlockHash) {
        let mask = self.slots.len() - 1;
        let mut gap = self.find(hash);
        self.slots[gap] = None;
        let mut at = (gap + 1) & mask;
        while let Some((moving, _)) = self.slots[at] {
            let home = self.home(moving);
            // It may move into the gap unless its home lies behind the gap.
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(gap) & mask {
                self.slots[gap] = self.slots[at].take();
                gap = at;
            }
            at = (at + 1) & mask;
        }
    }

    /// The slot of a hash, or the free one where it would go.
    fn find(&self, hash: BlockHash) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = self.home(hash);
        while self.slots[at].is_some_and(|(other, _)| other != hash) {
            at = (at + 1) & mask;
        }
        at
    }

    fn home(&self, hash: BlockHash) -> usize {
        hash.0 as usize & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::sampling::mix;
    use std::collections::BTreeMap;

    /// Few homes and many entries, so that probes collide: against an ordinary map.
    #[test]
    fn it_answers_as_a_map_does() {
        let mut index = HashIndex::new(64);
        let mut map = BTreeMap::new();
        for round in 0..20_000u64 {
            let chance = mix(round);
            let hash = BlockHash(u128::from(chance % 90) << 3);
            if chance & 1 << 40 == 0 && map.len() < 64 {
                let block = BlockId(round as u32);
                assert_eq!(index.insert(hash, block), !map.contains_key(&hash), "round {round}");
                map.entry(hash).or_insert(block);
            } else if map.remove(&hash).is_some() {
                index.remove(hash);
            }
            for key in (0..90).map(|key| BlockHash(key << 3)) {
                assert_eq!(index.get(key), map.get(&key).copied(), "round {round}");
            }
        }
    }
}
