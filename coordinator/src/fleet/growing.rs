//! A group that has fewer workers than are wanted takes newcomers in. These load what they are to have while the group
//! serves, from its workers first: so its streams wait for no load, only for the larger group to meet.

use super::assign::Parts;
use super::form::{Formation, until_ready};
use super::gather::{TICK, planned, prefers};
use super::planning::Planned;
use super::pool::{Growing, Lent};
use super::service::Fleet;
use super::stall::Pace;
use super::worker::Worker;
use crate::board::LeftOut;
use flotilla_proto::Hello;
use flotilla_proto::wire::to_worker;
use flotilla_shared::{ByPlace, Epoch, Held, Plan, Rank, WeightsId};
use futures::future::{pending, try_join_all};
use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{debug, info, warn};

/// Tries to have everything ready: what is known of the workers may change while they load, and the plan with it.
const TRIES_MAX: usize = 3;
/// Between two tries, of which the first began to fail.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A worker of a group that would grow.
enum Candidate {
    Member(Hello),
    New(Lent),
}

impl Borrow<Hello> for Candidate {
    fn borrow(&self) -> &Hello {
        match self {
            Candidate::Member(hello) => hello,
            Candidate::New(lent) => lent.hello(),
        }
    }
}

/// A group that stands, as its workers would be found if it ended now.
pub struct Members {
    pub weights: WeightsId,
    pub hellos: Vec<Hello>,
}

/// What a look at the newcomers came to.
enum Look {
    /// They have what they are to have; and of whom the larger group is to be.
    Ready(BTreeSet<String>),
    /// They have it now; another look may show that the plan has changed.
    Loaded,
    /// They are not here any more.
    Gone,
    /// They could not load.
    Failed,
    /// The model does not fit on so many, for now.
    NoPlan,
    /// It is as well without them.
    OfNoUse,
}

impl Fleet {
    /// Resolves when a larger group than that of `members` could be chosen from as many workers as are wanted, and the
    /// newcomers have what they are to have in it. `considered`: the workers from which that group was chosen; while newcomers
    /// wait that are of no use to it, it is told that as many as are wanted were looked at. What comes of this is to be kept
    /// until the next group stands.
    pub async fn grown(
        &self,
        formation: &Formation,
        members: &Members,
        considered: &watch::Sender<usize>,
    ) -> Growing {
        let chosen_from = *considered.borrow();
        if chosen_from >= formation.ranks {
            return pending().await;
        }
        let (mut tries, mut pause) = (0, TICK);
        // Of no use when they were looked at: others go first.
        let mut unfit = BTreeSet::new();
        loop {
            let mut growing = self.larger(formation, members.hellos.len()).await;
            if tries == TRIES_MAX {
                return growing;
            }
            let arrival = self.pool.arrival();
            let look = self.look(formation, members, &mut unfit).await;
            if let Look::Ready(names) = look {
                growing.names = names;
                return growing;
            }
            drop(growing);
            match look {
                Look::Ready(_) | Look::Gone => {}
                Look::Loaded => (tries, pause) = (tries + 1, TICK),
                Look::Failed => pause = (2 * pause).min(PAUSE_MAX),
                Look::NoPlan => self.others(arrival, &unfit).await,
                Look::OfNoUse => {
                    considered.send_replace(formation.ranks);
                    self.others(arrival, &unfit).await;
                    considered.send_replace(chosen_from);
                }
            }
            // Who was let go is back soon, but not at once.
            tokio::time::sleep(pause).await;
        }
    }

    /// Resolves when there are as many workers as are wanted, and no other group is about to take them.
    async fn larger(&self, formation: &Formation, ranks: usize) -> Growing {
        let pool = &self.pool;
        let could_not = || ranks + pool.count_rested() < formation.ranks || pool.is_needed();
        loop {
            while could_not() {
                tokio::select! {
                    () = pool.arrival() => {}
                    // Whoever was looked at by another replica comes back without a word.
                    () = tokio::time::sleep(TICK) => {}
                }
            }
            let growing = pool.growing().await;
            if !could_not() {
                return growing;
            }
        }
    }

    /// Resolves when somebody has come, or waits who was not looked at.
    async fn others(&self, arrival: impl Future<Output = ()>, unfit: &BTreeSet<String>) {
        let mut arrival = pin!(arrival);
        let rests = self.pool.rests();
        let could_come = |worker: &Worker| !unfit.contains(worker.name()) && !rests.has(worker.name());
        while !self.pool.seen(|_| (), could_come).contains(&true) {
            tokio::select! {
                () = &mut arrival => return,
                // Who has rested, or was looked at by another replica, comes without a word.
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    /// Plans for the larger group, and lets the newcomers load what they lack for it, if they lack anything.
    async fn look(&self, formation: &Formation, members: &Members, unfit: &mut BTreeSet<String>) -> Look {
        let (weights, count) = (members.weights, formation.ranks - members.hellos.len());
        let usual = prefers(weights);
        let rests = self.pool.rests();
        let last = |name: &str| (rests.has(name), unfit.contains(name));
        // A group is of one.
        let backend = members.hellos.first().map(|hello| hello.inventory.backend);
        let is_other = |worker: &Worker| backend != Some(worker.hello.inventory.backend);
        let prefers = |worker: &Worker| (last(worker.name()), is_other(worker), usual(worker));
        let Some(newcomers) = self.pool.take(count, prefers) else { return Look::Gone };
        let all = members.hellos.iter().cloned().map(Candidate::Member);
        let mut all: Vec<Candidate> = all.chain(self.pool.lend(newcomers).map(Candidate::New)).collect();
        all.sort_by(|a, b| name(a).cmp(name(b)));
        let planned = match planned(&self.pool, formation, weights, all).await {
            Ok(planned) => planned,
            Err((error, all)) => {
                debug!(%error, "no larger group of these workers");
                let newcomers: Vec<Worker> = all.into_iter().filter_map(newcomer).collect();
                unfit.extend(newcomers.iter().map(|worker| worker.name().to_owned()));
                self.pool.put_back(newcomers);
                return Look::NoPlan;
            }
        };
        let Planned { plan, workers, left_out, whole_values_max } = planned;
        let hellos: Vec<Hello> = workers.iter().map(Borrow::borrow).cloned().collect();
        let (left_out, others): (Vec<_>, Vec<_>) = newcomers_left_out(left_out).into_iter().unzip();
        self.pool.put_back(others);
        let ranked = plan.ranks().map(|share| share.rank).zip(workers);
        let newcomers = ranked.filter_map(|(rank, worker)| Some((rank, newcomer(worker)?)));
        let (lack, have): (Vec<_>, Vec<_>) = newcomers.partition(|(rank, worker)| {
            let wanted = Held::of(weights, &plan, *rank);
            !worker.held().is_some_and(|held| held.is_alike(&wanted))
        });
        let of_use = lack.len() + have.len();
        self.pool.put_back(have.into_iter().map(|(_, worker)| worker).collect());
        if of_use == 0 {
            unfit.extend(left_out.iter().map(|left_out| left_out.name.clone()));
            formation.board.left_out(left_out);
            return Look::OfNoUse;
        }
        if lack.is_empty() {
            return Look::Ready(hellos.into_iter().map(|hello| hello.inventory.name).collect());
        }
        let epoch = self.next_epoch();
        let parts = Parts::new(epoch, formation, weights, &plan, &hellos, whole_values_max);
        Preparing { fleet: self, epoch, workers: lack }.run(formation, weights, &plan, &parts).await
    }
}

fn name(candidate: &Candidate) -> &str {
    let hello: &Hello = candidate.borrow();
    &hello.inventory.name
}

fn newcomer(candidate: Candidate) -> Option<Worker> {
    match candidate {
        Candidate::New(lent) => Some(lent.keep()),
        Candidate::Member(_) => None,
    }
}

fn newcomers_left_out(left_out: Vec<(Candidate, String)>) -> Vec<(LeftOut, Worker)> {
    let newcomers = left_out.into_iter().filter_map(|(other, reason)| Some((newcomer(other)?, reason)));
    newcomers.map(|(worker, reason)| (LeftOut { name: worker.name().to_owned(), reason }, worker)).collect()
}

/// Newcomers that load; when it is dropped they are let go, with what they have.
struct Preparing<'a> {
    fleet: &'a Fleet,
    epoch: Epoch,
    workers: Vec<(Rank, Worker)>,
}

impl Preparing<'_> {
    /// Until all have loaded, one has failed, or another replica needs them.
    async fn run(
        mut self,
        formation: &Formation,
        weights: WeightsId,
        plan: &Plan,
        parts: &Parts<'_>,
    ) -> Look {
        let (fleet, epoch, start) = (self.fleet, self.epoch, Instant::now());
        fleet.serve_weights(epoch, &formation.weights);
        let ranked = self.workers.iter().map(|(rank, worker)| (*rank, worker));
        let sent = fleet.send_out(formation, weights, plan, ranked.clone());
        for ((rank, worker), sent) in ranked.zip(sent) {
            info!(name = worker.name(), %rank, %epoch, "a newcomer loads while the group serves");
            let assignment = parts.assignment(rank, sent);
            worker.tell(to_worker::Message::Prepare((&assignment).into()));
        }
        let pace = &Pace::of(self.workers.len());
        let loads = self.workers.iter_mut().enumerate().map(|(at, (_, worker))| async move {
            let mut before = ByPlace::default();
            let ready = until_ready(epoch, worker, |loading| {
                fleet.hear_of_weights(loading.by_place, std::mem::replace(&mut before, loading.by_place));
                pace.hear(at, loading);
            });
            ready.await.inspect(|_| pace.ready(at)).map_err(|reason| (worker.name().to_owned(), reason))
        });
        let loaded = try_join_all(loads);
        tokio::select! {
            loaded = loaded => match loaded {
                Ok(_) => {
                    info!(%epoch, seconds = start.elapsed().as_secs_f64(), "the newcomers have loaded");
                    Look::Loaded
                }
                Err((name, reason)) => {
                    warn!(name, reason, "a newcomer cannot load");
                    Look::Failed
                }
            },
            (at, reason) = pace.stall() => {
                let worker = &mut self.workers[at].1;
                worker.failed(false);
                warn!(name = worker.name(), reason, "a newcomer cannot load");
                Look::Failed
            }
            () = fleet.pool.needed() => {
                info!(%epoch, "the newcomers are needed elsewhere");
                Look::Gone
            }
        }
    }
}

impl Drop for Preparing<'_> {
    fn drop(&mut self) {
        let (epoch, pool) = (self.epoch, &self.fleet.pool);
        // Before the weights are closed: nobody is to blame for asking when they are.
        self.workers.drain(..).for_each(|(_, worker)| worker.go_home(epoch, pool.clone()));
        self.fleet.close_weights(epoch);
    }
}
