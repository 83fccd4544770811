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
    /// Stopped just now, once for each stop that is not over; whoever ends the run lets them go on.
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
        // It may be stopping a worker just now.
        let _ = self.task.await;
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
                Err(error) => self.failed(format!(
                    "{} of {} failed: {}",
                    planned.fault,
                    worker.name,
                    crate::describe(&error)
                )),
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
            Fault::Stop(long) => stop(&self.told, worker.id, long),
            Fault::Cut => cut(worker.id),
        }
    }

    fn happened(&self, happened: Happened) {
        self.told.lock().expect("no holder panics").happened.push(happened);
    }

    fn failed(&self, words: String) {
        self.told.lock().expect("no holder panics").failures.push(words);
    }
}

/// It is noted before it is done: whoever ends the run in between lets the worker go on too.
fn stop(told: &Arc<Mutex<Told>>, id: i32, long: Duration) -> Result<()> {
    told.lock().expect("no holder panics").stopped.push(id);
    signal(id, Signal::STOP)?;
    let told = told.clone();
    tokio::spawn(async move {
        sleep(long).await;
        let mut told = told.lock().expect("no holder panics");
        let Some(at) = told.stopped.iter().position(|stopped| *stopped == id) else { return };
        told.stopped.swap_remove(at);
        if !told.stopped.contains(&id) {
            // It may have been ended meanwhile.
            let _ = signal(id, Signal::CONT);
        }
    });
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// Ended with the test, however that ends.
    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// As /proc has it: S sleeps, T is stopped.
    fn state(id: i32) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).expect("the process is there");
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).expect("a state follows the name")
    }

    async fn until(id: i32, is: impl Fn(char) -> bool) -> bool {
        for _ in 0..500 {
            if is(state(id)) {
                return true;
            }
            sleep(Duration::from_millis(10)).await;
        }
        false
    }

    #[tokio::test]
    async fn who_is_stopped_goes_on_when_the_faults_end() {
        let sleeper = Sleeper(Command::new("sleep").arg("60").spawn().unwrap());
        let id = sleeper.0.id() as i32;
        let told = Arc::new(Mutex::new(Told::default()));
        stop(&told, id, Duration::from_secs(60)).unwrap();
        assert!(until(id, |state| state == 'T').await);
        Faults { told, task: tokio::spawn(std::future::pending()) }.end().await;
        assert!(until(id, |state| state != 'T').await);
    }

    /// The shorter of two ends first.
    #[tokio::test]
    async fn who_is_stopped_twice_goes_on_after_the_longer() {
        let sleeper = Sleeper(Command::new("sleep").arg("60").spawn().unwrap());
        let id = sleeper.0.id() as i32;
        let told = Arc::new(Mutex::new(Told::default()));
        for long in [Duration::from_millis(50), Duration::from_secs(60)] {
            stop(&told, id, long).unwrap();
        }
        assert!(until(id, |state| state == 'T').await);
        while told.lock().unwrap().stopped.len() == 2 {
            sleep(Duration::from_millis(5)).await;
        }
        // Long enough for a signal to be heard.
        sleep(Duration::from_millis(100)).await;
        assert_eq!(state(id), 'T');
        Faults { told, task: tokio::spawn(std::future::pending()) }.end().await;
        assert!(until(id, |state| state != 'T').await);
    }

    /// The task is ended while it stops a worker: what it has begun, it ends.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_is_stopped_while_the_faults_end_goes_on_too() {
        let sleeper = Sleeper(Command::new("sleep").arg("60").spawn().unwrap());
        let id = sleeper.0.id() as i32;
        let told = Arc::new(Mutex::new(Told::default()));
        let (begun, begins) = tokio::sync::oneshot::channel();
        let late = told.clone();
        let task = tokio::spawn(async move {
            let _ = begun.send(());
            std::thread::sleep(Duration::from_millis(300));
            stop(&late, id, Duration::from_secs(60)).unwrap();
        });
        begins.await.unwrap();
        Faults { told, task }.end().await;
        // Long enough for a stop that nobody awaited.
        sleep(Duration::from_millis(600)).await;
        assert!(until(id, |state| state != 'T').await);
    }
}
