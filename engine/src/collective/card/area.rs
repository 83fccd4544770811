//! What ranks' cards have in common in [`SharedMemory`]: a word of each rank that ends the waiting for it, a
//! flag for each chunk of each rank, pairs for short sums, and slots for long ones. Where the ranks' values
//! and flags are in a card's memory, the capacity is 0, there are no pairs, and flags only tell the host how
//! far ranks are.
//!
//! ```text
//! [0..64] gone: u32 [16]   [4096..] flags: u32 [ranks, FLAGS]   then pairs: (f32, u32) [ranks, 2, SHORT]
//! then slots: f32 [ranks, 2, capacity]
//! ```

use super::choose::HOST_RANKS_MAX;
use super::host::{FIRST_OPERATION, FLAGS, SHORT};
pub(super) use crate::collective::memory::Invitation;
use crate::collective::memory::{PAGE, SharedMemory};
use flotilla_shared::Rank;
use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// As /proc shows it.
const NAME: &std::ffi::CStr = c"flotilla-sum";

// There is no more room in the first page.
const _: () = assert!(HOST_RANKS_MAX * 4 <= 64);

pub(super) struct Area {
    memory: SharedMemory,
    ranks: usize,
    /// 0 if values are elsewhere.
    capacity: usize,
}

impl Area {
    /// Rank 0's. The file must be kept until all ranks have opened it, and not longer.
    pub fn create(ranks: usize, capacity: usize) -> io::Result<(Area, File, Invitation)> {
        let (memory, file, invitation) = SharedMemory::create(NAME, size(ranks, capacity))?;
        let area = Area { memory, ranks, capacity };
        for word in (area.flags_offset()..area.slots_offset()).step_by(4) {
            area.word(word).store(FIRST_OPERATION, Ordering::Relaxed);
        }
        Ok((area, file, invitation))
    }

    pub fn open(invitation: &Invitation, ranks: usize, capacity: usize) -> io::Result<Area> {
        let memory = SharedMemory::open(NAME, invitation, size(ranks, capacity))?;
        Ok(Area { memory, ranks, capacity })
    }

    pub fn start(&self) -> NonNull<u8> {
        self.memory.start()
    }

    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    pub fn flags_offset(&self) -> usize {
        PAGE
    }

    pub fn pairs_offset(&self) -> usize {
        pairs_offset(self.ranks)
    }

    pub fn slots_offset(&self) -> usize {
        slots_offset(self.ranks, self.capacity)
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset < self.slots_offset());
        self.memory.word(offset)
    }

    fn flag(&self, rank: usize, chunk: usize) -> &AtomicU32 {
        self.word(self.flags_offset() + (rank * FLAGS + chunk) * 4)
    }

    fn gone(&self, rank: usize) -> &AtomicU32 {
        assert!(rank < HOST_RANKS_MAX);
        self.word(rank * 4)
    }

    /// Ends the waiting of all ranks' kernels, now and later.
    pub fn abort(&self) {
        (0..self.ranks).for_each(|rank| self.leave(rank));
    }

    /// Ends the waiting for what this rank has not yet given, now and later.
    pub fn leave(&self, rank: usize) {
        self.gone(rank).store(1, Ordering::SeqCst);
    }

    /// Whether a rank gives nothing more. A kernel that has waited in vain says so of its own rank.
    pub fn is_gone(&self, rank: usize) -> bool {
        self.gone(rank).load(Ordering::SeqCst) != 0
    }

    /// The number of the operation that a rank has pushed last.
    pub fn pushed(&self, rank: usize) -> u32 {
        self.flag(rank, 0).load(Ordering::Acquire)
    }

    /// The ranks that have pushed less than `rank`.
    pub fn behind(&self, rank: usize) -> Vec<Rank> {
        let mine = self.pushed(rank);
        let is_behind = |other: &usize| mine.wrapping_sub(self.pushed(*other)).cast_signed() > 0;
        (0..self.ranks).filter(is_behind).map(|rank| Rank(rank as u16)).collect()
    }
}

fn pairs_offset(ranks: usize) -> usize {
    PAGE + (ranks * FLAGS * 4).next_multiple_of(PAGE)
}

fn slots_offset(ranks: usize, capacity: usize) -> usize {
    pairs_offset(ranks) + if capacity == 0 { 0 } else { ranks * 2 * SHORT * 8 }
}

fn size(ranks: usize, capacity: usize) -> usize {
    (slots_offset(ranks, capacity) + ranks * 2 * capacity * 4).next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_see_who_is_behind_and_who_is_gone() {
        let (ours, file, invitation) = Area::create(3, 4096).unwrap();
        let theirs = Area::open(&invitation, 3, 4096).unwrap();
        assert!(Area::open(&invitation, 3, 8192).is_err(), "another size");
        drop(file);
        theirs.leave(1);
        assert_eq!([0, 1, 2].map(|rank| ours.is_gone(rank)), [false, true, false]);
        ours.abort();
        assert_eq!([0, 1, 2].map(|rank| theirs.is_gone(rank)), [true; 3]);
        ours.flag(1, 0).store(FIRST_OPERATION.wrapping_add(1), Ordering::SeqCst);
        assert_eq!(theirs.behind(1), [Rank(0), Rank(2)]);
        assert!(theirs.behind(2).is_empty());
    }
}
