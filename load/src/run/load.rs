//! Open and closed loops.

use super::conversation::Scene;
use super::heartbeat::Heartbeat;
use super::{Live, Load, Plan, Run, bell};
use crate::client::Clock;
use crate::prompt::Script;
use crate::record::Record;
use crate::schedule::{Arrivals, Due};
use crate::span;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Runs it to its end, or until `stop` becomes true. `clock` has just been started.
pub async fn run(plan: Plan, clock: Clock, live: Arc<Live>, stop: watch::Receiver<bool>) -> Run {
    let heart = Heartbeat::start();
    let load = plan.load.clone();
    let stage = Stage { plan, clock, live, stop };
    let mut records = match load {
        Load::Open(arrivals) => stage.open(&arrivals).await,
        Load::Closed { clients } => stage.closed(clients).await,
    };
    records.sort_by_key(|record| (record.due_us, record.conversation, record.turn));
    let elapsed_us = records.iter().map(|record| record.ended_us).max().unwrap_or_else(|| clock.us());
    let whole = stage.plan.asking.target.whole;
    Run { records, elapsed_us, whole, late_us: heart.end(), stopped: *stage.stop.borrow() }
}

#[derive(Clone)]
struct Stage {
    plan: Plan,
    clock: Clock,
    live: Arc<Live>,
    stop: watch::Receiver<bool>,
}

impl Stage {
    fn scene(&self) -> Scene<'_> {
        Scene { asking: &self.plan.asking, clock: self.clock, live: &self.live, stop: self.stop.clone() }
    }

    fn script(&self, number: u64, due: &Due) -> Script {
        self.plan.asking.prompts.script(self.plan.seed, self.plan.from, number, due)
    }

    async fn open(&self, arrivals: &Arrivals) -> Vec<Record> {
        let mut conversations = JoinSet::new();
        let dues = || arrivals.dues(self.plan.seed, &self.plan.limit);
        let mut bell = bell::ring(dues().map(|due| due.at_us), self.clock);
        for (number, due) in (0..).zip(dues()) {
            // Made before it is due, so that the making does not make it late.
            let script = self.script(number, &due);
            if !self.scene().unless_stopped(bell.recv()).await {
                break;
            }
            let stage = self.clone();
            conversations.spawn(async move { stage.scene().converse(number, script, due.at_us).await });
        }
        conversations.join_all().await.into_iter().flatten().collect()
    }

    async fn closed(&self, clients: usize) -> Vec<Record> {
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            let (stage, next) = (self.clone(), next.clone());
            tasks.spawn(async move { stage.client(&next).await });
        }
        tasks.join_all().await.into_iter().flatten().collect()
    }

    /// One conversation after the other. A request is due when the answer before it has come, and was thought about.
    async fn client(&self, next: &AtomicU64) -> Vec<Record> {
        let limit = &self.plan.limit;
        let end_us = limit.duration.map_or(u64::MAX, span::us);
        let (mut due_us, mut records) = (0, Vec::new());
        while due_us < end_us && !*self.stop.borrow() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if limit.requests.is_some_and(|requests| number >= requests as u64) {
                break;
            }
            let script = self.script(number, &Due::default());
            // Making it took time, which is not the server's.
            due_us = due_us.max(self.clock.us());
            records.extend(self.scene().converse(number, script, due_us).await);
            let ended_us = records.last().map_or(self.clock.us(), |record| record.ended_us);
            let failed = records.last().is_some_and(|record| record.failure().is_some());
            due_us = ended_us + span::us(self.plan.asking.think) + if failed { FAILURE_PAUSE_US } else { 0 };
        }
        records
    }
}

/// A server that refuses at once is not asked as fast as a loop can turn.
const FAILURE_PAUSE_US: u64 = 50_000;
