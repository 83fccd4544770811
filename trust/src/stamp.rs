//! What is another once a file was written, replaced, or given other rights: by the system's own time of change, which no
//! program sets.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// None in its place: there is no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    changed_s: i64,
    changed_ns: i64,
    device: u64,
    inode: u64,
    bytes: u64,
}

impl Stamp {
    pub fn of(path: &Path) -> Option<Stamp> {
        let file = fs::metadata(path).ok()?;
        Some(Stamp {
            changed_s: file.ctime(),
            changed_ns: file.ctime_nsec(),
            device: file.dev(),
            inode: file.ino(),
            bytes: file.len(),
        })
    }
}
