//! Memory between two ranks of one host that are of different stages: a ring of bytes each way. Who writes goes on
//! until the ring is full, who reads until it is empty; neither waits for the other to be there. What the bytes are, and
//! how one waits for more, is the business of [`super::neighbours`].
//!
//! A rank that will sleep says so in a word of its own, and is rung when there is something for it, as in [`super::slots`].
//!
//! ```text
//! [4096..] for each ring, a line each: bytes written u64, bytes read u64, reader sleeps u32, writer sleeps u32
//! [8192..] rings: [2, 1 MiB]; the first is from the lower rank to the upper
//! ```

use crate::collective::memory::{Invitation, PAGE, SharedMemory};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// As /proc shows it.
const NAME: &CStr = c"flotilla-stages";
/// Of a ring: what is handed on in steps of 64 rows and more fits, a long prompt's rows go in parts.
const CAPACITY: usize = 1 << 20;
/// Two cache lines: processors fetch them in pairs.
const LINE: usize = 128;
const RINGS_START: usize = 2 * PAGE;
const BYTES: usize = RINGS_START + 2 * CAPACITY;

/// One rank's end.
pub(super) struct Pipe {
    memory: SharedMemory,
    /// The ring that this rank writes, and the one that it reads.
    out: usize,
    into: usize,
}

/// What a rank waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// To write.
    Room,
    /// To read.
    Bytes,
}

impl Pipe {
    /// The lower rank's. The file must be kept until the other has opened it, and not longer.
    pub(super) fn create() -> io::Result<(Pipe, File, Invitation)> {
        let (memory, file, invitation) = SharedMemory::create(NAME, BYTES)?;
        Ok((Pipe { memory, out: 0, into: 1 }, file, invitation))
    }

    pub(super) fn open(invitation: &Invitation) -> io::Result<Pipe> {
        Ok(Pipe { memory: SharedMemory::open(NAME, invitation, BYTES)?, out: 1, into: 0 })
    }

    /// As many of the bytes as there is room for; [`ErrorKind::WouldBlock`] where there is none.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let ring = self.out;
        let count = bytes.len().min(CAPACITY - self.held(ring)?);
        if count == 0 && !bytes.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let written = self.written(ring).load(Ordering::Relaxed);
        let (first, rest) = bytes[..count].split_at(count.min(until_end(written)));
        for (at, part) in [(written, first), (written + first.len() as u64, rest)] {
            let start = RINGS_START + ring * CAPACITY + place(at);
            // SAFETY: it lies within the ring, which this rank alone writes. The reader reads only what is before
            // `written`, which is stored after it, and what it has not said to have read is not written: `held`
            // has loaded that after it was read.
            unsafe {
                let start = self.memory.start().as_ptr().add(start);
                start.copy_from_nonoverlapping(part.as_ptr(), part.len());
            }
        }
        // Before the look at who sleeps: either this rank sees the sleeper, or the sleeper these bytes.
        self.written(ring).store(written + count as u64, Ordering::SeqCst);
        Ok(count)
    }

    /// As many bytes as there are, at most what fits; [`ErrorKind::WouldBlock`] where there are none.
    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let ring = self.into;
        let count = into.len().min(self.held(ring)?);
        if count == 0 && !into.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let read = self.read_so_far(ring).load(Ordering::Relaxed);
        let (first, rest) = into[..count].split_at_mut(count.min(until_end(read)));
        let second = read + first.len() as u64;
        for (at, part) in [(read, first), (second, rest)] {
            let start = RINGS_START + ring * CAPACITY + place(at);
            // SAFETY: it lies within the ring, before what is said to be written, which was loaded after it was.
            // The writer does not write it again before this rank has said that it has read it, below.
            unsafe {
                let start = self.memory.start().as_ptr().add(start);
                start.copy_to_nonoverlapping(part.as_mut_ptr(), part.len());
            }
        }
        self.read_so_far(ring).store(read + count as u64, Ordering::SeqCst);
        Ok(count)
    }

    /// Whether what is wanted is there.
    pub(super) fn has(&self, wants: Wants) -> bool {
        // Memory that makes no sense is there to be found so.
        match wants {
            Wants::Room => self.held(self.out).map_or(true, |held| held < CAPACITY),
            Wants::Bytes => self.held(self.into).map_or(true, |held| held > 0),
        }
    }

    /// To be said before the last look.
    pub(super) fn say_asleep(&self, wants: Wants, asleep: bool) {
        let word = match wants {
            Wants::Room => self.sleeps(self.out, 3),
            Wants::Bytes => self.sleeps(self.into, 2),
        };
        word.store(asleep.into(), Ordering::SeqCst);
    }

    /// Whether the other rank sleeps until it has what it wants.
    pub(super) fn is_asleep(&self, wants: Wants) -> bool {
        let word = match wants {
            Wants::Room => self.sleeps(self.into, 3),
            Wants::Bytes => self.sleeps(self.out, 2),
        };
        word.load(Ordering::SeqCst) != 0
    }

    /// Bytes in a ring.
    fn held(&self, ring: usize) -> io::Result<usize> {
        let written = self.written(ring).load(Ordering::SeqCst);
        let held = written.wrapping_sub(self.read_so_far(ring).load(Ordering::SeqCst));
        match usize::try_from(held) {
            Ok(held) if held <= CAPACITY => Ok(held),
            _ => Err(io::Error::new(ErrorKind::InvalidData, "the memory that it shares is spoiled")),
        }
    }

    fn written(&self, ring: usize) -> &AtomicU64 {
        self.memory.long(PAGE + 4 * ring * LINE)
    }

    fn read_so_far(&self, ring: usize) -> &AtomicU64 {
        self.memory.long(PAGE + (4 * ring + 1) * LINE)
    }

    fn sleeps(&self, ring: usize, line: usize) -> &AtomicU32 {
        self.memory.word(PAGE + (4 * ring + line) * LINE)
    }
}

/// Where the byte of that number lies in a ring.
fn place(byte: u64) -> usize {
    (byte % CAPACITY as u64) as usize
}

fn until_end(byte: u64) -> usize {
    CAPACITY - place(byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> (Pipe, Pipe) {
        let (lower, file, invitation) = Pipe::create().unwrap();
        let upper = Pipe::open(&invitation).unwrap();
        drop(file);
        (lower, upper)
    }

    fn is_blocked<T>(result: &io::Result<T>) -> bool {
        result.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Pieces of many lengths, so that the ring's end falls into them everywhere.
    #[test]
    fn what_is_written_is_read_in_order_around_the_ring() {
        let (mut lower, mut upper) = ends();
        let (mut sent, mut got) = (0usize, 0usize);
        let mut room = vec![0; CAPACITY];
        for round in 0..400usize {
            let length = 1 + round * 7919 % 60_000;
            let bytes: Vec<u8> = (sent..sent + length).map(|at| (at % 251) as u8).collect();
            sent += lower.write(&bytes).unwrap_or(0);
            let read = upper.read(&mut room[..1 + round * 104_729 % 50_000]).unwrap_or(0);
            assert!(room[..read].iter().enumerate().all(|(at, byte)| *byte == ((got + at) % 251) as u8));
            got += read;
        }
        assert!(sent > 4 * CAPACITY && got <= sent, "{sent} sent, {got} read");
    }

    #[test]
    fn a_full_ring_takes_nothing_and_an_empty_one_gives_nothing() {
        let (mut lower, mut upper) = ends();
        assert!(is_blocked(&upper.read(&mut [0; 4])) && !upper.has(Wants::Bytes));
        assert_eq!(lower.write(&vec![7; CAPACITY + 5]).unwrap(), CAPACITY);
        assert!(is_blocked(&lower.write(&[7])) && !lower.has(Wants::Room) && upper.has(Wants::Bytes));
        assert_eq!(upper.read(&mut [0; 3]).unwrap(), 3);
        assert_eq!(lower.write(&[7; 9]).unwrap(), 3);
        // The other way is another ring.
        assert!(!lower.has(Wants::Bytes) && upper.has(Wants::Room));
        assert_eq!(upper.write(&[1, 2]).unwrap(), 2);
        assert_eq!(lower.read(&mut [0; 9]).unwrap(), 2);
    }

    #[test]
    fn each_sees_that_the_other_sleeps_and_for_what() {
        let (lower, upper) = ends();
        upper.say_asleep(Wants::Bytes, true);
        assert!(lower.is_asleep(Wants::Bytes) && !lower.is_asleep(Wants::Room));
        upper.say_asleep(Wants::Bytes, false);
        lower.say_asleep(Wants::Room, true);
        assert!(upper.is_asleep(Wants::Room) && !lower.is_asleep(Wants::Bytes));
    }

    #[test]
    fn memory_that_makes_no_sense_is_an_error() {
        let (mut lower, mut upper) = ends();
        lower.written(0).store(CAPACITY as u64 + 1, Ordering::SeqCst);
        let error = upper.read(&mut [0; 4]).unwrap_err().to_string();
        assert_eq!(error, "the memory that it shares is spoiled");
        assert!(lower.write(&[1]).is_err());
    }
}
