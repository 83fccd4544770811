//! Who forms the next group: as many as are wanted; after a loss, when nobody comes soon, those that are left, if
//! the model fits on them.

use super::form::{FormError, Formation, Progress};
use super::planning::{Planned, Planning, given, plan};
use super::pool::{Growing, Pool};
use super::worker::Worker;
use crate::board::LeftOut;
use flotilla_shared::{Epoch, Plan, PlanError, WeightsId};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Between two looks at who still is there.
const TICK: Duration = Duration::from_millis(500);

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
    /// How many there were to choose from.
    pub considered: usize,
}

/// Waits until a group can be formed. `again`: there was one before, so that fewer will do, and whoever does not fit
/// may be followed by others.
pub async fn gather(
    pool: &Pool,
    epoch: Epoch,
    formation: &Formation,
    weights: WeightsId,
    again: bool,
    progress: &watch::Sender<Progress>,
) -> Result<Gathered, FormError> {
    let wanted = formation.ranks;
    let settled = Instant::now() + formation.regroup_grace;
    loop {
        let arrival = pool.arrival();
        progress.send_replace(Progress::Waiting { joined: pool.count(), wanted });
        let least = if again && Instant::now() >= settled { 1 } else { wanted };
        for count in (least..=wanted).rev() {
            match take(pool, epoch, formation, weights, count, again).await {
                Some(Ok(gathered)) => return Ok(gathered),
                Some(Err(error)) if !again => return Err(error.into()),
                Some(Err(error)) => tracing::debug!(%error, count, "no group of these workers"),
                None => {}
            }
        }
        let look_again = Instant::now() + TICK;
        let look_again = if Instant::now() < settled { look_again.min(settled) } else { look_again };
        tokio::select! {
            () = arrival => {}
            () = sleep_until(look_again) => {}
        }
    }
}

/// So many workers with a plan for them; none, if there are fewer. Whoever a plan does not fit waits on.
async fn take(
    pool: &Pool,
    epoch: Epoch,
    formation: &Formation,
    weights: WeightsId,
    count: usize,
    again: bool,
) -> Option<Result<Gathered, PlanError>> {
    // Those first that hold what is wanted, then by name: the order does not depend on who was faster.
    let prefers = |worker: &Worker| {
        let holds = worker.held().is_some_and(|held| held.weights == weights);
        // Two that do not reach each other would form a group again and again.
        (worker.disputes >= DISPUTES_MAX, !holds, worker.name().to_owned())
    };
    let mut workers = pool.take(count, prefers)?;
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
    let measured = pool.links().between(&workers, formation.links);
    let planned = match formation.plan.as_ref().filter(|plan| plan.rank_count() == count) {
        Some(fixed) => given(fixed, formation, &measured, weights, workers),
        None => plan(formation, &measured, weights, workers),
    };
    Some(match planned {
        Ok(Planned { plan, workers, left_out, whole_values_max }) => {
            let (others, reasons): (Vec<Worker>, Vec<String>) = left_out.into_iter().unzip();
            let named = others.iter().map(|worker| worker.name().to_owned()).zip(reasons);
            let left_out = named.map(|(name, reason)| LeftOut { name, reason }).collect();
            pool.put_back(others);
            Ok(Gathered { workers, plan, left_out, whole_values_max, considered: count })
        }
        Err((error, workers)) => {
            pool.put_back(workers);
            Err(error)
        }
    })
}

/// Resolves when a group of so many ranks, which was chosen from so many workers, could be chosen from as many as are
/// wanted, and no other group is about to take them.
pub async fn grown(pool: &Pool, formation: &Formation, considered: usize, ranks: usize) -> Growing {
    let could_not = || considered >= formation.ranks || ranks + pool.count() < formation.ranks;
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
