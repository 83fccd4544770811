//! What ranks of one host show each other in memory that they share.
//!
//! Each rank has a slot that it writes and the others read, with two sides that take turns. A round is one
//! showing of every rank: it writes its bytes once, then the round's number beside them, and looks for that
//! number in the others' slots. Whoever has seen all others in round k knows that they are done with reading
//! round k − 1, whose side is the next to be written; so one wait a round is enough, and nothing is counted
//! or reset.
//!
//! A rank that will sleep says so in a word of its own. Who shows something looks at the words of the others
//! and rings whom it finds asleep; how, and what else is heard while one sleeps, is the mesh's business.
//!
//! ```text
//! [4096..] asleep: u32 a rank, a line each    then slots: [ranks, 2] × (round: u64, header, bytes from 64)
//! ```

use super::frame::HEADER_BYTES;
use crate::collective::memory::{Invitation, PAGE, SharedMemory};
use flotilla_shared::Rank;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Bytes that a rank shows in one round at most: two sides of two ranks stay in a core's second-level cache.
pub(super) const SHOWN_BYTES_MAX: usize = 256 << 10;

/// As /proc shows it.
const NAME: &CStr = c"flotilla-ranks";
/// Two cache lines: processors fetch them in pairs.
const LINE: usize = 128;
/// Of a side.
const HEADER: Range<usize> = 8..8 + HEADER_BYTES;
const BYTES_START: usize = 64;
const SIDE: usize = (BYTES_START + SHOWN_BYTES_MAX).next_multiple_of(LINE);

/// One rank's view of the slots of all ranks of its host.
pub(super) struct Slots {
    memory: SharedMemory,
    /// Who shares it, rising; a rank's place here is that of its slot.
    members: Vec<Rank>,
    mine: usize,
    round: u64,
}

impl Slots {
    /// The first member's. The file must be kept until all have opened it, and not longer.
    pub(super) fn create(members: Vec<Rank>, us: Rank) -> io::Result<(Slots, File, Invitation)> {
        let (memory, file, invitation) = SharedMemory::create(NAME, size(members.len()))?;
        Ok((Slots::new(memory, members, us), file, invitation))
    }

    pub(super) fn open(invitation: &Invitation, members: Vec<Rank>, us: Rank) -> io::Result<Slots> {
        let memory = SharedMemory::open(NAME, invitation, size(members.len()))?;
        Ok(Slots::new(memory, members, us))
    }

    fn new(memory: SharedMemory, members: Vec<Rank>, us: Rank) -> Slots {
        let mine = members.iter().position(|&rank| rank == us).expect("a member opens it");
        Slots { memory, members, mine, round: 0 }
    }

    pub(super) fn members(&self) -> &[Rank] {
        &self.members
    }

    /// Place of a rank's slot.
    pub(super) fn place(&self, rank: Rank) -> Option<usize> {
        self.members.iter().position(|&member| member == rank)
    }

    /// Begins a round: these ranges of `bytes` can be read by the others, each where it is in `bytes`.
    pub(super) fn show(
        &mut self,
        header: &[u8; HEADER_BYTES],
        bytes: &[u8],
        ranges: impl Iterator<Item = Range<usize>>,
    ) {
        assert!(bytes.len() <= SHOWN_BYTES_MAX, "{} bytes are shown", bytes.len());
        assert!((0..self.members.len()).all(|place| self.has_shown(place)), "the round before is not over");
        self.round += 1;
        self.write(HEADER.start, header);
        let mut last = 0..0;
        for range in ranges.filter(|range| !range.is_empty()) {
            if range != last {
                self.write(BYTES_START + range.start, &bytes[range.clone()]);
                last = range;
            }
        }
        // Before the look at who sleeps: either this rank sees the sleeper, or the sleeper this round.
        self.memory.long(self.side(self.mine)).store(self.round, Ordering::SeqCst);
    }

    /// Into this rank's side of the round that begins.
    fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= SIDE);
        let start = self.memory.start();
        // SAFETY: it lies within this rank's side, which nobody else writes. Who read it did so two rounds
        // ago, and has shown the round after that since (`show` asserts it, by acquire loads); nobody reads
        // what this round brings before it sees its number, which is stored last.
        unsafe {
            let side = start.as_ptr().add(self.side(self.mine) + at);
            side.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    /// Whether the rank at `place` has shown its bytes of this round.
    pub(super) fn has_shown(&self, place: usize) -> bool {
        // It cannot be further: it waits for this rank.
        self.memory.long(self.side(place)).load(Ordering::SeqCst) == self.round
    }

    pub(super) fn header(&self, place: usize) -> &[u8; HEADER_BYTES] {
        self.read(place, HEADER).first_chunk().expect("a header is so long")
    }

    /// The first `length` of the bytes that the rank at `place` shows.
    pub(super) fn bytes(&self, place: usize, length: usize) -> &[u8] {
        self.read(place, BYTES_START..BYTES_START + length)
    }

    fn read(&self, place: usize, range: Range<usize>) -> &[u8] {
        assert!(range.end <= SIDE && self.has_shown(place), "what is not shown is read");
        // SAFETY: it lies within one side. Its owner has shown it in this round (acquired by the load in the
        // assertion), and writes it again only after this rank has shown its next, which takes `&mut self`:
        // the slice is gone by then.
        unsafe {
            let side = self.memory.start().as_ptr().add(self.side(place) + range.start);
            std::slice::from_raw_parts(side, range.len())
        }
    }

    /// Where the side of the rank at `place` begins that is of this round.
    fn side(&self, place: usize) -> usize {
        slots_start(self.members.len()) + (2 * place + (self.round % 2) as usize) * SIDE
    }

    /// To be said before the last look at what the others show.
    pub(super) fn say_asleep(&self, asleep: bool) {
        self.memory.word(PAGE + self.mine * LINE).store(asleep.into(), Ordering::SeqCst);
    }

    /// Whether the rank at `place` has to be rung.
    pub(super) fn is_asleep(&self, place: usize) -> bool {
        self.memory.word(PAGE + place * LINE).load(Ordering::SeqCst) != 0
    }
}

fn slots_start(ranks: usize) -> usize {
    PAGE + (ranks * LINE).next_multiple_of(PAGE)
}

fn size(ranks: usize) -> usize {
    (slots_start(ranks) + ranks * 2 * SIDE).next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_take_turns_and_nothing_is_read_early() {
        let members = vec![Rank(2), Rank(5)];
        let (mut a, file, invitation) = Slots::create(members.clone(), Rank(2)).unwrap();
        let mut b = Slots::open(&invitation, members, Rank(5)).unwrap();
        drop(file);
        for round in 0..5u8 {
            a.show(&[round; HEADER_BYTES], &[round; 8], std::iter::once(2..4));
            assert!(!a.has_shown(1));
            // What the other shows next is not for this round.
            b.show(&[round + 100; HEADER_BYTES], &[], std::iter::empty());
            assert!(a.has_shown(1) && b.has_shown(0));
            assert_eq!(b.header(0), &[round; HEADER_BYTES]);
            assert_eq!(b.bytes(0, 4)[2..], [round; 2]);
            assert_eq!(a.header(1)[0], round + 100);
        }
        assert!(!b.is_asleep(0));
        a.say_asleep(true);
        assert!(b.is_asleep(0) && !b.is_asleep(1));
    }

    #[test]
    #[should_panic(expected = "the round before is not over")]
    fn nobody_runs_ahead() {
        let (mut a, _file, _invitation) = Slots::create(vec![Rank(0), Rank(1)], Rank(0)).unwrap();
        a.show(&[0; HEADER_BYTES], &[], std::iter::empty());
        a.show(&[0; HEADER_BYTES], &[], std::iter::empty());
    }
}
