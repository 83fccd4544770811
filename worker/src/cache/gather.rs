//! Chunks of a slice out of the parts that are kept of it, or of a larger one: a plan with more ranks finds
//! its slices in those of one with fewer.

use super::file::PartFile;
use super::index::KeptSlice;
use flotilla_engine::weights::{ByteRuns, CHUNK_BYTES};
use flotilla_shared::TensorSlice;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::PathBuf;
use tracing::warn;

/// Reads a slice forward; keeps the file and the chunk that it read last.
pub struct Gather<'a> {
    kept: &'a KeptSlice,
    runs: ByteRuns,
    file: Option<(Range<usize>, PathBuf, PartFile)>,
    /// Offset in the kept slice, and bytes.
    chunk: Option<(usize, Vec<u8>)>,
}

impl<'a> Gather<'a> {
    /// # Panics
    /// If `slice` does not lie in the kept one.
    pub fn new(kept: &'a KeptSlice, slice: &TensorSlice) -> Gather<'a> {
        Gather { kept, runs: ByteRuns::within(slice, &kept.slice), file: None, chunk: None }
    }

    /// These bytes of the slice; `None` if they are not all there, or damaged.
    pub fn read(&mut self, bytes: Range<usize>) -> Option<Vec<u8>> {
        let mut pieces = Vec::new();
        self.runs.visit(bytes.start, bytes.len(), |start, range| pieces.push((start, range.len())));
        // A whole chunk of the kept slice is handed on as it is.
        if let [(start, len)] = pieces[..]
            && start.is_multiple_of(CHUNK_BYTES)
        {
            self.hold(start)?;
            match self.chunk.take() {
                Some((_, chunk)) if chunk.len() == len => return Some(chunk),
                other => self.chunk = other,
            }
        }
        let mut out = Vec::with_capacity(bytes.len());
        for (start, len) in pieces {
            self.append(start..start + len, &mut out)?;
        }
        Some(out)
    }

    /// Bytes of the kept slice, which may lie in several chunks.
    fn append(&mut self, bytes: Range<usize>, out: &mut Vec<u8>) -> Option<()> {
        let mut at = bytes.start;
        while at < bytes.end {
            let first = at / CHUNK_BYTES * CHUNK_BYTES;
            let chunk = self.hold(first)?;
            let end = bytes.end.min(first + chunk.len());
            out.extend_from_slice(&chunk[at - first..end - first]);
            at = end;
        }
        Some(())
    }

    /// The chunk at `offset` of the kept slice.
    fn hold(&mut self, offset: usize) -> Option<&[u8]> {
        if self.chunk.as_ref().is_none_or(|(at, _)| *at != offset) {
            self.chunk = None;
            self.open(offset)?;
            let (_, path, file) = self.file.as_ref()?;
            match file.chunk(offset) {
                Ok(bytes) => self.chunk = Some((offset, bytes)),
                Err(error) => {
                    drop_damaged(path, &error);
                    self.file = None;
                }
            }
        }
        self.chunk.as_ref().map(|(_, bytes)| &bytes[..])
    }

    /// The file that has the chunk at `offset`.
    fn open(&mut self, offset: usize) -> Option<()> {
        if self.file.as_ref().is_some_and(|(bytes, ..)| bytes.contains(&offset)) {
            return Some(());
        }
        let (part, path) = self.kept.part_at(offset)?;
        match PartFile::open(&path, &part) {
            Ok(file) => self.file = Some((part.bytes, path, file)),
            Err(error) => {
                self.file = None;
                drop_damaged(&path, &error);
            }
        }
        self.file.as_ref().map(|_| ())
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
