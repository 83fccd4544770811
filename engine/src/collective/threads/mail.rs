//! What threads of different stages have for each other: parcels in a box of the receiver, each a copy.

use super::ThreadsCollective;
use super::shared::lock;
use crate::collective::stages::{Courier, Seat};
use crate::collective::{Collective, CollectiveError, Operation};
use flotilla_shared::Rank;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// For one rank, oldest first.
pub(super) type Mailbox = VecDeque<Parcel>;

pub(super) struct Parcel {
    from: usize,
    operation: Operation,
    bytes: Vec<u8>,
}

impl ThreadsCollective {
    /// Whether something of that rank is there.
    fn has_mail(&self, from: usize, operation: Operation) -> Result<bool, CollectiveError> {
        // Read before the box: what was sent before leaving still counts.
        let left = self.shared.slots[from].left.load(Ordering::SeqCst);
        if lock(&self.shared.mail[self.rank]).iter().any(|parcel| parcel.from == from) {
            return Ok(true);
        }
        self.expect_more(from, left, operation).map(|()| false)
    }

    /// The oldest of a rank that has something there.
    fn open_mail(&self, from: usize, operation: Operation) -> Result<Vec<u8>, CollectiveError> {
        let mut mail = lock(&self.shared.mail[self.rank]);
        let oldest = mail.iter().position(|parcel| parcel.from == from).expect("something of it is there");
        let Parcel { operation: found, bytes, .. } = mail.remove(oldest).expect("it is there");
        if found != operation {
            return Err(mismatch(from, operation, "operation", operation.to_string(), found.to_string()));
        }
        Ok(bytes)
    }

    fn wait_for_mail(&self, from: usize, operation: Operation) -> Result<(), CollectiveError> {
        let peer = Rank(from as u16);
        let late = |waited: Duration| CollectiveError::Deadline {
            peer,
            missing: vec![peer],
            size: self.size(),
            operation,
            waited,
        };
        self.wait_until(Instant::now(), || self.has_mail(from, operation), late)
    }
}

impl Courier for ThreadsCollective {
    fn seat(&self) -> &Seat {
        &self.seat
    }

    fn deliver(&mut self, to: usize, operation: Operation, bytes: &[u8]) -> Result<(), CollectiveError> {
        self.expect_more(to, self.shared.slots[to].left.load(Ordering::SeqCst), operation)?;
        let parcel = Parcel { from: self.rank, operation, bytes: bytes.to_vec() };
        lock(&self.shared.mail[to]).push_back(parcel);
        self.shared.wake_all();
        Ok(())
    }

    fn collect(&mut self, from: usize, operation: Operation, into: &mut [u8]) -> Result<(), CollectiveError> {
        self.wait_for_mail(from, operation)?;
        let bytes = self.open_mail(from, operation)?;
        if bytes.len() != into.len() {
            let (expected, found) = (into.len().to_string(), bytes.len().to_string());
            return Err(mismatch(from, operation, "length", expected, found));
        }
        into.copy_from_slice(&bytes);
        Ok(())
    }

    fn collect_next(
        &mut self,
        from: usize,
        operation: Operation,
        wait: bool,
        out: &mut Vec<u8>,
    ) -> Result<bool, CollectiveError> {
        if wait {
            self.wait_for_mail(from, operation)?;
        } else if !self.has_mail(from, operation)? {
            return Ok(false);
        }
        *out = self.open_mail(from, operation)?;
        Ok(true)
    }
}

fn mismatch(
    from: usize,
    operation: Operation,
    field: &'static str,
    expected: String,
    found: String,
) -> CollectiveError {
    CollectiveError::Mismatch { peer: Rank(from as u16), operation, field, expected, found }
}
