//! Whether this process keeps up: a task that sleeps for 10 ms again and again, and sees how much longer it was. A client
//! that is short of processor finds its streams late, and would blame the server.

use crate::stats::histogram;
use hdrhistogram::Histogram;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

const BEAT: Duration = Duration::from_millis(10);
/// Timers go by milliseconds, rounded up.
const TIMER_US: u64 = 1000;

pub struct Heartbeat {
    late_us: Arc<Mutex<Histogram<u64>>>,
    task: JoinHandle<()>,
}

impl Heartbeat {
    pub fn start() -> Heartbeat {
        let late_us = Arc::new(Mutex::new(histogram(std::iter::empty())));
        let task = tokio::spawn(beat(late_us.clone()));
        Heartbeat { late_us, task }
    }

    pub fn end(self) -> Histogram<u64> {
        self.task.abort();
        self.late_us.lock().expect("no holder panics").clone()
    }
}

async fn beat(late_us: Arc<Mutex<Histogram<u64>>>) {
    loop {
        let due = Instant::now() + BEAT;
        sleep_until(due).await;
        let late = (due.elapsed().as_micros() as u64).saturating_sub(TIMER_US);
        late_us.lock().expect("no holder panics").record(late).expect("it has room for every number");
    }
}
