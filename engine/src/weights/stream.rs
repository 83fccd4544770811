//! A slice in chunks, as it goes over the wire, with the digest of the whole at its end.

use super::{WeightError, WeightSource};
use flotilla_shared::TensorSlice;
use std::fmt;

/// Bytes of a chunk at most: a message that every receiver accepts.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// blake3 of all bytes of a slice.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

/// In hexadecimal, as b3sum prints it.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Some bytes of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Of the first byte, in the slice.
    pub offset: usize,
    pub bytes: Vec<u8>,
}

/// Iterator over the chunks of a slice, in order; ends after an error.
pub struct SliceReader<'a> {
    source: &'a dyn WeightSource,
    slice: &'a TensorSlice,
    hasher: blake3::Hasher,
    at: usize,
    len: usize,
    /// Bytes before this one are hashed, not yielded.
    resume_at: usize,
}

impl<'a> SliceReader<'a> {
    pub fn new(source: &'a dyn WeightSource, slice: &'a TensorSlice) -> Self {
        Self::resume(source, slice, 0)
    }

    /// The chunks from byte `offset` on, for a receiver that has those before; the digest is still of
    /// the whole slice.
    pub fn resume(source: &'a dyn WeightSource, slice: &'a TensorSlice, offset: usize) -> Self {
        let len = slice.bytes();
        SliceReader { source, slice, hasher: blake3::Hasher::new(), at: 0, len, resume_at: offset.min(len) }
    }

    /// The digest of the slice, once all its chunks are out.
    pub fn digest(&self) -> Option<Digest> {
        (self.at == self.len).then(|| Digest(*self.hasher.finalize().as_bytes()))
    }

    fn read(&mut self, end: usize) -> Result<Chunk, WeightError> {
        let mut chunk = Chunk { offset: self.at, bytes: vec![0; CHUNK_BYTES_MAX.min(end - self.at)] };
        self.source.read(self.slice, chunk.offset, &mut chunk.bytes)?;
        self.hasher.update(&chunk.bytes);
        self.at += chunk.bytes.len();
        Ok(chunk)
    }

    fn try_next(&mut self) -> Result<Option<Chunk>, WeightError> {
        while self.at < self.resume_at {
            self.read(self.resume_at)?;
        }
        if self.at == self.len { Ok(None) } else { self.read(self.len).map(Some) }
    }
}

impl Iterator for SliceReader<'_> {
    type Item = Result<Chunk, WeightError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at > self.len {
            return None;
        }
        let next = self.try_next();
        if next.is_err() {
            self.at = usize::MAX;
        }
        next.transpose()
    }
}

/// blake3 of a slice's bytes, read in chunks.
pub fn slice_digest(source: &dyn WeightSource, slice: &TensorSlice) -> Result<Digest, WeightError> {
    let mut reader = SliceReader::resume(source, slice, slice.bytes());
    match reader.next() {
        Some(Err(error)) => Err(error),
        _ => Ok(reader.digest().expect("a reader that ended without error has read all")),
    }
}
