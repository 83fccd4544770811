//! Ranks in several processes or machines: a full mesh, one TCP connection a pair, and memory between those
//! ranks of one host that can share it.
//!
//! A short vector is given whole to every peer, and each rank sums all of them: one message deep, for
//! latency. A long one is summed piece by piece, each rank one piece for all: two messages deep, with
//! less to move. Both sum each element in rank order, so the bits are the same, over whichever links.
//!
//! Ranks of other stages are met too, and have links of their own ([`neighbours`]).
//!
//! In memory ([`slots`]) a rank writes its part once and the others read it where it lies; the link beside it
//! rings who sleeps, and its end tells of a peer's. Members prove that they hold the group's key when they
//! meet ([`handshake`]); afterwards nothing is encrypted nor signed. A network that is not trusted needs a
//! fence around it.

mod coded;
mod formation;
mod frame;
mod handshake;
mod link;
mod mesh;
mod neighbours;
mod pairs;
mod pipe;
mod sharing;
mod slots;
mod sums;

use super::stages::{self, Seat};
use super::{AbortHandle, AllReduce, Collective, CollectiveError, Operation, Stop};
use flotilla_shared::{Epoch, Links, Rank, Reach, WireFormat};
use frame::Length;
use link::{GATHER_BYTES_MAX, Inbox};
use mesh::{Mesh, Outgoing};
use neighbours::Neighbours;
use pipe::Pipe;
use slots::{SHOWN_BYTES_MAX, Slots};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use sums::Buffers;

const _: () = assert!(cfg!(target_endian = "little"), "floats go over the wire as they lie in memory");

/// For fuzzers: a header that is compared with what is expected.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_frame(bytes: &[u8]) {
    let Some((header, _)) = bytes.split_first_chunk() else { return };
    let frame = frame::Frame { epoch: Epoch(7), sequence: 9, operation: Operation::AllGather };
    let _ = frame::heard(header, Rank(1), &frame);
    if let Ok(length) = frame.check(header, Rank(1), Length::AtMost(64)) {
        assert!(length <= 64);
    }
}

/// One rank of a group of processes.
pub struct ProcessCollective {
    seat: Seat,
    /// With the ranks of this one's stage.
    mesh: Mesh,
    /// Links to those of other stages.
    neighbours: Neighbours,
    /// Whether some ranks of the group share memory, and whether all do.
    any_share: bool,
    all_share: bool,
    wire: WireFormat,
    /// Up to so many values vectors go whole, where they pass the wire as f32.
    whole_values_max: usize,
    buffers: Buffers,
    /// Of an x that is gathered.
    pieces: Vec<u8>,
    failed: Option<CollectiveError>,
}

/// All ranks that meet.
#[derive(Clone, Copy, Debug)]
pub struct Peers<'a> {
    /// `host:port` of each.
    pub addresses: &'a [String],
    /// So many of each stage, which are numbered through.
    pub stages: &'a [usize],
}

impl ProcessCollective {
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
        let peers = Peers { addresses: peers, stages: &[peers.len()] };
        Self::connect_unless(&Stop::default(), rank, listener, peers, group_key, epoch, deadline)
    }

    /// The same, of ranks that may be cut into stages, unless it is stopped before; `stop` then has the group's abort
    /// handle. The ranks of this one's stage are the group; all others are met too, and prove themselves like them.
    pub fn connect_unless(
        stop: &Stop,
        rank: Rank,
        listener: TcpListener,
        peers: Peers<'_>,
        group_key: &[u8; 32],
        epoch: Epoch,
        deadline: Duration,
    ) -> Result<Self, CollectiveError> {
        let addresses = peers.addresses;
        assert!(rank.index() < addresses.len(), "rank {rank} of {}", addresses.len());
        assert_eq!(peers.stages.iter().sum::<usize>(), addresses.len(), "ranks of all stages");
        let seat = Seat::new(peers.stages, rank.index());
        let streams = formation::meet(stop, rank, listener, addresses, group_key, epoch, deadline)?;
        // Ranks of all stages may be of one machine.
        let spin = mesh::spin_among(&streams);
        let (own, others) = streams.into_iter().partition(|(peer, _)| seat.ranks().contains(&peer.index()));
        let own_size = seat.ranks().len();
        let mut group = ProcessCollective {
            seat,
            mesh: Mesh::new(rank, epoch, own, deadline, spin)?,
            neighbours: Neighbours::new(epoch, others, deadline, spin)?,
            any_share: false,
            all_share: false,
            wire: WireFormat::F32,
            whole_values_max: sums::whole_values_max(None, own_size),
            buffers: Buffers::default(),
            pieces: Vec::new(),
            failed: None,
        };
        stop.watch_over(group.abort_handle());
        // Nobody computes before everybody is there.
        group.barrier()?;
        Ok(group)
    }

    /// Links the ranks as planned: every rank calls it once, with the same `links`. Ranks that are to share
    /// memory and cannot go on by TCP, all of their host; the answer says why.
    pub fn link(&mut self, links: &Links) -> Result<Reach, CollectiveError> {
        self.link_with(links, &Slots::open, &Pipe::open)
    }

    fn link_with(
        &mut self,
        links: &Links,
        open: sharing::Open<'_>,
        open_pipe: pairs::Open<'_>,
    ) -> Result<Reach, CollectiveError> {
        let shared = sharing::share(self, links, open).inspect_err(|error| self.end(error.clone()))?;
        (self.any_share, self.all_share) = (shared.any, shared.all);
        self.wire = links.wire;
        let told = links.whole_values_max.get(self.seat.stage()).copied();
        self.whole_values_max = sums::whole_values_max(told, self.size());
        let why_not = pairs::share(self, links, open_pipe).inspect_err(|error| self.end(error.clone()))?;
        let Reach { mut by_memory, not_shared } = shared.reach;
        by_memory.extend(self.neighbours.by_memory());
        by_memory.sort_unstable();
        Ok(Reach { by_memory, not_shared: not_shared.or(why_not) })
    }

    /// How long an operation may take from now on.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.mesh.set_deadline(deadline);
        self.neighbours.set_deadline(deadline);
    }

    /// How long an operation looks for the others before it sleeps.
    pub fn set_spin(&mut self, spin: Duration) {
        self.mesh.set_spin(spin);
        self.neighbours.set_spin(spin);
    }

    fn try_all_gather(&mut self, mine: &[u8], out: &mut Vec<u8>) -> Result<(), CollectiveError> {
        let (operation, bytes, max) = (Operation::AllGather, mine.len() as u64, GATHER_BYTES_MAX);
        if bytes > max {
            return Err(CollectiveError::TooLong { operation, bytes, max });
        }
        self.gather_round(operation, mine, 0)?;
        // All have told their lengths. What is too long to be shown at once is shown in rounds.
        let longest = self.mesh.links().iter().map(|link| link.length()).chain([mine.len()]).max();
        let rounds = if self.any_share { longest.unwrap_or(0).div_ceil(SHOWN_BYTES_MAX) } else { 1 };
        for round in 1..rounds {
            self.gather_round(operation, mine, round)?;
        }
        out.clear();
        let (below, above) = self.mesh.links().split_at(self.place());
        below.iter().for_each(|link| out.extend_from_slice(link.received()));
        out.extend_from_slice(mine);
        above.iter().for_each(|link| out.extend_from_slice(link.received()));
        Ok(())
    }

    /// The first round is for all links, the others are for those in memory.
    fn gather_round(
        &mut self,
        operation: Operation,
        mine: &[u8],
        round: usize,
    ) -> Result<(), CollectiveError> {
        let part = |length: usize| {
            (round * SHOWN_BYTES_MAX).min(length)..((round + 1) * SHOWN_BYTES_MAX).min(length)
        };
        let shown = &mine[part(mine.len())];
        for link in self.mesh.links_mut() {
            match link.place() {
                Some(_) => link.look(0..shown.len(), Length::AtMost(GATHER_BYTES_MAX)),
                None if round == 0 => link.expect(0..mine.len(), 0..0),
                None => {}
            }
        }
        let outgoing = Outgoing { by_wire: mine, in_memory: shown, announced: mine.len() as u64 };
        self.mesh.exchange(operation, &outgoing, Inbox::Own)?;
        self.mesh.keep_shown(round == 0, |length| part(length).len());
        Ok(())
    }

    fn try_barrier(&mut self) -> Result<(), CollectiveError> {
        for link in self.mesh.links_mut() {
            match link.place() {
                Some(_) => link.look(0..0, Length::Exactly(0)),
                None => link.expect(0..0, 0..0),
            }
        }
        self.mesh.exchange(Operation::Barrier, &Outgoing::plain(&[]), Inbox::Ranges(&mut []))
    }

    /// Tells all ranks, of all stages.
    fn give_up(&self, culprit: Option<Rank>) {
        self.mesh.give_up(culprit);
        self.neighbours.give_up(culprit);
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
            self.give_up(error.culprit());
            self.failed = Some(error.clone());
        })
    }
}

impl AllReduce<[f32]> for ProcessCollective {
    fn all_reduce(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        self.run(|this| this.sum(x))
    }

    fn hand_on(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        self.run(|this| stages::hand_on(this, x))
    }

    fn take_over(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        let mut pieces = std::mem::take(&mut self.pieces);
        let result = self.run(|this| stages::take_over(this, x, &mut pieces));
        self.pieces = pieces;
        result
    }
}

impl Collective for ProcessCollective {
    fn change_deadline(&mut self, deadline: Duration) -> Option<Duration> {
        let before = self.mesh.deadline();
        self.set_deadline(deadline);
        Some(before)
    }

    fn rank(&self) -> Rank {
        self.mesh.rank()
    }

    fn size(&self) -> usize {
        self.mesh.links().len() + 1
    }

    fn place(&self) -> usize {
        self.seat.place()
    }

    fn tell(&mut self, tokens: &[u8]) -> Result<(), CollectiveError> {
        self.run(|this| stages::tell(this, tokens))
    }

    fn hear(&mut self, wait: bool, out: &mut Vec<u8>) -> Result<bool, CollectiveError> {
        let mut heard = false;
        self.run(|this| {
            heard = stages::hear(this, wait, out)?;
            Ok(())
        })?;
        Ok(heard)
    }

    fn all_gather(&mut self, mine: &[u8], out: &mut Vec<u8>) -> Result<(), CollectiveError> {
        self.run(|this| this.try_all_gather(mine, out))
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.run(Self::try_barrier)
    }

    fn is_broken(&mut self) -> bool {
        self.failed.is_some() || self.mesh.is_broken() || self.neighbours.is_broken()
    }

    fn end(&mut self, error: CollectiveError) {
        if self.failed.is_none() {
            self.give_up(error.culprit());
            self.failed = Some(error);
        }
    }

    fn abort_handle(&self) -> AbortHandle {
        let streams = [self.mesh.streams(), self.neighbours.streams()].map(Arc::clone);
        AbortHandle::new(move || streams.iter().for_each(|streams| streams.abort()))
    }
}
