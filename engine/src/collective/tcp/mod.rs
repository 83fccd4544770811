//! Ranks in several processes or machines, over TCP: a full mesh, one connection a pair.
//!
//! A short vector is pushed whole to every peer, and each rank sums all of them: one message deep, for
//! latency. A long one is summed piece by piece, each rank one piece for all: two messages deep, with
//! less to send. Both sum each element in rank order, so the bits are the same.
//!
//! Members prove that they hold the group's key when they meet ([`handshake`]); afterwards nothing is
//! encrypted nor signed. A network that is not trusted needs a fence around it.

mod formation;
mod frame;
mod handshake;
mod mesh;

use super::{AbortHandle, AllReduce, Collective, CollectiveError, Operation, piece, sum_in_rank_order};
use flotilla_shared::{Epoch, Rank};
use mesh::{Inbox, Mesh};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

const _: () = assert!(cfg!(target_endian = "little"), "floats go over the wire as they lie in memory");

/// Vectors up to this many elements (64 KiB) are pushed whole.
const WHOLE_ELEMENTS_MAX: usize = 16 << 10;

/// One rank of a group over TCP.
pub struct TcpCollective {
    mesh: Mesh,
    /// What the peers sent of a vector, one after the other in rank order.
    parts: Vec<f32>,
    /// The sums of this rank's piece.
    sums: Vec<f32>,
    failed: Option<CollectiveError>,
}

impl TcpCollective {
    /// Meets the other ranks: dials those below, accepts those above, and returns once all are there.
    ///
    /// `peers[r]` is `host:port` of rank r; this rank's own is not used. Every operation, and the
    /// meeting itself, ends within `deadline`. Who connects to `listener` without the key is turned
    /// away, and the meeting goes on.
    pub fn connect(
        rank: Rank,
        listener: TcpListener,
        peers: &[String],
        group_key: &[u8; 32],
        epoch: Epoch,
        deadline: Duration,
    ) -> Result<Self, CollectiveError> {
        assert!(rank.index() < peers.len(), "rank {rank} of {}", peers.len());
        let streams = formation::meet(rank, listener, peers, group_key, epoch, deadline)?;
        let mesh = Mesh::new(rank, epoch, streams, deadline)?;
        let mut group = TcpCollective { mesh, parts: Vec::new(), sums: Vec::new(), failed: None };
        // Nobody computes before everybody is there.
        group.barrier()?;
        Ok(group)
    }

    /// How long an operation may take from now on.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.mesh.set_deadline(deadline);
    }

    /// x: f32 [n], n ≤ [`WHOLE_ELEMENTS_MAX`].
    fn reduce_whole(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        let (n, size, rank) = (x.len(), self.size(), self.rank().index());
        self.parts.resize(n * (size - 1), 0.0);
        for link in self.mesh.links_mut() {
            let at = n * link.slot();
            link.expect(0..bytes(n), bytes(at)..bytes(at + n));
        }
        let inbox = Inbox::Ranges(bytemuck::cast_slice_mut(&mut self.parts));
        self.mesh.exchange(Operation::AllReduce, bytemuck::cast_slice(x), inbox)?;
        let parts = &self.parts;
        sum_in_rank_order(x, rank, size, |of| &parts[n * slot(of, rank)..][..n]);
        Ok(())
    }

    /// x: f32 [n], of any length.
    fn reduce_by_pieces(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        let (n, size, rank) = (x.len(), self.size(), self.rank().index());
        let mine = piece(n, rank, size);
        self.parts.resize(mine.len() * (size - 1), 0.0);
        for link in self.mesh.links_mut() {
            let (theirs, at) = (piece(n, link.peer().index(), size), mine.len() * link.slot());
            link.expect(bytes(theirs.start)..bytes(theirs.end), bytes(at)..bytes(at + mine.len()));
        }
        let inbox = Inbox::Ranges(bytemuck::cast_slice_mut(&mut self.parts));
        self.mesh.exchange(Operation::AllReduce, bytemuck::cast_slice(x), inbox)?;
        let parts = &self.parts;
        let part = |of| &parts[mine.len() * slot(of, rank)..][..mine.len()];
        sum_in_rank_order(&mut x[mine.clone()], rank, size, part);
        // The peers' sums land in x while this rank's are on their way out of it.
        self.sums.clear();
        self.sums.extend_from_slice(&x[mine.clone()]);
        for link in self.mesh.links_mut() {
            let theirs = piece(n, link.peer().index(), size);
            link.expect(0..bytes(mine.len()), bytes(theirs.start)..bytes(theirs.end));
        }
        let inbox = Inbox::Ranges(bytemuck::cast_slice_mut(x));
        self.mesh.exchange(Operation::AllReduce, bytemuck::cast_slice(&self.sums), inbox)
    }

    fn try_all_gather(&mut self, mine: &[u8], out: &mut Vec<u8>) -> Result<(), CollectiveError> {
        let max = mesh::GATHER_BYTES_MAX;
        if mine.len() as u64 > max {
            let (operation, bytes) = (Operation::AllGather, mine.len() as u64);
            return Err(CollectiveError::TooLong { operation, bytes, max });
        }
        for link in self.mesh.links_mut() {
            link.expect(0..mine.len(), 0..0);
        }
        self.mesh.exchange(Operation::AllGather, mine, Inbox::Own)?;
        out.clear();
        let (below, above) = self.mesh.links().split_at(self.rank().index());
        below.iter().for_each(|link| out.extend_from_slice(link.received()));
        out.extend_from_slice(mine);
        above.iter().for_each(|link| out.extend_from_slice(link.received()));
        Ok(())
    }

    fn try_barrier(&mut self) -> Result<(), CollectiveError> {
        self.mesh.links_mut().iter_mut().for_each(|link| link.expect(0..0, 0..0));
        self.mesh.exchange(Operation::Barrier, &[], Inbox::Ranges(&mut []))
    }

    /// Runs an operation unless one has failed before; the first error ends the group.
    fn run(
        &mut self,
        attempt: impl FnOnce(&mut Self) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        attempt(self).inspect_err(|error| {
            self.mesh.give_up(error.culprit());
            self.failed = Some(error.clone());
        })
    }
}

impl AllReduce<[f32]> for TcpCollective {
    fn all_reduce(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        self.run(|this| match x.len() > WHOLE_ELEMENTS_MAX {
            true => this.reduce_by_pieces(x),
            false => this.reduce_whole(x),
        })
    }
}

impl Collective for TcpCollective {
    fn rank(&self) -> Rank {
        self.mesh.rank()
    }

    fn size(&self) -> usize {
        self.mesh.links().len() + 1
    }

    fn all_gather(&mut self, mine: &[u8], out: &mut Vec<u8>) -> Result<(), CollectiveError> {
        self.run(|this| this.try_all_gather(mine, out))
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.run(Self::try_barrier)
    }

    fn is_broken(&mut self) -> bool {
        self.failed.is_some() || self.mesh.is_broken()
    }

    fn end(&mut self, error: CollectiveError) {
        if self.failed.is_none() {
            self.mesh.give_up(error.culprit());
            self.failed = Some(error);
        }
    }

    fn abort_handle(&self) -> AbortHandle {
        let streams = Arc::clone(self.mesh.streams());
        AbortHandle::new(move || streams.abort())
    }
}

/// Place of a rank among the peers of `mine`.
fn slot(of: usize, mine: usize) -> usize {
    if of < mine { of } else { of - 1 }
}

fn bytes(elements: usize) -> usize {
    elements * size_of::<f32>()
}
