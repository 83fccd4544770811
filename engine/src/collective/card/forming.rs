//! How ranks agree on a way to sum: the best that all could take is tried, checked and measured; then the next.

use super::check::{self, Exactness, Finding, Latency};
use super::choose::{self, Facts};
use super::facts::facts;
use super::staged::Staged;
use super::{CardCollective, CardSettings, SumPath, Way, Wire, area, host, nccl};
use crate::collective::agree::{agree, gather};
use crate::collective::{Collective, CollectiveError};
use crate::cuda::{CudaError, DeviceSum, Nccl, Source};
use flotilla_shared::Rank;
use host::HostSum;
use nccl::Communicator;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long ranks may take to meet by NCCL, which begins slowly where it is cold and cards are many. A rank that goes, or ends
/// the group, ends the meeting at once.
const MEET: Duration = Duration::from_secs(60);
/// Sums in a row whose time is measured together.
const ROW: u32 = 4;

impl<L: Collective> CardCollective<L> {
    pub(super) fn agree_on_a_way(
        &mut self,
        settings: &CardSettings,
        source: &Source,
    ) -> Result<(), CollectiveError> {
        let facts = gather(&mut self.link, &facts(&self.card, settings))?;
        let paths = choose::paths(&facts)?;
        // Taken before any card waits for another: to take memory may need the whole card's rest.
        let y = self.scratch();
        let mut y = agree(&mut self.link, y)?.map_err(|reason| CollectiveError::System {
            doing: "take memory for the check of sums",
            reason,
        })?;
        for path in paths {
            match self.take(path, &facts, settings, source, &mut y)? {
                Ok(()) => {
                    tracing::info!("sums over {} ranks by {path}", self.link.size());
                    self.report.latencies.iter().for_each(|latency| tracing::info!("sum of {latency}"));
                    return Ok(());
                }
                Err(reason) => {
                    self.abort_way();
                    self.way = Way::Alone;
                    self.ends.watch(None);
                    if self.ends.is_aborted() {
                        return Err(CollectiveError::Aborted);
                    }
                    tracing::warn!("cannot sum by {path}: {reason}");
                    self.report.passed_over.push((path, reason));
                }
            }
        }
        let (path, reason) = self.report.passed_over.pop().expect("at least one way was tried");
        Err(CollectiveError::NoSuchPath { path, reason })
    }

    /// An inner error is everybody's, and the link is as good as before; an outer one is the link's.
    fn take(
        &mut self,
        path: SumPath,
        facts: &[Facts],
        settings: &CardSettings,
        source: &Source,
        y: &mut DeviceSum,
    ) -> Result<Result<(), String>, CollectiveError> {
        self.way = match self.make(path, facts, settings, source)? {
            Ok(way) => way,
            Err(reason) => return Ok(Err(reason)),
        };
        let exactness = match (path, settings.wire) {
            (SumPath::Staged | SumPath::Host | SumPath::Shared, _) => Exactness::Bits,
            (SumPath::Nccl, Wire::F32) => Exactness::F32,
            (SumPath::Nccl, Wire::Bf16) => Exactness::Bf16,
        };
        let finding = self.check(exactness, y).unwrap_or_else(|fault| {
            // Who waits for this rank's card need not wait longer.
            self.abort_way();
            Finding { hash: String::new(), fault: Some(fault) }
        });
        if let Err(reason) = check::verdict(&gather(&mut self.link, &finding)?) {
            return Ok(Err(reason));
        }
        let latencies = self.measure(settings.latency_runs, y).inspect_err(|_| self.abort_way());
        Ok(agree(&mut self.link, latencies)?.map(|latencies| self.report.latencies = latencies))
    }

    fn make(
        &mut self,
        path: SumPath,
        facts: &[Facts],
        settings: &CardSettings,
        source: &Source,
    ) -> Result<Result<Way, String>, CollectiveError> {
        match path {
            SumPath::Staged => {
                let staged = Staged::new(&self.card, self.elements_max);
                agree(&mut self.link, staged.map(Way::Staged).map_err(|error| error.to_string()))
            }
            SumPath::Host | SumPath::Shared => {
                self.make_host(facts, settings, source, path == SumPath::Shared)
            }
            SumPath::Nccl => self.make_nccl(settings.wire),
        }
    }

    fn make_host(
        &mut self,
        facts: &[Facts],
        settings: &CardSettings,
        source: &Source,
        in_card: bool,
    ) -> Result<Result<Way, String>, CollectiveError> {
        let (rank, size) = (Rank(self.link.place() as u16), self.link.size());
        let card = in_card.then_some(&self.card);
        let made = (rank == Rank(0)).then(|| host::create(size, self.elements_max, card));
        let invitation = made.as_ref().map(|made| made.as_ref().map(|made| &made.2).map_err(Clone::clone));
        let invitations: Vec<Option<Result<area::Invitation, String>>> = gather(&mut self.link, &invitation)?;
        // The door is held open until all have come in.
        let (ground, door) = match (made, invitations.into_iter().next().flatten()) {
            (Some(Ok((ground, door, _))), _) => (Ok(ground), Some(door)),
            (_, Some(Ok(invitation))) => (host::open(&invitation, size, self.elements_max, in_card), None),
            (_, Some(Err(reason))) => (Err(reason), None),
            (_, None) => (Err("rank 0 made no shared memory".into()), None),
        };
        let ranks_on_card = choose::ranks_on_card(facts, rank.index());
        let host = ground.and_then(|ground| {
            let (elements_max, deadline) = (self.elements_max, settings.deadline);
            HostSum::new(&self.card, rank, ground, source, elements_max, ranks_on_card, deadline)
                .map_err(|error| error.to_string())
        });
        let host = agree(&mut self.link, host)?;
        drop(door);
        Ok(host.map(|host| {
            self.ends.watch(Some(Arc::clone(host.area())));
            Way::Host(host)
        }))
    }

    fn make_nccl(&mut self, wire: Wire) -> Result<Result<Way, String>, CollectiveError> {
        let (rank, size) = (Rank(self.link.place() as u16), self.link.size());
        let nccl = Nccl::open().map_err(|error| error.to_string());
        // The id lets any process in that has it: it goes to members only, by the link that they proved
        // themselves on.
        let id = match &nccl {
            Ok(nccl) if rank == Rank(0) => Some(nccl::make_id(nccl).map(|id| nccl::id_bytes(&id))),
            _ => None,
        };
        let ids: Vec<Option<Result<Vec<u8>, String>>> = gather(&mut self.link, &id)?;
        let id = match ids.into_iter().next().flatten() {
            Some(Ok(bytes)) => nccl::id_of(&bytes).ok_or_else(|| "rank 0 gave no id".to_owned()),
            Some(Err(reason)) => Err(format!("rank 0 {reason}")),
            None => Err("rank 0 gave no id".into()),
        };
        // Who cannot begin says so before the others wait for it.
        let begin = agree(&mut self.link, nccl.and_then(|nccl| Ok((nccl, id?))))?;
        let (nccl, id) = match begin {
            Ok(begin) => begin,
            Err(reason) => return Ok(Err(reason)),
        };
        let (link, ends) = (&mut self.link, &self.ends);
        let is_vain = || ends.is_aborted() || link.is_broken();
        let comm = Communicator::meet(nccl, &self.card, id, (rank, size), MEET, is_vain);
        let comm = comm.and_then(|mut comm| {
            if wire == Wire::Bf16 {
                comm.narrow(self.elements_max).map_err(|error| error.to_string())?;
            }
            Ok(comm)
        });
        // Who has failed waits for those that still try.
        let before = self.link.change_deadline(MEET + self.deadline);
        let agreed = agree(&mut self.link, comm);
        before.map(|before| self.link.change_deadline(before));
        Ok(agreed?.map(Way::Nccl))
    }

    /// Sums what tells right from wrong, by itself: says nothing over the link, unless the way does.
    fn check(&mut self, exactness: Exactness, y: &mut DeviceSum) -> Result<Finding, String> {
        let (rank, size) = (self.link.place(), self.link.size());
        let mut hasher = blake3::Hasher::new();
        let mut fault = None;
        let lengths = check::lengths(self.elements_max);
        for (round, n) in lengths.iter().cycle().copied().take(check::ROUNDS * lengths.len()).enumerate() {
            let said = |error: CudaError| error.to_string();
            check::refill(&self.card, y, &check::values(round, rank, n)).map_err(said)?;
            self.sum_and_settle(y, 1)?;
            let sums =
                y.stream.clone_dtoh(&y.values.slice(..n)).map_err(CudaError::doing("copy from the card"));
            let sums = sums.map_err(said)?;
            self.card.synchronize().map_err(said)?;
            hasher.update(bytemuck::cast_slice(&sums));
            fault = fault.or_else(|| check::fault(round, &sums, size, exactness));
        }
        Ok(Finding { hash: hasher.finalize().to_string(), fault })
    }

    fn measure(&mut self, runs: u32, y: &mut DeviceSum) -> Result<Vec<Latency>, String> {
        if runs == 0 {
            return Ok(Vec::new());
        }
        let lengths = check::measured_lengths(self.elements_max);
        let latency = |elements| {
            y.len = elements;
            let mut times = Vec::new();
            // One more, which is not counted.
            for _ in 0..=runs {
                let start = Instant::now();
                self.sum_and_settle(y, ROW)?;
                times.push(start.elapsed() / ROW);
            }
            let mut times = times.split_off(1);
            times.sort();
            Ok(Latency { elements, time: times[times.len() / 2] })
        };
        lengths.into_iter().map(latency).collect()
    }

    pub(super) fn scratch(&self) -> Result<DeviceSum, String> {
        let values = self.card.zeros(self.elements_max.max(1)).map_err(|error| error.to_string())?;
        Ok(DeviceSum { stream: Arc::clone(self.card.stream()), values, len: 0 })
    }

    /// While a way is tried: what goes wrong is not yet the group's end.
    pub(super) fn sum_and_settle(&mut self, y: &mut DeviceSum, times: u32) -> Result<(), String> {
        for _ in 0..times {
            self.try_sum(y).map_err(|error| error.to_string())?;
        }
        self.try_settle().map_err(|trouble| trouble.reason())
    }
}
