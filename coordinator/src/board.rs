//! What is known of the cluster, for those who look at it: the metrics and the page of the cluster. It
//! is written by whoever forms groups and read by the API; nothing is decided by it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::fleet::{Figures, FormFailure};
use crate::pace::Pace;
use flotilla_shared::plan::Demand;
use flotilla_shared::{BackendKind, Epoch, Inventory, KvBlocks, Loading, ModelSpec, Plan, RankShare, Reach};

/// Cheap to clone; all clones are one board, on which each replica has a place.
#[derive(Clone, Debug)]
pub struct Board {
    facts: Arc<Facts>,
    replica: usize,
}

#[derive(Debug)]
struct Facts {
    started: Instant,
    model: Mutex<Option<Arc<ModelSpec>>>,
    /// By replica.
    groups: Mutex<BTreeMap<usize, Group>>,
    reforms: Mutex<Reforms>,
    form_failures: Mutex<BTreeMap<FormFailure, u64>>,
    fleet: Mutex<Option<Figures>>,
}

/// Groups that were formed in another's place.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reforms {
    pub count: u64,
    /// From the loss until the next group stood, of all together and of the last.
    pub seconds: f64,
    pub last_seconds: f64,
}

/// The group that is being formed, or that stands, or that was there last.
#[derive(Clone, Debug)]
pub struct Group {
    pub epoch: Epoch,
    pub kv_blocks: KvBlocks,
    pub members: Vec<Member>,
    /// Whoever could have been a member.
    pub left_out: Vec<LeftOut>,
    /// Of all members together.
    pub loading: Pace,
}

impl Member {
    pub fn is_card(&self) -> bool {
        self.inventory.backend == BackendKind::Cuda
    }
}

/// A worker that the plan has no use for, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    pub name: String,
    pub reason: String,
}

/// A worker and what it holds.
#[derive(Clone, Debug)]
pub struct Member {
    pub inventory: Inventory,
    pub layers: Range<usize>,
    pub share: RankShare,
    pub weights_bytes: u64,
    pub kv_bytes: u64,
    pub activation_bytes: u64,
    pub loading: Pace,
    /// Once it is linked to the others.
    pub reach: Option<Reach>,
}

impl Default for Board {
    fn default() -> Board {
        let started = Instant::now();
        let (model, groups, reforms, form_failures, fleet) = Default::default();
        let facts = Facts { started, model, groups, reforms, form_failures, fleet };
        Board { facts: Arc::new(facts), replica: 0 }
    }
}

impl Board {
    /// The same board, for that replica to write on.
    pub fn of_replica(&self, replica: usize) -> Board {
        Board { facts: self.facts.clone(), replica }
    }

    /// The model that is to be served.
    pub fn model(&self, spec: &ModelSpec) {
        *lock(&self.facts.model) = Some(Arc::new(spec.clone()));
    }

    /// A group is going to be these workers, in the order of their ranks.
    pub fn planned(
        &self,
        epoch: Epoch,
        spec: &ModelSpec,
        plan: &Plan,
        workers: &[Inventory],
        demand: Demand,
    ) {
        let members = plan.ranks().zip(workers);
        let members = members.map(|(share, inventory)| {
            let bytes = plan.bytes(spec, share.rank);
            Member {
                inventory: inventory.clone(),
                layers: plan.share(share.rank).0.layers.clone(),
                share: share.clone(),
                weights_bytes: bytes.weights(),
                kv_bytes: bytes.kv(demand.kv_blocks),
                activation_bytes: plan.activation_bytes(spec, share.rank, demand),
                loading: Pace::default(),
                reach: None,
            }
        });
        let members = members.collect();
        let (kv_blocks, left_out, loading) = (demand.kv_blocks, Vec::new(), Pace::default());
        let group = Group { epoch, kv_blocks, members, left_out, loading };
        lock(&self.facts.groups).insert(self.replica, group);
    }

    /// Who is no member of the group that is going to be.
    pub fn left_out(&self, workers: Vec<LeftOut>) {
        if let Some(group) = lock(&self.facts.groups).get_mut(&self.replica) {
            group.left_out = workers;
        }
    }

    /// No group of this replica is there any more.
    pub fn gone(&self) {
        lock(&self.facts.groups).remove(&self.replica);
    }

    /// How far each rank has loaded.
    pub fn loading(&self, ranks: &[Loading]) {
        let now = self.uptime();
        if let Some(group) = lock(&self.facts.groups).get_mut(&self.replica) {
            for (member, loading) in group.members.iter_mut().zip(ranks) {
                member.loading.see(now, loading.bytes_done, loading.bytes_total);
            }
            let sum = |part: fn(&Loading) -> u64| ranks.iter().map(part).sum();
            group.loading.see(now, sum(|rank| rank.bytes_done), sum(|rank| rank.bytes_total));
        }
    }

    /// Of this replica's group, how far it is.
    pub fn pace(&self) -> Option<Pace> {
        lock(&self.facts.groups).get(&self.replica).map(|group| group.loading.clone())
    }

    /// How each rank reaches the others.
    pub fn linked(&self, ranks: &[Reach]) {
        if let Some(group) = lock(&self.facts.groups).get_mut(&self.replica) {
            group
                .members
                .iter_mut()
                .zip(ranks)
                .for_each(|(member, reach)| member.reach = Some(reach.clone()));
        }
    }

    /// A group stands where another was lost so long ago.
    pub fn reformed(&self, after: Duration) {
        let (mut reforms, seconds) = (lock(&self.facts.reforms), after.as_secs_f64());
        *reforms =
            Reforms { count: reforms.count + 1, seconds: reforms.seconds + seconds, last_seconds: seconds };
    }

    /// A group did not come to be.
    pub fn form_failed(&self, failure: FormFailure) {
        *lock(&self.facts.form_failures).entry(failure).or_default() += 1;
    }

    pub fn form_failures(&self, failure: FormFailure) -> u64 {
        lock(&self.facts.form_failures).get(&failure).copied().unwrap_or(0)
    }

    /// Where the workers come from.
    pub fn fleet(&self, figures: Figures) {
        *lock(&self.facts.fleet) = Some(figures);
    }

    /// None before there is one.
    pub fn figures(&self) -> Option<Figures> {
        lock(&self.facts.fleet).clone()
    }

    pub fn reforms(&self) -> Reforms {
        *lock(&self.facts.reforms)
    }

    pub fn spec(&self) -> Option<Arc<ModelSpec>> {
        lock(&self.facts.model).clone()
    }

    /// Of each replica that has one, with its number.
    pub fn groups(&self) -> Vec<(usize, Group)> {
        lock(&self.facts.groups).iter().map(|(replica, group)| (*replica, group.clone())).collect()
    }

    /// What the times of a pace are counted from the start of.
    pub fn uptime(&self) -> Duration {
        self.facts.started.elapsed()
    }

    pub fn uptime_s(&self) -> f64 {
        self.uptime().as_secs_f64()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
