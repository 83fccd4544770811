//! Sequences that are moved: when a replica's group is lost and another replica serves, they go on there, with their
//! tokens, their guide, and whoever listens.

use super::handle::Command;
use super::losses::Met;
use super::{Driver, DriverHandle, Failure, Readiness, Stream};
use crate::driver::guides::Ready;
use crate::group::{Group, GroupError};
use flotilla_scheduler::Traveller;
use flotilla_shared::SequenceId;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, RwLock, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks for a replica that serves, while sequences wait.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);

/// This part of what all wait for another group, those wait that are to be tried here: a worker that is started again has
/// joined long before, and what is left is enough for a trial elsewhere.
const HELD_PART: u32 = 3;

/// All replicas of one server, as they come. Cheap to clone; all clones are one fleet of them.
#[derive(Clone, Default)]
pub struct Replicas {
    drivers: Arc<RwLock<Vec<DriverHandle>>>,
    /// Counts sequences: their ids are unique over all replicas.
    sequences: Arc<AtomicU64>,
}

impl Replicas {
    pub fn add(&self, driver: DriverHandle) {
        self.drivers.write().expect("no holder panics").push(driver);
    }

    /// In the order in which they came.
    pub fn all(&self) -> Vec<DriverHandle> {
        self.drivers.read().expect("no holder panics").clone()
    }

    /// Orders that this replica ends; the last one that serves only by force.
    pub fn dissolve(&self, number: usize, force: bool) -> Result<(), NotDissolved> {
        // So that of two orders at once the second sees the first.
        let drivers = self.drivers.write().expect("no holder panics");
        let driver = drivers.get(number).ok_or(NotDissolved::NoSuch { number, count: drivers.len() })?;
        if driver.is_dissolved() {
            return Err(NotDissolved::Already { number });
        }
        if !driver.serves() {
            return Err(NotDissolved::NotServing { number, readiness: driver.readiness() });
        }
        let is_last = drivers.iter().enumerate().all(|(at, other)| at == number || !other.serves());
        if is_last && !force {
            return Err(NotDissolved::Last { number });
        }
        driver.dissolve();
        Ok(())
    }

    pub(super) fn sequences(&self) -> Arc<AtomicU64> {
        self.sequences.clone()
    }

    pub(super) fn downgrade(&self) -> WeakReplicas {
        WeakReplicas(Arc::downgrade(&self.drivers))
    }
}

/// Why a replica goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDissolved {
    #[error("no replica has the number {number}: there are {count}, counted from 0")]
    NoSuch { number: usize, count: usize },
    #[error("replica {number} was dissolved before")]
    Already { number: usize },
    #[error(
        "replica {number} does not serve: {readiness}\nhint: one can be dissolved while its group stands"
    )]
    NotServing { number: usize, readiness: Readiness },
    #[error(
        "replica {number} is the last that serves: its requests could go nowhere\n\
         hint: with force it is dissolved all the same, and no request is served any more"
    )]
    Last { number: usize },
}

/// Held by what the replicas' own handles hold, so that none of them keeps itself alive.
#[derive(Clone, Default)]
pub(super) struct WeakReplicas(Weak<RwLock<Vec<DriverHandle>>>);

impl WeakReplicas {
    pub fn all(&self) -> Vec<DriverHandle> {
        let drivers = self.0.upgrade();
        drivers.map_or_else(Vec::new, |drivers| drivers.read().expect("no holder panics").clone())
    }

    /// Those that serve, with what each has to do.
    fn serving(&self) -> Vec<(DriverHandle, usize)> {
        let serve = self.all().into_iter().filter(DriverHandle::serves);
        serve
            .map(|driver| {
                let busy = driver.busy();
                (driver, busy)
            })
            .collect()
    }

    /// The one with the least to do of those that serve.
    pub(super) fn idlest(&self) -> Option<DriverHandle> {
        self.serving().into_iter().min_by_key(|(_, busy)| *busy).map(|(driver, _)| driver)
    }
}

/// A sequence on its way from one driver to another.
pub(super) struct Moving {
    pub traveller: Traveller,
    pub guide: Option<Ready>,
    pub stream: Stream,
    /// Of lost workers.
    pub met: Option<Met>,
    /// Failed steps in a row that it was in.
    pub failures: u32,
}

/// How near a group that is forming has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nearness {
    /// Bytes of weights that this forming has brought to its ranks.
    pub came: u64,
    /// With those that were there before it.
    pub here: u64,
    /// All is loaded and linked.
    pub is_linked: bool,
}

impl Nearness {
    /// The most of both; whether `other` has done anything that was not done before. What it found is nothing that it did.
    fn exceed(&mut self, other: Nearness) -> bool {
        let before = *self;
        self.came = before.came.max(other.came);
        self.here = before.here.max(other.here);
        self.is_linked |= other.is_linked;
        *self != before && (other.came > 0 || other.is_linked)
    }
}

/// Sequences wait for another group, here or in another replica.
pub(super) struct Orphaned {
    pub error: GroupError,
    /// If none comes nearer.
    pub give_up: Instant,
    /// The nearest that any has come since the loss.
    nearest: Nearness,
    /// From then on whoever is held here goes elsewhere too.
    held_until: Instant,
    /// When to look again for a replica that serves.
    pub look: Instant,
}

impl Orphaned {
    pub fn is_held_no_more(&self) -> bool {
        super::now() >= self.held_until
    }
}

impl<G: Group> Driver<G> {
    pub(super) fn orphan(&mut self, error: GroupError) {
        let now = super::now();
        let (give_up, held_until) = (now + self.regroup_wait, now + self.regroup_wait / HELD_PART);
        let (nearest, look) = (Nearness::default(), now + LOOK_EVERY);
        self.orphaned = Some(Orphaned { error, give_up, nearest, held_until, look });
    }

    /// The time to wait for a group begins anew if one is nearer than any since the loss: of several that fail one after the
    /// other, each at the same point, none is waited for longer than the first.
    pub(super) fn wait_on(&mut self, near: Nearness) {
        let give_up = super::now() + self.regroup_wait;
        if let Some(orphaned) = &mut self.orphaned
            && orphaned.nearest.exceed(near)
        {
            orphaned.give_up = give_up;
        }
    }

    pub(super) fn look_for_replica(&mut self) {
        if let Some(orphaned) = &mut self.orphaned {
            orphaned.look = super::now() + LOOK_EVERY;
        }
        self.rescue();
    }

    /// Sequences that came from another replica when this one had just lost its group too.
    pub(super) fn orphan_those_who_came(&mut self) {
        if self.orphaned.is_none() {
            // As whoever asks is told; a driver that never had a group has lost none, and only waits.
            let error = match &*self.readiness.borrow() {
                Readiness::Lost { error } => error.clone(),
                _ => GroupError::Outgrown,
            };
            self.orphan(error);
        }
    }

    pub(super) fn give_up(&mut self) {
        if let Some(Orphaned { error, .. }) = self.orphaned.take() {
            self.fail_all(Failure::GroupLost(error));
        }
    }

    /// Moves whatever waits to replicas that serve, if there are any, each sequence to the one with the least to do. A sequence whose guide is away follows when it
    /// is back; one that may be why steps fail, or workers are lost, is tried here if this replica is back soon.
    pub(super) fn rescue(&mut self) {
        if self.is_seated() || self.streams.is_empty() {
            return;
        }
        let mut others = self.replicas.serving();
        let sequences: Vec<SequenceId> = self.streams.keys().copied().collect();
        let (before, now) = (sequences.len(), super::now() - self.started);
        for sequence in sequences {
            let Some((other, busy)) = others.iter_mut().min_by_key(|(_, busy)| *busy) else { return };
            let makes_way = before > 1 || *busy > 0;
            if self.guides.is_away(sequence) || self.must_stay(sequence, makes_way) {
                continue;
            }
            // Of one that has just ended the last word is still to be said, here.
            let Some(traveller) = self.scheduler.depart(now, sequence) else { continue };
            let Some(mut stream) = self.streams.remove(&sequence) else { continue };
            let failures = self.suspects.forget(sequence);
            let met = self.losses.forget(sequence);
            // It was taken in, and the other driver does not know that nobody has said so yet.
            stream.answer(Ok(()));
            let moving =
                Box::new(Moving { traveller, guide: self.guides.take(sequence), stream, met, failures });
            // It does not say so before its next turn.
            *busy += 1;
            if let Err(moving) = other.send(Command::Adopt(moving)) {
                // It has ended meanwhile.
                self.adopt(moving);
            }
        }
        let moved = before - self.streams.len();
        if moved > 0 {
            tracing::info!(moved, left = self.streams.len(), "sequences go on in another replica");
        }
    }

    pub(super) fn adopt(&mut self, moving: Box<Moving>) {
        let Moving { traveller, guide, stream, met, failures } = *moving;
        // Its client has left meanwhile, and the word of that came before it.
        if stream.is_left() {
            return;
        }
        let sequence = traveller.id();
        if let Some(guide) = guide {
            self.guides.begin(sequence, guide);
        }
        if let Some(met) = met {
            self.losses.adopt(sequence, met);
        }
        self.suspects.adopt(sequence, failures);
        self.streams.insert(sequence, stream);
        let now = super::now() - self.started;
        self.scheduler.adopt(now, traveller);
        if !self.is_seated() {
            self.orphan_those_who_came();
        }
    }
}
