//! What ranks' cards have in common in [`SharedMemory`]: the word that ends their waiting, a flag for each
//! chunk of each rank, and slots for values. Where the ranks' values and flags are in a card's memory, the
//! capacity is 0, and flags only tell the host how far ranks are.
//!
//! ```text
//! [0] the abort word   [4096..] flags: u32 [ranks, FLAGS]   then slots: f32 [ranks, 2, capacity]
//! ```

use super::host::{FIRST_OPERATION, FLAGS};
pub(super) use crate::collective::memory::Invitation;
use crate::collective::memory::{PAGE, SharedMemory};
use flotilla_shared::Rank;
use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// As /proc shows it.
const NAME: &std::ffi::CStr = c"flotilla-sum";

pub(super) struct Area {
    memory: SharedMemory,
    ranks: usize,
}

impl Area {
    /// Rank 0's. The file must be kept until all ranks have opened it, and not longer.
    pub fn create(ranks: usize, capacity: usize) -> io::Result<(Area, File, Invitation)> {
        let (memory, file, invitation) = SharedMemory::create(NAME, size(ranks, capacity))?;
        let area = Area { memory, ranks };
        for rank in 0..ranks {
            (0..FLAGS).for_each(|chunk| area.flag(rank, chunk).store(FIRST_OPERATION, Ordering::Relaxed));
        }
        Ok((area, file, invitation))
    }

    pub fn open(invitation: &Invitation, ranks: usize, capacity: usize) -> io::Result<Area> {
        let memory = SharedMemory::open(NAME, invitation, size(ranks, capacity))?;
        Ok(Area { memory, ranks })
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

    pub fn slots_offset(&self) -> usize {
        slots_offset(self.ranks)
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset < self.slots_offset());
        self.memory.word(offset)
    }

    fn flag(&self, rank: usize, chunk: usize) -> &AtomicU32 {
        self.word(self.flags_offset() + (rank * FLAGS + chunk) * 4)
    }

    /// Ends the waiting of all ranks' kernels, now and later.
    pub fn abort(&self) {
        self.word(0).store(1, Ordering::SeqCst);
    }

    pub fn is_aborted(&self) -> bool {
        self.word(0).load(Ordering::SeqCst) != 0
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

fn slots_offset(ranks: usize) -> usize {
    PAGE + (ranks * FLAGS * 4).next_multiple_of(PAGE)
}

fn size(ranks: usize, capacity: usize) -> usize {
    (slots_offset(ranks) + ranks * 2 * capacity * 4).next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_see_who_is_behind_and_that_waiting_has_ended() {
        let (ours, file, invitation) = Area::create(3, 4096).unwrap();
        let theirs = Area::open(&invitation, 3, 4096).unwrap();
        assert!(Area::open(&invitation, 3, 8192).is_err(), "another size");
        drop(file);
        assert!(!theirs.is_aborted());
        ours.abort();
        assert!(theirs.is_aborted());
        ours.flag(1, 0).store(FIRST_OPERATION.wrapping_add(1), Ordering::SeqCst);
        assert_eq!(theirs.behind(1), [Rank(0), Rank(2)]);
        assert!(theirs.behind(2).is_empty());
    }
}
