//! Workers that are here and in no group. Whoever joins comes here, and whoever is let go comes back.

use super::holders::Holders;
use super::known_links::KnownLinks;
use super::rests::Rests;
use super::worker::Worker;
use flotilla_proto::Hello;
use flotilla_shared::WeightsId;
use flotilla_shared::plan::RANKS_MAX;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Workers that may wait for a group; one more is turned away.
pub const WAITING_MAX: usize = 256;

/// Cheap to clone; all clones are one pool.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    waiting: Mutex<Vec<Worker>>,
    /// Counts arrivals.
    arrivals: watch::Sender<u64>,
    /// Between workers that are, or were, here.
    links: KnownLinks,
    /// Of workers that are here, and of those that are in groups.
    holders: Holders,
    /// Of names of workers.
    rests: Rests,
    /// Whoever gives its group up for a larger one holds it until that one stands.
    growing: Arc<Semaphore>,
    /// Workers on their way here from a group that is over.
    homecoming: watch::Sender<usize>,
    /// Replicas that lost their group and have not enough workers for another.
    needy: watch::Sender<usize>,
}

/// The right to give a group up for a larger one, until it is dropped. One has it at a time: two groups that lack one
/// worker each would both end for the same newcomer.
#[derive(Debug)]
#[must_use]
pub struct Growing {
    #[expect(dead_code, reason = "it is held, not used")]
    permit: OwnedSemaphorePermit,
    /// Of whom the larger group is to be, once that is known: they have their shares of it.
    pub(super) names: BTreeSet<String>,
}

/// A worker on its way here from its group, until it is dropped.
#[must_use]
pub struct Homecoming(Pool);

impl Drop for Homecoming {
    fn drop(&mut self) {
        self.0.0.homecoming.send_modify(|coming| *coming -= 1);
    }
}

/// A worker that was taken out to be looked at: it goes back when this is dropped, also in the middle of a look.
pub struct Lent {
    pool: Pool,
    /// Until it is kept.
    worker: Option<Worker>,
}

impl Lent {
    pub fn hello(&self) -> &Hello {
        &self.worker.as_ref().expect("it is kept once, at the end").hello
    }

    pub fn keep(mut self) -> Worker {
        self.worker.take().expect("it is kept once, at the end")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.put_back(self.worker.take().into_iter().collect());
    }
}

/// A replica wants workers for a group in place of one that was; until it is dropped, nobody holds any back.
#[must_use]
pub struct Need(Pool);

impl Drop for Need {
    fn drop(&mut self) {
        self.0.0.needy.send_modify(|needy| *needy -= 1);
    }
}

impl Default for Pool {
    fn default() -> Pool {
        Pool(Arc::new(Shared {
            waiting: Mutex::default(),
            arrivals: watch::channel(0).0,
            links: KnownLinks::default(),
            holders: Holders::default(),
            rests: Rests::default(),
            growing: Arc::new(Semaphore::new(1)),
            homecoming: watch::channel(0).0,
            needy: watch::channel(0).0,
        }))
    }
}

impl Pool {
    /// Takes a worker in, unless too many wait: then its link is closed.
    #[must_use]
    pub fn enter(&self, worker: Worker) -> bool {
        let mut waiting = self.waiting();
        waiting.retain(Worker::is_here);
        if waiting.len() == WAITING_MAX {
            return false;
        }
        waiting.push(worker);
        drop(waiting);
        self.0.arrivals.send_modify(|arrivals| *arrivals += 1);
        true
    }

    /// Takes in those that were taken out just now, of which nobody needs to hear.
    pub fn put_back(&self, workers: Vec<Worker>) {
        self.waiting().extend(workers);
    }

    pub fn lend(&self, workers: Vec<Worker>) -> impl Iterator<Item = Lent> {
        workers.into_iter().map(|worker| Lent { pool: self.clone(), worker: Some(worker) })
    }

    /// How many wait that still are here, as far as is known.
    pub fn count(&self) -> usize {
        let mut waiting = self.waiting();
        waiting.retain(Worker::is_here);
        waiting.len()
    }

    /// Whether one of them has some of these weights.
    pub fn has_some_of(&self, weights: WeightsId) -> bool {
        let is_of = |worker: &Worker| worker.held().is_some_and(|held| held.weights == weights);
        self.waiting().iter().any(|worker| worker.is_here() && is_of(worker))
    }

    /// How many of them a group may end for.
    pub fn count_rested(&self) -> usize {
        let mut waiting = self.waiting();
        waiting.retain(Worker::is_here);
        waiting.iter().filter(|worker| !self.0.rests.has(worker.name())).count()
    }

    /// Takes `count` of them, those that `prefers` puts first; none, if there are fewer.
    pub fn take<K: Ord>(&self, count: usize, prefers: impl Fn(&Worker) -> K) -> Option<Vec<Worker>> {
        let mut waiting = self.waiting();
        waiting.retain(Worker::is_here);
        if waiting.len() < count {
            return None;
        }
        waiting.sort_by_key(prefers);
        Some(waiting.drain(..count).collect())
    }

    /// Takes `count` of each backend, or as many as there are, and no more than a plan can be made of; none, if there are fewer
    /// than `count` in all.
    pub fn take_of_each<K: Ord>(&self, count: usize, prefers: impl Fn(&Worker) -> K) -> Option<Vec<Worker>> {
        let mut waiting = self.waiting();
        waiting.retain(Worker::is_here);
        if waiting.len() < count {
            return None;
        }
        waiting.sort_by_key(prefers);
        let mut taken: Vec<Worker> = Vec::new();
        for worker in std::mem::take(&mut *waiting) {
            let backend = worker.hello.inventory.backend;
            let is_like = |other: &&Worker| other.hello.inventory.backend == backend;
            let is_taken = taken.len() < RANKS_MAX && taken.iter().filter(is_like).count() < count;
            if is_taken { taken.push(worker) } else { waiting.push(worker) }
        }
        Some(taken)
    }

    /// What `see` says of each that waits, those that `prefers` puts first.
    pub fn seen<K: Ord, T>(&self, prefers: impl Fn(&Worker) -> K, see: impl Fn(&Worker) -> T) -> Vec<T> {
        let mut waiting = self.waiting();
        waiting.sort_by_key(prefers);
        waiting.iter().map(see).collect()
    }

    /// Resolves when somebody has come since it was made.
    pub fn arrival(&self) -> impl Future<Output = ()> + use<> {
        let mut arrivals = self.0.arrivals.subscribe();
        let shared = self.0.clone();
        async move {
            // The sender lives as long as the pool.
            let _ = arrivals.changed().await;
            drop(shared);
        }
    }

    /// Once nobody else has it.
    pub async fn growing(&self) -> Growing {
        let permit = self.0.growing.clone().acquire_owned().await.expect("it is never closed");
        Growing { permit, names: BTreeSet::new() }
    }

    pub fn homecoming(&self) -> Homecoming {
        self.0.homecoming.send_modify(|coming| *coming += 1);
        Homecoming(self.clone())
    }

    /// Resolves when nobody is on the way here.
    pub async fn all_home(&self) {
        let mut homecoming = self.0.homecoming.subscribe();
        // The sender lives as long as the pool.
        let _ = homecoming.wait_for(|coming| *coming == 0).await;
    }

    pub fn need(&self) -> Need {
        self.0.needy.send_modify(|needy| *needy += 1);
        Need(self.clone())
    }

    pub fn is_needed(&self) -> bool {
        *self.0.needy.borrow() > 0
    }

    /// Resolves when some replica wants workers for a group in place of one that was.
    pub async fn needed(&self) {
        let mut needy = self.0.needy.subscribe();
        // The sender lives as long as the pool.
        let _ = needy.wait_for(|needy| *needy > 0).await;
    }

    pub fn links(&self) -> &KnownLinks {
        &self.0.links
    }

    pub fn rests(&self) -> &Rests {
        &self.0.rests
    }

    pub fn holders(&self) -> &Holders {
        &self.0.holders
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Worker>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
