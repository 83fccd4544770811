//! Who forms the next group: as many as are wanted; after a loss, when nobody comes soon, those that are left, if
//! the model fits on them.

use super::form::{FormError, Formation, Progress};
use super::planning::{Planned, Planning, given, plan};
use super::pool::{Growing, Pool};
use super::worker::Worker;
use crate::board::LeftOut;
use flotilla_proto::Hello;
use flotilla_shared::{BackendKind, Epoch, Plan, PlanError, WeightsId};
use std::borrow::Borrow;
use std::cmp::Reverse;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

/// Between two looks at who still is there.
pub(super) const TICK: Duration = Duration::from_millis(500);

/// After a group is over, those of its workers that still carry a step out are waited for so long: they hold weights.
const HOME_WAIT: Duration = Duration::from_secs(2);

/// From so many on, others go first.
const DISPUTES_MAX: u32 = 2;

/// Workers in the order of their ranks, and what each gets.
pub struct Gathered {
    pub workers: Vec<Worker>,
    pub plan: Plan,
    /// Who was there too, and why it is no rank.
    pub left_out: Vec<LeftOut>,
    /// As [`flotilla_shared::Links`] has it.
    pub whole_values_max: Vec<u32>,
    /// How many of its kind there were to choose from.
    pub considered: usize,
}

/// What was before the group that is formed.
#[derive(Clone, Copy, Debug)]
pub enum After<'a> {
    /// None, of any replica: as many workers are waited for as are wanted, and if they make no plan, that is the end. Where
    /// some have these weights, of a coordinator before this one or of a group that did not come to be, fewer will do in time.
    Nothing,
    /// Groups of other replicas, and none of this one: as many are waited for, and whoever does not fit may be followed by
    /// others.
    Others,
    /// The same, of a replica that nobody asked for: fewer will do.
    OthersUnasked,
    /// One that was lost, of which requests may wait for the next: fewer will do, and nobody holds any back.
    Loss,
    /// A smaller one, of whose workers, and of newcomers, this one is to be; otherwise as after a loss.
    Growth(&'a Growing),
}

impl After<'_> {
    /// This replica had a group.
    fn is_again(self) -> bool {
        matches!(self, After::Loss | After::Growth(_))
    }

    fn fewer_will_do(self) -> bool {
        self.is_again() || matches!(self, After::OthersUnasked)
    }

    /// Nobody was served yet. So what makes no plan is the end.
    fn is_first(self) -> bool {
        matches!(self, After::Nothing)
    }

    fn expects(self, name: &str) -> bool {
        matches!(self, After::Growth(growing) if growing.names.contains(name))
    }
}

/// Workers that wait, and are no group.
#[derive(PartialEq)]
struct Misfit {
    error: PlanError,
    /// Their names.
    of: Vec<String>,
}

impl Misfit {
    fn tell(&self) {
        let (workers, error) = (self.of.join(", "), &self.error);
        warn!(workers, %error, "no group of these workers, others are waited for");
    }
}

/// Waits until a group can be formed.
pub async fn gather(
    pool: &Pool,
    epoch: Epoch,
    formation: &Formation,
    weights: WeightsId,
    after: After<'_>,
    progress: &watch::Sender<Progress>,
) -> Result<Gathered, FormError> {
    let wanted = formation.ranks;
    let settled = Instant::now() + formation.regroup_grace;
    let returned = formation.return_grace.map(|grace| Instant::now() + grace);
    let _need = after.is_again().then(|| pool.need());
    if after.is_again() {
        let _ = timeout(HOME_WAIT, pool.all_home()).await;
    }
    let mut told = None;
    loop {
        let arrival = pool.arrival();
        progress.send_replace(Progress::Waiting { joined: pool.count(), wanted });
        let fewer_will_do = match after.fewer_will_do() {
            true => Instant::now() >= settled,
            false => {
                after.is_first()
                    && returned.is_some_and(|at| Instant::now() >= at)
                    && pool.has_some_of(weights)
            }
        };
        let least = if fewer_will_do { 1 } else { wanted };
        // Of as many as there are; that fewer make none either needs no words.
        let mut no_plan = None;
        for count in (least..=wanted).rev() {
            match of_count(pool, epoch, formation, weights, count, after).await {
                Some(Ok(gathered)) => return Ok(gathered),
                Some(Err(misfit)) if count == wanted && after.is_first() => {
                    return Err(misfit.error.into());
                }
                Some(Err(misfit)) => no_plan = no_plan.or(Some(misfit)),
                None => {}
            }
        }
        if no_plan.is_some() && no_plan != told {
            no_plan.iter().for_each(Misfit::tell);
            told = no_plan;
        }
        let look_again = Instant::now() + TICK;
        let look_again = if Instant::now() < settled { look_again.min(settled) } else { look_again };
        tokio::select! {
            () = arrival => {}
            () = sleep_until(look_again) => {}
        }
    }
}

/// Those first that hold what is wanted, then by name: the order does not depend on who was faster.
pub(super) fn prefers(weights: WeightsId) -> impl Fn(&Worker) -> (bool, bool, String) {
    move |worker| {
        let holds = worker.held().is_some_and(|held| held.weights == weights);
        // Two that do not reach each other would form a group again and again.
        (worker.disputes >= DISPUTES_MAX, !holds, worker.name().to_owned())
    }
}

/// What one says of itself, and where it stands among those who are planned for.
struct Numbered(usize, Hello);

impl Borrow<Hello> for Numbered {
    fn borrow(&self) -> &Hello {
        &self.1
    }
}

/// The model cut over `workers`, which are sorted by name, with what is known of their links. It may take seconds of a core,
/// and other groups and connections are served by whoever asks for it.
pub(super) async fn planned<W: Borrow<Hello>>(
    pool: &Pool,
    formation: &Formation,
    weights: WeightsId,
    workers: Vec<W>,
) -> Result<Planned<W>, (PlanError, Vec<W>)> {
    let numbered: Vec<Numbered> =
        workers.iter().enumerate().map(|(at, worker)| Numbered(at, worker.borrow().clone())).collect();
    let (measured, formation) = (pool.links().between(&workers, formation.links), formation.clone());
    let cut = move || match formation.plan.as_ref().filter(|plan| plan.rank_count() == numbered.len()) {
        Some(fixed) => given(fixed, &formation, &measured, weights, numbered),
        None => plan(&formation, &measured, weights, numbered),
    };
    let cut = tokio::task::spawn_blocking(cut).await.expect("planning does not panic");
    let Planned { plan, workers: chosen, left_out, whole_values_max } = match cut {
        Ok(planned) => planned,
        Err((error, _)) => return Err((error, workers)),
    };
    let mut all: Vec<Option<W>> = workers.into_iter().map(Some).collect();
    let mut whose = |Numbered(at, _)| all[at].take().expect("each is named once");
    let workers = chosen.into_iter().map(&mut whose).collect();
    let left_out = left_out.into_iter().map(|(other, reason)| (whose(other), reason)).collect();
    Ok(Planned { plan, workers, left_out, whole_values_max })
}

/// So many workers with a plan for them; none, if there are fewer. Where the fastest plan is wanted it is chosen from so many
/// of each backend, for a group is of one. Where those that go first are no group, and more wait, the largest of each backend
/// are tried, beginning with that of whoever goes first.
async fn of_count(
    pool: &Pool,
    epoch: Epoch,
    formation: &Formation,
    weights: WeightsId,
    count: usize,
    after: After<'_>,
) -> Option<Result<Gathered, Misfit>> {
    let (again, usual) = (after.is_again(), prefers(weights));
    let first = |worker: &Worker| (!after.expects(worker.name()), usual(worker));
    // Those that are expected are of one kind, and loaded for this.
    let workers = match (formation.planning, &formation.plan, after) {
        (
            Planning::Fastest { .. },
            None,
            After::Nothing | After::Others | After::OthersUnasked | After::Loss,
        ) => pool.take_of_each(count, first)?,
        _ => pool.take(count, first)?,
    };
    let first = take(pool, epoch, formation, weights, workers, again).await?;
    if first.is_ok() || pool.count() == count {
        return Some(first);
    }
    for backend in backends(pool, &usual) {
        let largest = |worker: &Worker| {
            let inventory = &worker.hello.inventory;
            let usual = usual(worker);
            (inventory.backend != backend, usual.0, Reverse(inventory.memory_bytes), usual)
        };
        let Some(workers) = pool.take(count, largest) else { break };
        if let Some(Ok(gathered)) = take(pool, epoch, formation, weights, workers, again).await {
            return Some(Ok(gathered));
        }
    }
    Some(first)
}

/// Of those that wait, each once, in the order of who goes first.
fn backends<K: Ord>(pool: &Pool, prefers: impl Fn(&Worker) -> K) -> Vec<BackendKind> {
    let mut backends = Vec::new();
    for backend in pool.seen(prefers, |worker| worker.hello.inventory.backend) {
        if !backends.contains(&backend) {
            backends.push(backend);
        }
    }
    backends
}

/// These with a plan for them; none, if one of them is gone. Whoever a plan does not fit waits on.
async fn take(
    pool: &Pool,
    epoch: Epoch,
    formation: &Formation,
    weights: WeightsId,
    mut workers: Vec<Worker>,
    again: bool,
) -> Option<Result<Gathered, Misfit>> {
    let count = workers.len();
    workers.sort_by(|a, b| a.name().cmp(b.name()));
    if let (Planning::Fastest { within: None, .. } | Planning::Fastest { between: None, .. }, None) =
        (formation.planning, &formation.plan)
    {
        // After a loss requests wait: what is known of links must do.
        workers = pool.links().learn(epoch, formation.links, workers, again).await;
        if workers.len() < count {
            pool.put_back(workers);
            return None;
        }
    }
    Some(match planned(pool, formation, weights, workers).await {
        Ok(Planned { plan, workers, left_out, whole_values_max }) => {
            let backend = |worker: &Worker| worker.hello.inventory.backend;
            let could_be =
                |(other, _): &&(Worker, String)| workers.iter().any(|it| backend(it) == backend(other));
            let considered = workers.len() + left_out.iter().filter(could_be).count();
            let (others, reasons): (Vec<Worker>, Vec<String>) = left_out.into_iter().unzip();
            let named = others.iter().map(|worker| worker.name().to_owned()).zip(reasons);
            let left_out = named.map(|(name, reason)| LeftOut { name, reason }).collect();
            pool.put_back(others);
            Ok(Gathered { workers, plan, left_out, whole_values_max, considered })
        }
        Err((error, workers)) => {
            let of = workers.iter().map(|worker| worker.name().to_owned()).collect();
            pool.put_back(workers);
            Err(Misfit { error, of })
        }
    })
}
