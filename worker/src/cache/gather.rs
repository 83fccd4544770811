//! Chunks of a slice out of the parts that are kept of it, or of a larger one: a plan with more ranks finds
//! its slices in those of one with fewer.

use super::file::PartFile;
use super::index::KeptSlice;
use crate::recut::{Proven, Recut};
use flotilla_shared::TensorSlice;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::PathBuf;
use tracing::warn;

/// Reads a slice forward; keeps the file that it read last.
pub struct Gather<'a> {
    files: Files<'a>,
    recut: Recut,
}

struct Files<'a> {
    kept: &'a KeptSlice,
    open: Option<(Range<usize>, PathBuf, PartFile)>,
}

/// It is not there, or damaged.
struct Missing;

impl<'a> Gather<'a> {
    /// # Panics
    /// If `slice` does not lie in the kept one.
    pub fn new(kept: &'a KeptSlice, slice: &TensorSlice) -> Gather<'a> {
        Gather { files: Files { kept, open: None }, recut: Recut::new(slice, &kept.slice) }
    }

    /// These bytes of the slice; `None` if they are not all there, or damaged.
    pub fn read(&mut self, bytes: Range<usize>) -> Option<Proven> {
        let Gather { files, recut } = self;
        recut.read(bytes, &mut |offset| files.chunk(offset).ok_or(Missing)).ok()
    }
}

impl Files<'_> {
    /// The chunk at `offset` of the kept slice.
    fn chunk(&mut self, offset: usize) -> Option<Proven> {
        self.open(offset)?;
        let (_, path, file) = self.open.as_ref()?;
        match file.chunk(offset) {
            Ok(chunk) => Some(chunk),
            Err(error) => {
                drop_damaged(path, &error);
                self.open = None;
                None
            }
        }
    }

    /// The file that has the chunk at `offset`.
    fn open(&mut self, offset: usize) -> Option<()> {
        if self.open.as_ref().is_some_and(|(bytes, ..)| bytes.contains(&offset)) {
            return Some(());
        }
        let (part, path) = self.kept.part_at(offset)?;
        match PartFile::open(&path, &part) {
            Ok(file) => self.open = Some((part.bytes, path, file)),
            Err(error) => {
                self.open = None;
                drop_damaged(&path, &error);
            }
        }
        self.open.as_ref().map(|_| ())
    }
}

/// What cannot be read is of no use to anybody.
fn drop_damaged(path: &std::path::Path, error: &std::io::Error) {
    // Another worker made room meanwhile, or found the damage first.
    if error.kind() == ErrorKind::NotFound {
        return;
    }
    warn!(file = %path.display(), %error, "a part in the weight cache is damaged, it is dropped and fetched again");
    let _ = std::fs::remove_file(path);
}
