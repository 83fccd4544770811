//! Memory of the machine that several ranks have in common, whether they are threads or processes: a file
//! without a name (memfd), which one rank makes and the others open through that rank's entry in /proc. Only
//! processes of the same user can. It ends with the last rank that has it, however that rank ends; nothing
//! is left behind. What lies in it is the business of those who use it; the first page has only the proof
//! that a rank has opened the right one, and room for a few words.
//!
//! ```text
//! [0..64] words of whoever uses it   [64..96] nonce   [4096..] theirs
//! ```

use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

pub(super) const PAGE: usize = 4096;
const NONCE: std::ops::Range<usize> = 64..96;

/// By which the other ranks find it. Goes over the ranks' links, which only members of the group have.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Invitation {
    pub process: u32,
    pub file: i32,
    pub nonce: [u8; 32],
}

/// One rank's mapping.
pub(super) struct SharedMemory {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: what is shared is only touched through atomics here; who uses `start` answers for the rest.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Zeroed, but for the nonce. The file must be kept until all ranks have opened it, and not longer.
    ///
    /// `name` is what /proc shows.
    pub fn create(name: &CStr, bytes: usize) -> io::Result<(SharedMemory, File, Invitation)> {
        let nonce = random()?;
        // SAFETY: the name is a C string; the result is checked.
        let file = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it has just been made, and nobody else has it.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(file) });
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        file.set_len(bytes as u64)?;
        // Memory that is not there is an error now, not a signal later.
        // SAFETY: the file is open.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes as libc::off_t) } {
            0 => {}
            code => return Err(io::Error::from_raw_os_error(code)),
        }
        let memory = SharedMemory::map(&file, bytes)?;
        // SAFETY: the nonce lies within the first page, and nobody else knows of the memory yet.
        unsafe {
            memory.start.as_ptr().add(NONCE.start).copy_from_nonoverlapping(nonce.as_ptr(), nonce.len());
        }
        let invitation = Invitation { process: std::process::id(), file: file.as_raw_fd(), nonce };
        Ok((memory, file, invitation))
    }

    pub fn open(name: &CStr, invitation: &Invitation, bytes: usize) -> io::Result<SharedMemory> {
        let path = PathBuf::from(format!("/proc/{}/fd/{}", invitation.process, invitation.file));
        // Opening something else could do something: this machine's process of that number may be another.
        let other = || io::Error::other("its owner's processes are not seen from here (another container?)");
        let target = std::fs::read_link(&path)?;
        if !target.to_string_lossy().starts_with(&format!("/memfd:{}", name.to_string_lossy())) {
            return Err(other());
        }
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        if file.metadata()?.len() != bytes as u64 {
            return Err(other());
        }
        let memory = SharedMemory::map(&file, bytes)?;
        // SAFETY: the nonce lies within the first page; it was written before the invitation was sent.
        let nonce: [u8; 32] = unsafe { memory.start.as_ptr().add(NONCE.start).cast::<[u8; 32]>().read() };
        if nonce != invitation.nonce { Err(other()) } else { Ok(memory) }
    }

    fn map(file: &File, bytes: usize) -> io::Result<SharedMemory> {
        assert!(bytes >= PAGE, "the nonce has its place");
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, of a file that is so long and never shrinks.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("mmap gives no null");
        Ok(SharedMemory { start, bytes })
    }

    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whoever asks for one never touches it in another way.
    pub fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.bytes);
        // SAFETY: it lies within the mapping, aligned, and is only ever used as an atomic or by a card.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    /// As [`SharedMemory::word`].
    pub fn long(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.bytes);
        // SAFETY: as for a word.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and no card has it any more: who registers it holds it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

pub(super) fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    // SAFETY: the pointer and the length are those of one array.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == bytes.len() as isize { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

/// Equal for two processes if they can be expected to open each other's memory: the same start of the same
/// kernel, the same view of processes, the same user. Whether they can is seen when they try.
pub fn host() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let processes = std::fs::read_link("/proc/self/ns/pid");
    let user = std::fs::metadata("/proc/self").map(|process| process.uid());
    match (boot, processes, user) {
        (Ok(boot), Ok(processes), Ok(user)) => {
            format!("{} {} user {user}", boot.trim(), processes.to_string_lossy())
        }
        // Like no other's: nobody tries.
        _ => random().map_or_else(|_| String::new(), |bytes| blake3::Hash::from(bytes).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    const NAME: &CStr = c"flotilla-test";

    #[test]
    fn two_mappings_are_one_memory() {
        let (ours, file, invitation) = SharedMemory::create(NAME, 2 * PAGE).unwrap();
        let theirs = SharedMemory::open(NAME, &invitation, 2 * PAGE).unwrap();
        drop(file);
        ours.word(PAGE).store(7, Ordering::SeqCst);
        assert_eq!(theirs.word(PAGE).load(Ordering::SeqCst), 7);
        assert!(SharedMemory::open(NAME, &invitation, 2 * PAGE).is_err(), "nobody comes later");
    }

    #[test]
    fn what_is_not_the_memory_is_not_opened() {
        let (_memory, file, invitation) = SharedMemory::create(NAME, PAGE).unwrap();
        let mut wrong = invitation.clone();
        wrong.nonce[31] ^= 1;
        assert!(SharedMemory::open(NAME, &wrong, PAGE).is_err());
        assert!(SharedMemory::open(NAME, &invitation, 2 * PAGE).is_err(), "another size");
        assert!(SharedMemory::open(c"flotilla-other", &invitation, PAGE).is_err(), "another name");
        let null = File::open("/dev/null").unwrap();
        let wrong = Invitation { file: null.as_raw_fd(), ..invitation.clone() };
        assert!(SharedMemory::open(NAME, &wrong, PAGE).is_err());
        assert!(SharedMemory::open(NAME, &invitation, PAGE).is_ok());
        drop(file);
    }

    #[test]
    fn only_its_user_may_open_it() {
        let (_memory, file, _invitation) = SharedMemory::create(NAME, PAGE).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_host_is_itself() {
        assert_eq!(host(), host());
        assert!(!host().is_empty());
    }
}
