//! Why an operation ended without its result, and whose fault it is.

use super::card::SumPath;
use crate::cuda::CudaError;
use flotilla_shared::{Epoch, Rank};
use std::fmt;
use std::time::Duration;
use thiserror::Error;

/// What a rank was doing, with its place in the sequence of operations of its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    AllReduce,
    AllGather,
    Barrier,
    /// Of x, from this stage to the next.
    HandOver {
        stage: u16,
    },
    /// What was sampled, from the last stage to the first.
    Tokens,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::AllReduce => f.write_str("all-reduce"),
            Operation::AllGather => f.write_str("all-gather"),
            Operation::Barrier => f.write_str("barrier"),
            Operation::HandOver { stage } => {
                write!(f, "the hand-over from stage {stage} to stage {}", stage + 1)
            }
            Operation::Tokens => f.write_str("the return of tokens to stage 0"),
        }
    }
}

/// Why an operation ended without its result. The group is unusable afterwards.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CollectiveError {
    /// A peer's process or thread ended, or its link broke.
    #[error(
        "rank {peer} left the group during {operation}: {reason}\nhint: the log of rank {peer} says why it ended"
    )]
    PeerLost { peer: Rank, operation: Operation, reason: String },

    /// A peer ended the group because of another one, or because it was told to.
    #[error(
        "rank {peer} ended the group during {operation}{}\nhint: the log of that rank says why",
        because_of(blamed)
    )]
    PeerGaveUp { peer: Rank, operation: Operation, blamed: Option<Rank> },

    #[error(
        "rank {peer} is silent: {operation} waited for {waited:?} ({} of {size} ranks still missing)\n\
         hint: the peer hangs, is cut off, or computes for longer than the deadline", missing.len()
    )]
    Deadline { peer: Rank, missing: Vec<Rank>, size: usize, operation: Operation, waited: Duration },

    /// The ranks do not do the same thing: a mistake of ours, or memory that flips.
    #[error(
        "rank {peer} is out of step during {operation}: its {field} is {found}, expected {expected}\n\
         hint: all workers must run the same version on the same plan"
    )]
    Mismatch { peer: Rank, operation: Operation, field: &'static str, expected: String, found: String },

    #[error("{operation} of {bytes} bytes, expected at most {max}\nhint: this is a mistake of the caller")]
    TooLong { operation: Operation, bytes: u64, max: u64 },

    /// This rank was told to stop, by its abort handle.
    #[error("the group was aborted")]
    Aborted,

    /// Not all members met.
    #[error(
        "the group of epoch {epoch} did not form within {waited:?}: {}\n\
         hint: can the workers reach each other's collective port, and do they have the same group key",
        lacking(missing)
    )]
    NotFormed { epoch: Epoch, missing: Vec<(Rank, String)>, waited: Duration },

    /// A member is there, and belongs to a later life of the group.
    #[error(
        "this rank is of epoch {ours}, rank {peer} is already of epoch {theirs}\nhint: this worker was left behind and has to register again"
    )]
    Stale { peer: Rank, ours: Epoch, theirs: Epoch },

    /// A proven member says something of itself or of the group that cannot be.
    #[error(
        "a member at {address} has {field} {found}, expected {expected}\nhint: the coordinator gave the ranks different plans"
    )]
    BadMember { address: String, field: &'static str, expected: String, found: String },

    /// This rank's card or its driver failed: the group ends, but no other rank is to blame.
    #[error("{operation} on the card: {error}")]
    Card { operation: Operation, error: CudaError },

    /// NCCL's own words.
    #[error("{operation} by NCCL: {reason}\nhint: NCCL_DEBUG=INFO makes NCCL say more")]
    Nccl { operation: Operation, reason: String },

    /// What was asked for cannot be had, or did not pass its start-up check.
    #[error("cannot sum by `{path}`: {reason}\nhint: --sum auto takes the best way that works")]
    NoSuchPath { path: SumPath, reason: String },

    /// Ranks that must share memory cannot.
    #[error(
        "cannot share memory between ranks: {reason}\nhint: --collective auto takes TCP where memory cannot be shared"
    )]
    NotShared { reason: String },

    #[error("cannot {doing}: {reason}\nhint: see this machine's limits of sockets and open files")]
    System { doing: &'static str, reason: String },
}

impl CollectiveError {
    /// The rank whose fault this is, as far as this one can tell; `None` if none is.
    pub fn culprit(&self) -> Option<Rank> {
        match self {
            CollectiveError::PeerLost { peer, .. }
            | CollectiveError::Deadline { peer, .. }
            | CollectiveError::Mismatch { peer, .. } => Some(*peer),
            CollectiveError::PeerGaveUp { peer, blamed, .. } => Some(blamed.unwrap_or(*peer)),
            CollectiveError::NotFormed { missing, .. } => missing.first().map(|(rank, _)| *rank),
            _ => None,
        }
    }
}

fn because_of(blamed: &Option<Rank>) -> String {
    blamed.map_or(String::new(), |rank| format!(" because of rank {rank}"))
}

fn lacking(missing: &[(Rank, String)]) -> String {
    let each = missing.iter().map(|(rank, reason)| format!("rank {rank} is missing ({reason})"));
    each.collect::<Vec<_>>().join(", ")
}
