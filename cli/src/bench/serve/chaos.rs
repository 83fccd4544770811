//! Does the faults of a schedule to workers, by seed, while the load goes on.

use super::workers::{Supervisor, Worker, connections, descriptors};
use anyhow::{Context, Result, bail};
use flotilla_load::chance::Chance;
use flotilla_load::chaos::{Fault, Happened, Schedule};
use flotilla_load::client::Clock;
use flotilla_load::span;
use rustix::net::{Shutdown, shutdown};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until};

/// How long a worker is awaited that is just started again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Faults that are done until this ends.
pub struct Faults {
    told: Arc<Mutex<Told>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Told {
    happened: Vec<Happened>,
    failures: Vec<String>,
    /// Stopped just now; whoever ends the run lets them go on.
    stopped: Vec<i32>,
}

impl Faults {
    pub fn start(schedule: Schedule, supervisor: Supervisor, clock: Clock, seed: u64) -> Faults {
        let told = Arc::new(Mutex::new(Told::default()));
        let doing = Doing { supervisor, clock, told: told.clone() };
        let task = tokio::spawn(doing.all(schedule, Chance::of(seed, u64::MAX)));
        Faults { told, task }
    }

    /// What was done, and what could not be. No worker is left stopped.
    pub async fn end(self) -> (Vec<Happened>, Vec<String>) {
        self.task.abort();
        let told = std::mem::take(&mut *self.told.lock().expect("no holder panics"));
        told.stopped.iter().for_each(|id| drop(signal(*id, Signal::CONT)));
        (told.happened, told.failures)
    }
}

struct Doing {
    supervisor: Supervisor,
    clock: Clock,
    told: Arc<Mutex<Told>>,
}

impl Doing {
    async fn all(self, schedule: Schedule, mut chance: Chance) {
        for planned in schedule.0 {
            sleep_until(self.clock.at(span::us(planned.at)).into()).await;
            let Some(worker) = self.victim(&mut chance).await else {
                self.failed(format!("{} was left out: no worker was there", planned.fault));
                continue;
            };
            let at_us = self.clock.us();
            match self.strike(planned.fault, &worker) {
                Ok(()) => {
                    self.happened(Happened { at_us, fault: planned.fault.to_string(), worker: worker.name })
                }
                Err(error) => self.failed(format!("{} of {} failed: {error:#}", planned.fault, worker.name)),
            }
        }
    }

    async fn victim(&self, chance: &mut Chance) -> Option<Worker> {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let mut workers = self.supervisor.workers();
            if !workers.is_empty() {
                return Some(workers.swap_remove(chance.below(workers.len())));
            }
            if tokio::time::Instant::now() > end {
                return None;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn strike(&self, fault: Fault, worker: &Worker) -> Result<()> {
        match fault {
            Fault::Kill => signal(worker.id, Signal::KILL),
            Fault::Stop(long) => self.stop(worker.id, long),
            Fault::Cut => cut(worker.id),
        }
    }

    fn stop(&self, id: i32, long: Duration) -> Result<()> {
        signal(id, Signal::STOP)?;
        self.told.lock().expect("no holder panics").stopped.push(id);
        let told = self.told.clone();
        tokio::spawn(async move {
            sleep(long).await;
            let mut told = told.lock().expect("no holder panics");
            if told.stopped.contains(&id) {
                told.stopped.retain(|stopped| *stopped != id);
                // It may have been ended meanwhile.
                let _ = signal(id, Signal::CONT);
            }
        });
        Ok(())
    }

    fn happened(&self, happened: Happened) {
        self.told.lock().expect("no holder panics").happened.push(happened);
    }

    fn failed(&self, words: String) {
        self.told.lock().expect("no holder panics").failures.push(words);
    }
}

fn signal(id: i32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(id).context("no process has this id")?;
    kill_process(pid, signal).with_context(|| format!("cannot send {signal:?} to process {id}"))
}

/// Shuts its TCP connections down, to the coordinator and to other workers, as a broken network would show them; by
/// descriptors that the kernel copies for who may trace the process.
fn cut(id: i32) -> Result<()> {
    const HINT: &str =
        "hint: it needs Linux 5.6 and the right to trace the worker: root, or kernel.yama.ptrace_scope = 0";
    let pid = Pid::from_raw(id).context("no process has this id")?;
    let process =
        pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("cannot open process {id}"))?;
    let connections = connections();
    let mut count = 0;
    for (number, _) in descriptors(id).filter(|(_, link)| connections.contains(link)) {
        let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty());
        let socket =
            socket.with_context(|| format!("cannot reach the connections of process {id}\n{HINT}"))?;
        // One that is closed just now is as good as cut.
        count += usize::from(shutdown(&socket, Shutdown::Both).is_ok());
    }
    if count == 0 {
        bail!("process {id} has no TCP connection to cut");
    }
    Ok(())
}
