//! Chunks out of this worker's memory, with digests that say something of damage there: those with which they came, or, where
//! they are asked for as another slice, made of bytes that were just checked by such. Where neither is known a digest is made
//! of what lies there, and is told to be no more than that.

use super::fetch::Stream;
use crate::recut::{Proven, Recut};
use flotilla_engine::weights::{CHUNK_BYTES, Digest};
use flotilla_shared::TensorSlice;
use std::ops::Range;
use tonic::Status;
use tracing::error;

/// A chunk to be sent.
pub struct Piece {
    pub bytes: Vec<u8>,
    pub digest: Digest,
    pub is_proven: bool,
}

impl Piece {
    pub fn proven((bytes, digest): Proven) -> Piece {
        Piece { bytes, digest, is_proven: true }
    }

    fn unproven(bytes: Vec<u8>) -> Piece {
        Piece { digest: Digest::of(&bytes), bytes, is_proven: false }
    }
}

/// Reads a slice forward.
pub struct Memory<'a> {
    stream: &'a Stream,
    slice: &'a TensorSlice,
    /// The slice of this worker's that it lies in, where it is cut in another way.
    larger: Option<(TensorSlice, Recut)>,
}

/// Why a chunk of a larger slice was not had.
enum Miss {
    NoDigest,
    Status(Status),
}

impl<'a> Memory<'a> {
    pub fn new(stream: &'a Stream, slice: &'a TensorSlice) -> Memory<'a> {
        let larger = stream.offered.digests.around(slice).filter(|larger| larger != slice);
        let larger = larger.map(|larger| {
            let recut = Recut::new(slice, &larger);
            (larger, recut)
        });
        Memory { stream, slice, larger }
    }

    /// Once it is there; `None`: it never will be.
    pub fn chunk(&mut self, chunk: Range<usize>) -> Result<Option<Piece>, Status> {
        if let Some(cut) = self.cut(chunk.clone())? {
            return Ok(Some(cut));
        }
        let Some(bytes) = self.stream.memory(self.slice, chunk.start, chunk.len())? else { return Ok(None) };
        // While this worker loads, digests come with the bytes.
        if let Some(digest) = self.stream.offered.digests.get(self.slice, chunk.start) {
            return Ok(Some(Piece::proven((bytes, digest))));
        }
        Ok(Some(self.cut(chunk)?.unwrap_or_else(|| Piece::unproven(bytes))))
    }

    /// Out of chunks of the larger slice, if their digests are known.
    fn cut(&mut self, chunk: Range<usize>) -> Result<Option<Piece>, Status> {
        let Some((larger, recut)) = &mut self.larger else { return Ok(None) };
        match recut.read(chunk, &mut |offset| checked(self.stream, larger, offset)) {
            Ok(proven) => Ok(Some(Piece::proven(proven))),
            Err(Miss::NoDigest) => Ok(None),
            Err(Miss::Status(status)) => Err(status),
        }
    }
}

fn checked(stream: &Stream, slice: &TensorSlice, offset: usize) -> Result<Proven, Miss> {
    let expected = stream.offered.digests.get(slice, offset).ok_or(Miss::NoDigest)?;
    let len = CHUNK_BYTES.min(slice.bytes() - offset);
    let bytes = stream.memory(slice, offset, len).map_err(Miss::Status)?.ok_or(Miss::NoDigest)?;
    let found = Digest::of(&bytes);
    if found != expected {
        error!(%slice, offset, %found, %expected, "this worker's memory is damaged");
        let words = format!("the chunk at byte {offset} of {slice} is damaged in this worker's memory");
        return Err(Miss::Status(Status::data_loss(words)));
    }
    Ok((bytes, found))
}
