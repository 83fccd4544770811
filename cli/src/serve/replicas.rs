//! As many replicas as are asked for, or as the fleet holds: each is a driver with groups of its own, and all take their
//! workers from one pool.

use super::groups::Replica;
use anyhow::Result;
use flotilla_coordinator::driver::{DriverHandle, FleetHandle, Replicas};
use flotilla_coordinator::fleet::{Fleet, FormError, Formation, RemoteGroup};
use flotilla_shared::Plan;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use tokio::sync::watch;
use tracing::info;

/// Copies of the model at most.
const REPLICAS_MAX: usize = 64;
/// Between two looks whether there are workers for one more.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How many copies of the model are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaCount {
    Exactly(usize),
    /// One more whenever enough workers wait.
    Auto,
}

impl FromStr for ReplicaCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = text.parse().ok().filter(|count| (1..=REPLICAS_MAX).contains(count));
        match (text, count) {
            ("auto", _) => Ok(ReplicaCount::Auto),
            (_, Some(count)) => Ok(ReplicaCount::Exactly(count)),
            _ => Err(format!("expected auto or 1 to {REPLICAS_MAX}, found {text:?}")),
        }
    }
}

impl fmt::Display for ReplicaCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplicaCount::Exactly(count) => count.fmt(f),
            ReplicaCount::Auto => f.write_str("auto"),
        }
    }
}

impl ReplicaCount {
    /// Those that are there from the start.
    pub fn first(self) -> usize {
        match self {
            ReplicaCount::Exactly(count) => count,
            ReplicaCount::Auto => 1,
        }
    }
}

/// Keeps them formed; returns only what no new worker can mend, or, before any has served, that the first workers make no
/// plan. `start` makes a driver.
pub async fn keep_replicas(
    fleet: &Fleet,
    formation: &Formation,
    count: ReplicaCount,
    replicas: &Replicas,
    start: impl Fn() -> (DriverHandle, FleetHandle<RemoteGroup>),
    on_ready: impl Fn(&Plan) + Copy,
    on_lost: impl Fn(Option<&str>) + Copy,
) -> FormError {
    let has_served = Cell::new(false);
    let mut running = FuturesUnordered::new();
    let mut standing: Vec<watch::Receiver<usize>> = Vec::new();
    let more = |number: usize, standing: &mut Vec<watch::Receiver<usize>>| {
        let (driver, groups) = start();
        let (considered, stands) = watch::channel(0);
        replicas.add(driver.clone());
        standing.push(stands);
        let formation = Formation { board: formation.board.of_replica(number), ..formation.clone() };
        let is_more = number >= count.first();
        let has_served = &has_served;
        Replica { fleet, formation, groups, driver, considered, is_more, has_served, growing: None }
            .keep_formed(on_ready, on_lost)
    };
    let mut has_dissolved = false;
    for number in 0..count.first() {
        running.push(more(number, &mut standing));
    }
    loop {
        tokio::select! {
            Some(ended) = running.next() => match ended {
                Some(error) => return error,
                None => has_dissolved = true,
            },
            // Whoever dissolves one wants its workers elsewhere.
            () = tokio::time::sleep(LOOK_EVERY), if count == ReplicaCount::Auto && !has_dissolved => {
                // Who was lost goes before who is new.
                let all_stand = standing.iter().all(|considered| *considered.borrow() == formation.ranks);
                let number = standing.len();
                if all_stand && number < REPLICAS_MAX && fleet.pool().count() >= formation.ranks {
                    info!(replica = number, "one more replica");
                    running.push(more(number, &mut standing));
                }
            }
            // By force: nothing is served until this process is started again.
            else => std::future::pending::<()>().await,
        }
    }
}
