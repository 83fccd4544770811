//! Sums of values that lie in cards' memories.
//!
//! A [`CardCollective`] wraps the link that the ranks have anyhow, and adds one of four ways to sum:
//! `staged` (through the host, by the link: always possible), `host` (by the cards, through memory of the
//! machine that all of them reach), `shared` (the same through a card's own memory, by threads that have one
//! card), `nccl`. All ranks choose alike, from what all of them have said, and what is chosen has passed a
//! check before it is used ([`check`]).
//!
//! Cards wait for each other behind the host's back. So whoever waits here looks, while it waits, at all
//! that can make waiting vain: an abort, a peer that has gone, NCCL's errors, the deadline; and ends the
//! cards' waiting before it says so.

mod area;
mod check;
mod choose;
pub mod host;
mod memory;
pub mod nccl;
mod staged;
mod wait;

pub use check::{Latency, StartReport};
pub use choose::{SumChoice, SumPath, Wire};

use super::agree::{agree, gather};
use super::{AbortHandle, AllReduce, Collective, CollectiveError, Operation};
use crate::cuda::DeviceSum;
use crate::cuda::{Card, CudaError, Library, Nccl, Opened, Source};
use area::Area;
use check::{Exactness, Finding};
use choose::Facts;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaEvent, DevicePtrMut};
use flotilla_shared::Rank;
use host::HostSum;
use nccl::Communicator;
use staged::Staged;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use wait::Ended;

/// A peer that leaves in peace has given its part of every sum before; so long may the rest take.
const GRACE: Duration = Duration::from_millis(500);
/// Sums in a row whose time is measured together.
const ROW: u32 = 4;

#[derive(Clone, Debug)]
pub struct CardSettings {
    pub choice: SumChoice,
    /// Of sums by NCCL.
    pub wire: Wire,
    /// Values of the largest sum: the most rows of a step, times the model's width.
    pub elements_max: usize,
    /// How long [`AllReduce::settle`] waits for sums that do not go on (by `host` and `shared`) or that are
    /// not done (by `nccl`: all that was asked of the card must be done by then). Not longer than the link's
    /// own.
    pub deadline: Duration,
    /// Of each length that is measured at the start; none if 0.
    pub latency_runs: u32,
}

/// One rank of a group whose values lie in a card's memory.
pub struct CardCollective<L: Collective> {
    // Before the way: to let go of a card's memory may take the whole card's rest, and the others must
    // not wait for this rank by then.
    link: L,
    way: Way,
    card: Card,
    /// Marks the end of what is waited for.
    event: CudaEvent,
    ends: Arc<Ends>,
    elements_max: usize,
    deadline: Duration,
    failed: Option<CollectiveError>,
    report: StartReport,
    /// What is handed on, on its way from one card to another.
    handed: Vec<f32>,
}

enum Way {
    /// Nobody to sum with.
    Alone,
    Staged(Staged),
    /// `host` and `shared`.
    Host(HostSum),
    Nccl(Communicator),
}

/// What another thread needs to end this rank's sums.
#[derive(Default)]
struct Ends {
    aborted: AtomicBool,
    area: Mutex<Option<Arc<Area>>>,
}

impl Ends {
    fn area(&self) -> std::sync::MutexGuard<'_, Option<Arc<Area>>> {
        self.area.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, area: Option<Arc<Area>>) {
        *self.area() = area;
        if self.is_aborted() {
            self.abort();
        }
    }

    fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        if let Some(area) = &*self.area() {
            area.abort();
        }
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }
}

/// Why the card was not waited for to the end.
enum Trouble {
    Aborted,
    /// Another rank has ended the group, or has gone: the link knows.
    Ended,
    Late(Duration),
    Failed(CollectiveError),
}

impl Trouble {
    fn reason(&self) -> String {
        match self {
            Trouble::Aborted => "it was aborted".into(),
            Trouble::Ended => "another rank gave up".into(),
            Trouble::Late(waited) => format!("a sum was not done within {waited:?}"),
            Trouble::Failed(error) => error.to_string(),
        }
    }
}

impl<L: Collective> CardCollective<L> {
    /// Agrees with the other ranks of `link` on a way, tries it, and takes the next best one if it fails.
    /// All ranks call it together, each with its own card or a clone of the same.
    pub fn form(card: &Card, link: L, settings: &CardSettings) -> Result<Self, CollectiveError> {
        let source = host::source(link.size());
        Self::form_with(card, link, settings, &source)
    }

    /// With a program for `host` that may be another than [`host::source`]: tests plant faults in it.
    #[doc(hidden)]
    pub fn form_with(
        card: &Card,
        link: L,
        settings: &CardSettings,
        host_source: &Source,
    ) -> Result<Self, CollectiveError> {
        let event =
            card.stream().context().new_event(None).map_err(|error| failed("make an event", error))?;
        let mut this = CardCollective {
            link,
            way: Way::Alone,
            card: card.clone(),
            event,
            ends: Arc::default(),
            elements_max: settings.elements_max,
            // So that the link still waits for a rank that has waited here.
            deadline: settings.deadline / 2,
            failed: None,
            report: StartReport::default(),
            handed: Vec::new(),
        };
        if this.link.size() > 1 {
            this.agree_on_a_way(settings, host_source)?;
        }
        this.deadline = settings.deadline;
        Ok(this)
    }

    /// `None` for a rank that is alone.
    pub fn path(&self) -> Option<SumPath> {
        match &self.way {
            Way::Alone => None,
            Way::Staged(_) => Some(SumPath::Staged),
            Way::Host(host) => Some(host.path()),
            Way::Nccl(_) => Some(SumPath::Nccl),
        }
    }

    /// Whether a CUDA graph may hold sums. A graph is launched by all ranks, as often, in the same order,
    /// and not after an error.
    pub fn capturable(&self) -> bool {
        !matches!(self.way, Way::Staged(_))
    }

    pub fn report(&self) -> &StartReport {
        &self.report
    }

    pub fn link(&self) -> &L {
        &self.link
    }

    fn agree_on_a_way(&mut self, settings: &CardSettings, source: &Source) -> Result<(), CollectiveError> {
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
        let comm = Communicator::meet(nccl, &self.card, id, (rank, size), self.deadline, is_vain);
        let comm = comm.and_then(|mut comm| {
            if wire == Wire::Bf16 {
                comm.narrow(self.elements_max).map_err(|error| error.to_string())?;
            }
            Ok(comm)
        });
        Ok(agree(&mut self.link, comm)?.map(Way::Nccl))
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

    /// A copy between the card and memory that is used again.
    fn wait_for_copy(&self) -> Result<(), CollectiveError> {
        let operation = Operation::AllReduce;
        self.card.synchronize().map_err(|error| CollectiveError::Card { operation, error })
    }

    fn scratch(&self) -> Result<DeviceSum, String> {
        let values = self.card.zeros(self.elements_max.max(1)).map_err(|error| error.to_string())?;
        Ok(DeviceSum { stream: Arc::clone(self.card.stream()), values, len: 0 })
    }

    /// While a way is tried: what goes wrong is not yet the group's end.
    fn sum_and_settle(&mut self, y: &mut DeviceSum, times: u32) -> Result<(), String> {
        for _ in 0..times {
            self.try_sum(y).map_err(|error| error.to_string())?;
        }
        self.try_settle().map_err(|trouble| trouble.reason())
    }

    fn try_sum(&mut self, x: &mut DeviceSum) -> Result<(), CollectiveError> {
        let (n, operation) = (x.len, Operation::AllReduce);
        assert!(n <= x.values.len(), "{n} values in a buffer of {}", x.values.len());
        assert!(x.stream == *self.card.stream(), "values of another stream");
        if self.ends.is_aborted() {
            return Err(CollectiveError::Aborted);
        }
        if n > self.elements_max {
            let (bytes, max) = (bytes(n), bytes(self.elements_max));
            return Err(CollectiveError::TooLong { operation, bytes, max });
        }
        if n == 0 {
            return Ok(());
        }
        let (y, _record) = x.values.device_ptr_mut(&x.stream);
        match &mut self.way {
            Way::Alone => Ok(()),
            Way::Staged(staged) => {
                let ends = &self.ends;
                staged.sum(&mut self.link, y, n, self.deadline, || ends.is_aborted())
            }
            Way::Host(host) => {
                host.enqueue(&x.stream, y, n).map_err(|error| CollectiveError::Card { operation, error })
            }
            Way::Nccl(nccl) => {
                nccl.enqueue(&x.stream, y, n).map_err(|reason| CollectiveError::Nccl { operation, reason })
            }
        }
    }

    fn try_settle(&mut self) -> Result<(), Trouble> {
        let stream = self.card.stream();
        self.event.record(stream).map_err(|error| Trouble::Failed(failed("record an event", error)))?;
        let (way, link, ends) = (&self.way, &mut self.link, &self.ends);
        let mut broken_since = None;
        let look_around = || {
            look(way, ends)?;
            if link.is_broken() && broken_since.get_or_insert_with(Instant::now).elapsed() > GRACE {
                return Err(Trouble::Ended);
            }
            Ok(if let Way::Host(host) = way { host.progress() } else { 0 })
        };
        wait::until_done(&self.event, self.deadline, look_around).map_err(|ended| match ended {
            Ended::Driver(error) => Trouble::Failed(failed("finish what was asked of it", error)),
            Ended::Seen(trouble) => trouble,
            Ended::Late(waited) => Trouble::Late(waited),
        })?;
        // It may be done because its waiting was ended.
        look(&self.way, &self.ends)
    }

    /// Ends the cards' waiting for each other, as far as this rank can.
    fn abort_way(&mut self) {
        match &mut self.way {
            Way::Alone | Way::Staged(_) => {}
            Way::Host(host) => host.area().abort(),
            Way::Nccl(nccl) => nccl.abort(),
        }
    }

    /// Finds out who is to blame. The cards' waiting has been ended.
    fn blame(&mut self, trouble: Trouble, behind: Vec<Rank>) -> CollectiveError {
        let operation = Operation::AllReduce;
        match trouble {
            Trouble::Aborted => CollectiveError::Aborted,
            Trouble::Failed(error) => error,
            Trouble::Late(waited) => match (behind.first(), &self.way) {
                (Some(&peer), _) => {
                    let size = self.link.size();
                    CollectiveError::Deadline { peer, missing: behind, size, operation, waited }
                }
                // Who is silent there is silent on the link, too.
                (None, Way::Nccl(_)) => self.link.barrier().err().unwrap_or_else(|| {
                    let reason = format!("not done within {waited:?}, though all ranks answer");
                    CollectiveError::Nccl { operation, reason }
                }),
                (None, _) => CollectiveError::Card { operation, error: staged::late(waited) },
            },
            Trouble::Ended => self.link.barrier().err().unwrap_or_else(|| CollectiveError::System {
                doing: "sum over ranks",
                reason: "the cards' waiting was ended, and no rank says why".into(),
            }),
        }
    }

    /// Runs something unless an error has ended the group; the first error does.
    fn run<T>(
        &mut self,
        attempt: impl FnOnce(&mut Self) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        attempt(self).inspect_err(|error| {
            self.failed = Some(error.clone());
            self.abort_way();
            self.link.end(error.clone());
        })
    }
}

fn look(way: &Way, ends: &Ends) -> Result<(), Trouble> {
    if ends.is_aborted() {
        return Err(Trouble::Aborted);
    }
    match way {
        Way::Alone | Way::Staged(_) => Ok(()),
        Way::Host(host) if host.has_ended() => Err(Trouble::Ended),
        Way::Host(_) => Ok(()),
        Way::Nccl(nccl) => nccl.trouble().map_or(Ok(()), |reason| {
            let operation = Operation::AllReduce;
            Err(Trouble::Failed(CollectiveError::Nccl { operation, reason }))
        }),
    }
}

impl<L: Collective> AllReduce<DeviceSum> for CardCollective<L> {
    fn sums_end_with_their_call(&self) -> bool {
        false
    }

    fn all_reduce(&mut self, x: &mut DeviceSum) -> Result<(), CollectiveError> {
        self.run(|this| this.try_sum(x))
    }

    fn settle(&mut self) -> Result<(), CollectiveError> {
        self.run(|this| {
            this.try_settle().map_err(|trouble| {
                let behind = if let Way::Host(host) = &this.way { host.behind() } else { Vec::new() };
                // Who is behind there is a place.
                let behind = behind.into_iter().map(|place| this.link.member(place.index())).collect();
                this.abort_way();
                this.blame(trouble, behind)
            })
        })
    }

    fn hand_on(&mut self, x: &mut DeviceSum) -> Result<(), CollectiveError> {
        AllReduce::<DeviceSum>::settle(self)?;
        self.run(|this| {
            this.handed.resize(x.len, 0.0);
            let copied = x.stream.memcpy_dtoh(&x.values.slice(..x.len), &mut this.handed);
            copied.map_err(|error| failed("copy from the card", error))?;
            this.wait_for_copy()?;
            this.link.hand_on(&mut this.handed)
        })
    }

    fn take_over(&mut self, x: &mut DeviceSum) -> Result<(), CollectiveError> {
        self.run(|this| {
            this.handed.resize(x.len, 0.0);
            this.link.take_over(&mut this.handed)?;
            let copied = x.stream.memcpy_htod(&this.handed, &mut x.values.slice_mut(..x.len));
            copied.map_err(|error| failed("copy to the card", error))?;
            this.wait_for_copy()
        })
    }
}

impl<L: Collective> AllReduce<[f32]> for CardCollective<L> {
    fn all_reduce(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        self.run(|this| this.link.all_reduce(x))
    }

    fn settle(&mut self) -> Result<(), CollectiveError> {
        self.run(|this| this.link.settle())
    }

    fn hand_on(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        self.run(|this| this.link.hand_on(x))
    }

    fn take_over(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        self.run(|this| this.link.take_over(x))
    }
}

impl<L: Collective> Collective for CardCollective<L> {
    fn rank(&self) -> Rank {
        self.link.rank()
    }

    fn size(&self) -> usize {
        self.link.size()
    }

    fn place(&self) -> usize {
        self.link.place()
    }

    fn tell(&mut self, tokens: &[u8]) -> Result<(), CollectiveError> {
        self.run(|this| this.link.tell(tokens))
    }

    fn hear(&mut self, wait: bool, out: &mut Vec<u8>) -> Result<bool, CollectiveError> {
        self.run(|this| this.link.hear(wait, out))
    }

    fn all_gather(&mut self, mine: &[u8], out: &mut Vec<u8>) -> Result<(), CollectiveError> {
        self.run(|this| this.link.all_gather(mine, out))
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.run(|this| this.link.barrier())
    }

    fn is_broken(&mut self) -> bool {
        self.failed.is_some() || self.link.is_broken()
    }

    fn end(&mut self, error: CollectiveError) {
        let _ = self.run(|_| Err::<(), _>(error));
    }

    fn abort_handle(&self) -> AbortHandle {
        let (link, ends) = (self.link.abort_handle(), Arc::clone(&self.ends));
        AbortHandle::new(move || {
            // The link first: who is woken by the other asks it why.
            link.abort();
            ends.abort();
        })
    }
}

fn failed(doing: &'static str, error: cudarc::driver::DriverError) -> CollectiveError {
    CollectiveError::Card { operation: Operation::AllReduce, error: CudaError::doing(doing)(error) }
}

fn bytes(elements: usize) -> u64 {
    (elements * size_of::<f32>()) as u64
}

fn facts(card: &Card, settings: &CardSettings) -> Facts {
    static PROCESS: OnceLock<String> = OnceLock::new();
    let nccl = match settings.choice {
        SumChoice::Auto | SumChoice::Only(SumPath::Nccl) => Nccl::open().map_err(|error| error.to_string()),
        SumChoice::Only(_) => Err("it was not asked for".into()),
    };
    Facts {
        choice: settings.choice,
        wire: settings.wire,
        elements_max: settings.elements_max,
        machine: machine(),
        process: PROCESS.get_or_init(unlike_any_other).clone(),
        card: card_name(card),
        nccl_shares_cards: nccl.as_ref().is_ok_and(|nccl| nccl::shares_cards(nccl.version())),
        nccl: nccl.map(|nccl| (nccl.version().major, nccl.version().minor, nccl.version().patch)),
    }
}

/// New with every start of a kernel.
fn machine() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    boot.map_or_else(|_| unlike_any_other(), |boot| boot.trim().to_owned())
}

fn unlike_any_other() -> String {
    crate::collective::memory::random().map_or_else(|_| format!("{:?}", Instant::now()), |bytes| hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same for two ranks of a machine if and only if they have the same card.
fn card_name(card: &Card) -> String {
    let context = card.stream().context();
    if Opened::open(Library::Driver).is_ok_and(|driver| driver.has("cuDeviceGetUuid"))
        && let Ok(uuid) = context.uuid()
    {
        return hex(&uuid.bytes.map(|byte| byte as u8));
    }
    let places = [
        Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID,
        Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID,
        Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID,
    ];
    let places = places.map(|place| context.attribute(place).unwrap_or(-1).to_string());
    places.join(":")
}
