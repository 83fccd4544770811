//! The header before each message, on the wire and in shared memory: 32 bytes, little-endian, every field
//! checked.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic |
//! | 4 | operation |
//! | 5..8 | zero |
//! | 8..16 | epoch |
//! | 16..24 | sequence number of the message in its epoch; between stages, on its link |
//! | 24..32 | bytes that follow; in "gives up": none, but the culprit's rank + 1, or 0; in "rings": none |

use crate::collective::{CollectiveError, Operation};
use flotilla_shared::{Epoch, Rank};

pub(super) const HEADER_BYTES: usize = 32;

const MAGIC: [u8; 4] = *b"FLTc";

/// What a message is; the discriminant is the byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    AllReduce = 1,
    AllGather = 2,
    Barrier = 3,
    /// Wakes a peer that sleeps beside the memory in which something is shown; comes at any time.
    Rings = 4,
    HandOver = 5,
    Tokens = 6,
    GivesUp = 255,
}

impl From<Operation> for Kind {
    fn from(operation: Operation) -> Kind {
        match operation {
            Operation::AllReduce => Kind::AllReduce,
            Operation::AllGather => Kind::AllGather,
            Operation::Barrier => Kind::Barrier,
            Operation::HandOver { .. } => Kind::HandOver,
            Operation::Tokens => Kind::Tokens,
        }
    }
}

/// What every message of one exchange has in common.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    pub(super) epoch: Epoch,
    pub(super) sequence: u64,
    pub(super) operation: Operation,
}

/// How long a message may be.
#[derive(Clone, Copy)]
pub(super) enum Length {
    Exactly(u64),
    AtMost(u64),
}

impl Frame {
    pub(super) fn header(&self, length: u64) -> [u8; HEADER_BYTES] {
        self.encode(self.operation.into(), length)
    }

    /// Instead of the message: this rank goes, because of that one.
    pub(super) fn gives_up(&self, culprit: Option<Rank>) -> [u8; HEADER_BYTES] {
        self.encode(Kind::GivesUp, culprit.map_or(0, |rank| u64::from(rank.0) + 1))
    }

    /// To a peer in memory that sleeps: look.
    pub(super) fn rings(&self) -> [u8; HEADER_BYTES] {
        self.encode(Kind::Rings, 0)
    }

    fn encode(&self, kind: Kind, length: u64) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC);
        header[4] = kind as u8;
        header[8..16].copy_from_slice(&self.epoch.0.to_le_bytes());
        header[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        header[24..].copy_from_slice(&length.to_le_bytes());
        header
    }

    /// Compares a header from `peer` with what this exchange expects; returns the length it gives.
    pub(super) fn check(
        &self,
        header: &[u8; HEADER_BYTES],
        peer: Rank,
        length: Length,
    ) -> Result<u64, CollectiveError> {
        let operation = self.operation;
        let mismatch = |field, expected: String, found: String| {
            Err(CollectiveError::Mismatch { peer, operation, field, expected, found })
        };
        let number =
            |at: usize| u64::from_le_bytes(*header[at..].first_chunk().expect("8 bytes from 8, 16 and 24"));
        let (epoch, sequence, found) = (number(8), number(16), number(24));
        if header[..4] != MAGIC {
            return mismatch("magic", format!("{MAGIC:?}"), format!("{:?}", &header[..4]));
        }
        if epoch != self.epoch.0 {
            return mismatch("epoch", self.epoch.to_string(), epoch.to_string());
        }
        if header[4] == Kind::GivesUp as u8 {
            let blamed = u16::try_from(found).ok().and_then(|rank| rank.checked_sub(1)).map(Rank);
            return Err(CollectiveError::PeerGaveUp { peer, operation, blamed });
        }
        if header[4] != Kind::from(operation) as u8 {
            return mismatch("operation", format!("{}", Kind::from(operation) as u8), header[4].to_string());
        }
        if header[5..8] != [0; 3] {
            return mismatch("padding", "0".into(), format!("{:?}", &header[5..8]));
        }
        if sequence != self.sequence {
            return mismatch("sequence number", self.sequence.to_string(), sequence.to_string());
        }
        match length {
            Length::Exactly(expected) if found != expected => {
                mismatch("length", expected.to_string(), found.to_string())
            }
            Length::AtMost(max) if found > max => {
                mismatch("length", format!("at most {max}"), found.to_string())
            }
            _ => Ok(found),
        }
    }
}

/// What came by the socket of a peer that shares memory: a bell, which may be an old one, or its last words.
pub(super) fn heard(header: &[u8; HEADER_BYTES], peer: Rank, frame: &Frame) -> Result<(), CollectiveError> {
    match header == &(Frame { sequence: sequence(header), ..*frame }).rings() {
        true => Ok(()),
        // Nothing else than last words is expected, so that all else is a mismatch.
        false => frame.check(header, peer, Length::AtMost(0)).and_then(|_| {
            let (operation, field) = (frame.operation, "message");
            let (expected, found) = ("a bell".into(), format!("kind {}", header[4]));
            Err(CollectiveError::Mismatch { peer, operation, field, expected, found })
        }),
    }
}

fn sequence(header: &[u8; HEADER_BYTES]) -> u64 {
    u64::from_le_bytes(*header[16..].first_chunk().expect("8 bytes from 16"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bells_may_be_old_and_last_words_are_heard() {
        let frame = Frame { epoch: Epoch(7), sequence: 9, operation: Operation::AllReduce };
        let old = Frame { sequence: 3, operation: Operation::Barrier, ..frame };
        assert_eq!(heard(&old.rings(), Rank(3), &frame), Ok(()));
        let error = heard(&frame.gives_up(Some(Rank(1))), Rank(3), &frame).unwrap_err();
        assert_eq!(error.culprit(), Some(Rank(1)));
        let other = Frame { epoch: Epoch(6), ..frame };
        for wrong in [other.rings(), frame.header(0)] {
            assert_eq!(heard(&wrong, Rank(3), &frame).unwrap_err().culprit(), Some(Rank(3)));
        }
    }

    #[test]
    fn every_field_is_checked() {
        let frame = Frame { epoch: Epoch(7), sequence: 9, operation: Operation::AllReduce };
        let peer = Rank(3);
        let check = |header: &[u8; HEADER_BYTES]| frame.check(header, peer, Length::Exactly(40));
        let good = frame.header(40);
        assert_eq!(check(&good), Ok(40));
        for byte in 0..HEADER_BYTES {
            let mut bad = good;
            bad[byte] ^= 0x10;
            let error = check(&bad).expect_err("a changed byte is seen");
            assert_eq!(error.culprit(), Some(peer), "{error}");
        }
        let error = check(&frame.header(41)).unwrap_err().to_string();
        assert!(
            error.starts_with("rank 3 is out of step during all-reduce: its length is 41, expected 40"),
            "{error}"
        );
        assert!(frame.check(&good, peer, Length::AtMost(39)).is_err());
        for blamed in [None, Some(Rank(0)), Some(Rank(63))] {
            let operation = Operation::AllReduce;
            let expected = CollectiveError::PeerGaveUp { peer, operation, blamed };
            assert_eq!(check(&frame.gives_up(blamed)), Err(expected));
        }
    }
}
