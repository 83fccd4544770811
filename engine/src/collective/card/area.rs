//! Memory of the machine that all ranks of a group have in common, whether they are threads or processes:
//! a file without a name (memfd), which rank 0 makes and the others open through rank 0's entry in /proc.
//! It ends with the last rank that has it, however that rank ends; nothing is left behind. Where the ranks'
//! values and flags are in a card's memory, the capacity is 0, and flags only tell the host how far ranks are.
//!
//! ```text
//! [0] the abort word [64..96] nonce   [4096..] flags: u32 [ranks, FLAGS]   then slots: f32 [ranks, 2, capacity]
//! ```

use super::host::{FIRST_OPERATION, FLAGS};
use flotilla_shared::Rank;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

const PAGE: usize = 4096;
const NONCE: std::ops::Range<usize> = 64..96;
/// As /proc shows it.
const NAME: &std::ffi::CStr = c"flotilla-sum";

/// By which the other ranks find it. Goes over the ranks' link, which only members of the group have.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Invitation {
    process: u32,
    file: i32,
    pub nonce: [u8; 32],
}

pub(super) struct Area {
    start: NonNull<u8>,
    bytes: usize,
    ranks: usize,
}

// SAFETY: what is shared is only touched through atomics here, and by the cards.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// Rank 0's. The file must be kept until all ranks have opened it, and not longer.
    pub fn create(ranks: usize, capacity: usize) -> io::Result<(Area, File, Invitation)> {
        let nonce = random()?;
        let bytes = size(ranks, capacity);
        // SAFETY: the name is a C string; the result is checked.
        let file = unsafe { libc::memfd_create(NAME.as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it has just been made, and nobody else has it.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(file) });
        file.set_len(bytes as u64)?;
        // Memory that is not there is an error now, not a signal later.
        // SAFETY: the file is open.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes as libc::off_t) } {
            0 => {}
            code => return Err(io::Error::from_raw_os_error(code)),
        }
        let area = Area::map(&file, ranks, bytes)?;
        for rank in 0..ranks {
            (0..FLAGS).for_each(|chunk| area.flag(rank, chunk).store(FIRST_OPERATION, Ordering::Relaxed));
        }
        // SAFETY: the nonce lies within the first page, and nobody else knows of the area yet.
        unsafe { area.start.as_ptr().add(NONCE.start).copy_from_nonoverlapping(nonce.as_ptr(), nonce.len()) };
        let invitation = Invitation { process: std::process::id(), file: file.as_raw_fd(), nonce };
        Ok((area, file, invitation))
    }

    pub fn open(invitation: &Invitation, ranks: usize, capacity: usize) -> io::Result<Area> {
        let path = PathBuf::from(format!("/proc/{}/fd/{}", invitation.process, invitation.file));
        // Opening something else could do something: this machine's process of that number may be another.
        let other = || io::Error::other("rank 0's processes are not seen from here (another container?)");
        let target = std::fs::read_link(&path)?;
        if !target.to_string_lossy().starts_with(&format!("/memfd:{}", NAME.to_string_lossy())) {
            return Err(other());
        }
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let bytes = size(ranks, capacity);
        if file.metadata()?.len() != bytes as u64 {
            return Err(other());
        }
        let area = Area::map(&file, ranks, bytes)?;
        // SAFETY: the nonce lies within the first page; it was written before the invitation was sent.
        let nonce: [u8; 32] = unsafe { area.start.as_ptr().add(NONCE.start).cast::<[u8; 32]>().read() };
        if nonce != invitation.nonce { Err(other()) } else { Ok(area) }
    }

    fn map(file: &File, ranks: usize, bytes: usize) -> io::Result<Area> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, of a file that is so long and never shrinks.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("mmap gives no null");
        Ok(Area { start, bytes, ranks })
    }

    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn flags_offset(&self) -> usize {
        PAGE
    }

    pub fn slots_offset(&self) -> usize {
        slots_offset(self.ranks)
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset < self.slots_offset());
        // SAFETY: it lies within the mapping, aligned, and is only ever used as an atomic or by a card.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(offset).cast()) }
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

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and no card has it any more: who registers it holds it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

fn slots_offset(ranks: usize) -> usize {
    PAGE + (ranks * FLAGS * 4).next_multiple_of(PAGE)
}

fn size(ranks: usize, capacity: usize) -> usize {
    (slots_offset(ranks) + ranks * 2 * capacity * 4).next_multiple_of(PAGE)
}

pub(super) fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    // SAFETY: the pointer and the length are those of one array.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == bytes.len() as isize { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_are_one_memory() {
        let (ours, file, invitation) = Area::create(3, 4096).unwrap();
        let theirs = Area::open(&invitation, 3, 4096).unwrap();
        drop(file);
        assert!(!theirs.is_aborted());
        ours.abort();
        assert!(theirs.is_aborted());
        ours.flag(1, 0).store(FIRST_OPERATION.wrapping_add(1), Ordering::SeqCst);
        assert_eq!(theirs.behind(1), [Rank(0), Rank(2)]);
        assert!(theirs.behind(2).is_empty());
        let mut wrong = invitation.clone();
        wrong.nonce[0] ^= 1;
        assert!(
            Area::open(&wrong, 3, 4096).is_err(),
            "the file is closed, so even the number is wrong by now"
        );
    }

    #[test]
    fn what_is_not_the_area_is_not_opened() {
        let (_area, file, invitation) = Area::create(2, 4096).unwrap();
        let mut wrong = invitation.clone();
        wrong.nonce[31] ^= 1;
        assert!(Area::open(&wrong, 2, 4096).is_err());
        assert!(Area::open(&invitation, 2, 8192).is_err(), "another size");
        let null = File::open("/dev/null").unwrap();
        let wrong = Invitation { file: null.as_raw_fd(), ..invitation.clone() };
        assert!(Area::open(&wrong, 2, 4096).is_err());
        assert!(Area::open(&invitation, 2, 4096).is_ok());
        drop(file);
    }
}
