//! Ranks that are threads of one process, by shared memory.
//!
//! Each rank has a slot that it writes and all read. An operation copies the rank's vector into its
//! slot, publishes it by raising a counter, waits for the counters of the others, and sums from their
//! slots in rank order. Slots have two sides that take turns, so that one wait an operation is enough:
//! who waits in operation k for all the others knows that they are done with reading operation k − 1.
//!
//! Long vectors are summed piece by piece, each rank one piece for all, with a second wait; the sums are
//! the same, bit by bit. What passes between stages goes by [`mail`].

mod mail;
mod shared;

use super::stages::{self, Seat};
use super::{AbortHandle, AllReduce, Collective, CollectiveError, Operation, SPIN, piece, sum_in_rank_order};
use flotilla_shared::Rank;
use shared::{Elements, Shared, Side, lock};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Vectors longer than this are summed piece by piece: reading all of every rank costs more by then
/// than waiting twice.
const WHOLE_ELEMENTS_MAX: usize = 16 << 10;

/// One rank of a group of threads.
pub struct ThreadsCollective {
    rank: usize,
    seat: Seat,
    shared: Arc<Shared>,
    /// Operations begun.
    operations: usize,
    /// Publications made; more than one in an operation on long vectors.
    published: u64,
    failed: Option<CollectiveError>,
    /// Of an x that is gathered.
    pieces: Vec<u8>,
}

/// A group of `n` ranks; an operation waits for as long as it takes.
pub fn group(n: usize) -> Vec<ThreadsCollective> {
    members(&[n], None)
}

/// A group of `n` ranks, of which each operation must end within `deadline`.
pub fn group_with_deadline(n: usize, deadline: Duration) -> Vec<ThreadsCollective> {
    members(&[n], Some(deadline))
}

/// Stages of so many ranks each, which are numbered through.
pub fn stages(sizes: &[usize]) -> Vec<ThreadsCollective> {
    members(sizes, None)
}

/// The same, with a deadline for each operation.
pub fn stages_with_deadline(sizes: &[usize], deadline: Duration) -> Vec<ThreadsCollective> {
    members(sizes, Some(deadline))
}

fn members(sizes: &[usize], deadline: Option<Duration>) -> Vec<ThreadsCollective> {
    let n: usize = sizes.iter().sum();
    assert!(n > 0 && n <= usize::from(u16::MAX), "a group of {n} ranks");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Who spins on a core that a peer needs only delays it.
    let spin = if n <= cores { SPIN } else { Duration::ZERO };
    let shared = Arc::new(Shared::new(n, deadline, spin));
    let member = |rank| ThreadsCollective {
        rank,
        seat: Seat::new(sizes, rank),
        shared: Arc::clone(&shared),
        operations: 0,
        published: 0,
        failed: None,
        pieces: Vec::new(),
    };
    (0..n).map(member).collect()
}

impl ThreadsCollective {
    fn contribute(&mut self, operation: Operation, len: usize, fill: impl FnOnce(&mut Side)) -> usize {
        let side = self.operations % 2;
        self.operations += 1;
        // SAFETY: the owner's time to write (see `impl Sync`): its operation before has ended, this one
        // is not yet published.
        let mine = unsafe { &mut *self.shared.slots[self.rank].sides[side].get() };
        fill(mine);
        (mine.operation, mine.len) = (Some(operation), len);
        mine.data = Elements(mine.floats.as_mut_ptr());
        self.publish();
        side
    }

    fn publish(&mut self) {
        self.published += 1;
        self.shared.slots[self.rank].published.store(self.published, Ordering::SeqCst);
        self.shared.wake_all();
    }

    /// Waits until all ranks have published as often as this one.
    fn wait(&self, operation: Operation) -> Result<(), CollectiveError> {
        let start = Instant::now();
        for peer in self.seat.ranks().filter(|&peer| peer != self.rank) {
            let late = |waited| self.late(operation, waited);
            self.wait_until(start, || self.has_published(peer, operation), late)?;
        }
        Ok(())
    }

    /// Looks for a while, then sleeps between looks.
    fn wait_until(
        &self,
        start: Instant,
        is_there: impl Fn() -> Result<bool, CollectiveError>,
        late: impl Fn(Duration) -> CollectiveError,
    ) -> Result<(), CollectiveError> {
        while !is_there()? {
            if start.elapsed() >= self.shared.spin {
                return self.sleep_until(start, is_there, late);
            }
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn has_published(&self, peer: usize, operation: Operation) -> Result<bool, CollectiveError> {
        let slot = &self.shared.slots[peer];
        // Read before the counter: what was published before leaving still counts.
        let left = slot.left.load(Ordering::SeqCst);
        if slot.published.load(Ordering::SeqCst) >= self.published {
            return Ok(true);
        }
        self.expect_more(peer, left, operation).map(|()| false)
    }

    /// Whether more may come from a peer, which had or had not `left`.
    fn expect_more(&self, peer: usize, left: bool, operation: Operation) -> Result<(), CollectiveError> {
        if let Some(ended) = self.shared.ended_for(self.rank(), operation) {
            return Err(ended);
        }
        if left {
            let (peer, reason) = (Rank(peer as u16), "its thread has ended".to_owned());
            return Err(CollectiveError::PeerLost { peer, operation, reason });
        }
        Ok(())
    }

    fn sleep_until(
        &self,
        start: Instant,
        is_there: impl Fn() -> Result<bool, CollectiveError>,
        late: impl Fn(Duration) -> CollectiveError,
    ) -> Result<(), CollectiveError> {
        let shared = &*self.shared;
        let mut guard = lock(&shared.sleep);
        // Announced before the last look: who publishes after that look sees a sleeper.
        shared.sleepers.fetch_add(1, Ordering::SeqCst);
        let result = loop {
            match is_there() {
                Ok(false) => {}
                Ok(true) => break Ok(()),
                Err(error) => break Err(error),
            }
            guard = match shared.deadline.map(|deadline| deadline.checked_sub(start.elapsed())) {
                None => shared.wake.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Some(Some(left)) => {
                    shared.wake.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0
                }
                Some(None) => break Err(late(start.elapsed())),
            };
        };
        shared.sleepers.fetch_sub(1, Ordering::SeqCst);
        result
    }

    fn late(&self, operation: Operation, waited: Duration) -> CollectiveError {
        let is_late =
            |&rank: &usize| self.shared.slots[rank].published.load(Ordering::SeqCst) < self.published;
        let missing = self.seat.ranks().filter(is_late).map(|rank| Rank(rank as u16));
        let missing: Vec<Rank> = missing.collect();
        let peer = missing.first().copied().unwrap_or(self.rank());
        CollectiveError::Deadline { peer, missing, size: self.size(), operation, waited }
    }

    /// That all do the same, as far as can be seen; `len` is `None` where lengths may differ.
    fn compare(&self, side: usize, operation: Operation, len: Option<usize>) -> Result<(), CollectiveError> {
        for rank in self.seat.ranks() {
            // SAFETY: all have published this operation, this rank has not published its next.
            let theirs = unsafe { self.shared.side(rank, side) };
            let mismatch = |field, expected: String, found: String| {
                let peer = Rank(rank as u16);
                Err(CollectiveError::Mismatch { peer, operation, field, expected, found })
            };
            match theirs.operation {
                Some(found) if found != operation => {
                    return mismatch("operation", operation.to_string(), found.to_string());
                }
                _ => {}
            }
            if let Some(len) = len
                && theirs.len != len
            {
                return mismatch("length", len.to_string(), theirs.len.to_string());
            }
        }
        Ok(())
    }

    fn try_all_reduce(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        let operation = Operation::AllReduce;
        let (n, size, place) = (x.len(), self.size(), self.place());
        let ranks = self.seat.ranks();
        let side = self.contribute(operation, n, |mine| {
            mine.floats.clear();
            mine.floats.extend_from_slice(x);
        });
        self.wait(operation)?;
        self.compare(side, operation, Some(n))?;
        // Of the rank at a place.
        let elements = |of: usize, range: std::ops::Range<usize>| {
            // SAFETY: all have published this operation, with `n` elements, and this rank has not
            // published its next; `range` is written, if at all, before the publication awaited last.
            unsafe {
                let data = self.shared.side(ranks.start + of, side).data.0;
                std::slice::from_raw_parts(data.add(range.start), range.len())
            }
        };
        if n <= WHOLE_ELEMENTS_MAX || size <= 2 {
            sum_in_rank_order(x, place, size, |of| elements(of, 0..n));
            return Ok(());
        }
        let mine = piece(n, place, size);
        sum_in_rank_order(&mut x[mine.clone()], place, size, |of| elements(of, mine.clone()));
        // SAFETY: a rank reads its own piece of the others' slots only, until the next publication; so
        // this piece of this slot is read by nobody but this thread.
        unsafe {
            let data = self.shared.side(self.rank, side).data.0;
            data.add(mine.start).copy_from_nonoverlapping(x[mine.clone()].as_ptr(), mine.len());
        }
        self.publish();
        self.wait(operation)?;
        for of in (0..size).filter(|&of| of != place) {
            let theirs = piece(n, of, size);
            // SAFETY: as above; the piece was written before the publication that was just awaited.
            let sums = unsafe {
                let data = self.shared.side(ranks.start + of, side).data.0;
                std::slice::from_raw_parts(data.add(theirs.start), theirs.len())
            };
            x[theirs].copy_from_slice(sums);
        }
        Ok(())
    }

    fn try_all_gather(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), CollectiveError> {
        let operation = Operation::AllGather;
        let side = self.contribute(operation, bytes.len(), |mine| {
            mine.bytes.clear();
            mine.bytes.extend_from_slice(bytes);
        });
        self.wait(operation)?;
        self.compare(side, operation, None)?;
        out.clear();
        for rank in self.seat.ranks() {
            // SAFETY: all have published this operation, this rank has not published its next.
            out.extend_from_slice(unsafe { &self.shared.side(rank, side).bytes });
        }
        Ok(())
    }

    fn try_barrier(&mut self) -> Result<(), CollectiveError> {
        let side = self.contribute(Operation::Barrier, 0, |_| {});
        self.wait(Operation::Barrier)?;
        self.compare(side, Operation::Barrier, None)
    }

    /// Runs an operation unless the group has ended; the first error ends it.
    fn run(
        &mut self,
        operation: Operation,
        attempt: impl FnOnce(&mut Self) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = match self.shared.ended_for(self.rank(), operation) {
            Some(ended) => Err(ended),
            None => attempt(self),
        };
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            self.shared.end(self.rank(), error.clone());
        }
        result
    }
}

impl AllReduce<[f32]> for ThreadsCollective {
    fn all_reduce(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        self.run(Operation::AllReduce, |this| this.try_all_reduce(x))
    }

    fn hand_on(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        self.run(self.seat.hands_on(), |this| stages::hand_on(this, x))
    }

    fn take_over(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        let mut pieces = std::mem::take(&mut self.pieces);
        let result = self.run(self.seat.takes_over(), |this| stages::take_over(this, x, &mut pieces));
        self.pieces = pieces;
        result
    }
}

impl Collective for ThreadsCollective {
    fn rank(&self) -> Rank {
        Rank(self.rank as u16)
    }

    fn size(&self) -> usize {
        self.seat.ranks().len()
    }

    fn place(&self) -> usize {
        self.seat.place()
    }

    fn tell(&mut self, tokens: &[u8]) -> Result<(), CollectiveError> {
        self.run(Operation::Tokens, |this| stages::tell(this, tokens))
    }

    fn hear(&mut self, wait: bool, out: &mut Vec<u8>) -> Result<bool, CollectiveError> {
        let mut heard = false;
        self.run(Operation::Tokens, |this| {
            heard = stages::hear(this, wait, out)?;
            Ok(())
        })?;
        Ok(heard)
    }

    fn all_gather(&mut self, mine: &[u8], out: &mut Vec<u8>) -> Result<(), CollectiveError> {
        self.run(Operation::AllGather, |this| this.try_all_gather(mine, out))
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.run(Operation::Barrier, Self::try_barrier)
    }

    fn is_broken(&mut self) -> bool {
        self.shared.is_broken()
    }

    fn end(&mut self, error: CollectiveError) {
        if self.failed.is_none() {
            self.failed = Some(error.clone());
            self.shared.end(self.rank(), error);
        }
    }

    fn abort_handle(&self) -> AbortHandle {
        let (shared, rank) = (Arc::clone(&self.shared), self.rank());
        AbortHandle::new(move || shared.end(rank, CollectiveError::Aborted))
    }
}

/// A rank that goes, in peace or in panic, holds nobody up.
impl Drop for ThreadsCollective {
    fn drop(&mut self) {
        self.shared.slots[self.rank].left.store(true, Ordering::SeqCst);
        self.shared.wake_all();
    }
}
