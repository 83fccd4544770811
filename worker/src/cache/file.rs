//! One file of the cache: a part of a slice. In this order: what it is, in words; the digest of each chunk; a
//! digest of all this; and, from a multiple of 4096 on, the bytes.

use crate::load::PART_BYTES;
use flotilla_engine::weights::{CHUNK_BYTES, Digest};
use flotilla_shared::TensorSlice;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::SystemTime;

const MAGIC: &[u8; 16] = b"flotilla part 1\n";
/// Where the bytes begin is a multiple of it.
const ALIGN_BYTES: usize = 4096;
const DIGEST_BYTES: usize = 32;

/// Which part: so many bytes of a slice, at most [`PART_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartName {
    pub slice: TensorSlice,
    pub bytes: Range<usize>,
}

impl PartName {
    /// The part of `slice` that byte `offset` lies in.
    pub fn at(slice: &TensorSlice, offset: usize) -> PartName {
        let start = offset / PART_BYTES * PART_BYTES;
        PartName { slice: slice.clone(), bytes: start..slice.bytes().min(start + PART_BYTES) }
    }

    /// Whether it is what is kept as one file.
    pub fn is_whole(&self) -> bool {
        self.bytes.start < self.slice.bytes() && *self == PartName::at(&self.slice, self.bytes.start)
    }

    /// `NAME~0-32,0-2880~0-16777216`
    pub fn file_name(&self) -> String {
        let ranges: Vec<String> =
            self.slice.ranges.iter().map(|range| format!("{}-{}", range.start, range.end)).collect();
        let Range { start, end } = self.bytes;
        format!("{}~{}~{start}-{end}", self.slice.tensor, ranges.join(","))
    }

    /// Whether a name is of this form, whatever it says of which tensor.
    pub fn is_file_name(name: &str) -> bool {
        let words: Vec<&str> = name.split('~').collect();
        let [tensor, ranges, bytes] = words[..] else { return false };
        !tensor.is_empty() && ranges.split(',').chain([bytes]).all(|word| range(word).is_some())
    }

    pub fn chunk_count(&self) -> usize {
        self.bytes.len().div_ceil(CHUNK_BYTES)
    }

    /// Where the bytes begin in the file.
    pub fn data_at(&self) -> u64 {
        let head = MAGIC.len() + 4 + self.file_name().len() + (self.chunk_count() + 1) * DIGEST_BYTES;
        head.next_multiple_of(ALIGN_BYTES) as u64
    }

    pub fn file_bytes(&self) -> u64 {
        self.data_at() + self.bytes.len() as u64
    }

    /// All before the padding.
    pub fn head(&self, digests: &[Digest]) -> Vec<u8> {
        let name = self.file_name();
        let mut head = [&MAGIC[..], &(name.len() as u32).to_le_bytes(), name.as_bytes()].concat();
        digests.iter().for_each(|digest| head.extend(digest.0));
        let digest = Digest::of(&head);
        head.extend(digest.0);
        head
    }
}

/// `3-14`
pub(super) fn range(text: &str) -> Option<Range<usize>> {
    let (start, end) = text.split_once('-')?;
    Some(start.parse().ok()?..end.parse().ok()?)
}

/// An open file whose head is as it should be.
#[derive(Debug)]
pub struct PartFile {
    file: File,
    part: PartName,
    digests: Vec<Digest>,
}

impl PartFile {
    /// Opens the file of `part` and marks it as used now.
    pub fn open(path: &Path, part: &PartName) -> io::Result<PartFile> {
        assert!(part.bytes.len() <= PART_BYTES, "longer than a part is");
        let file = File::open(path)?;
        let (found, expected) = (file.metadata()?.len(), part.file_bytes());
        if found != expected {
            return Err(damaged(format!("it has {found} bytes, expected {expected}")));
        }
        let mut digests = vec![Digest([0; DIGEST_BYTES]); part.chunk_count()];
        let mut head = vec![0; part.head(&digests).len()];
        file.read_exact_at(&mut head, 0)?;
        let first = head.len() - (digests.len() + 1) * DIGEST_BYTES;
        let (stored, _) = head[first..].as_chunks::<DIGEST_BYTES>();
        digests.iter_mut().zip(stored).for_each(|(digest, stored)| *digest = Digest(*stored));
        if head != part.head(&digests) {
            return Err(damaged("its head is not what it should be".into()));
        }
        // Whoever may only read it cannot say so; then it is older than it need be.
        let _ = file.set_modified(SystemTime::now());
        Ok(PartFile { file, part: part.clone(), digests })
    }

    /// The chunk of the slice that begins at byte `offset`, checked, and its digest.
    pub fn chunk(&self, offset: usize) -> io::Result<(Vec<u8>, Digest)> {
        let within = offset - self.part.bytes.start;
        let mut bytes = vec![0; CHUNK_BYTES.min(self.part.bytes.end - offset)];
        self.file.read_exact_at(&mut bytes, self.part.data_at() + within as u64)?;
        let (found, expected) = (Digest::of(&bytes), self.digests[within / CHUNK_BYTES]);
        if found != expected {
            return Err(damaged(format!(
                "blake3 of the chunk at byte {offset} is {found}, expected {expected}"
            )));
        }
        Ok((bytes, found))
    }
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
