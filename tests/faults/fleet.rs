//! A coordinator and three workers, each behind a relay of its own; who has ended is started again.

use crate::support::client::Client;
use crate::support::relay::Relay;
use crate::support::server::{Coordinator, Running, TOKEN, send_signal};
use std::path::Path;
use std::time::Duration;
use tokio::time::sleep;

/// Two make a group, one waits.
pub const WORKERS: usize = 3;

pub struct Fleet {
    coordinator: Coordinator,
    workers: Vec<(Running, Relay)>,
    starts: usize,
}

impl Fleet {
    pub async fn start(model: &Path) -> Fleet {
        // Never fewer than two: other sums have other last bits.
        let coordinator = Coordinator::start(model, 2, &["--regroup-grace", "60"]).await;
        let mut fleet = Fleet { coordinator, workers: Vec::new(), starts: 0 };
        for _ in 0..WORKERS {
            let worker = fleet.worker().await;
            fleet.workers.push(worker);
        }
        fleet.client().health(200).await;
        fleet
    }

    pub fn client(&self) -> Client {
        Client::new(&self.coordinator.url)
    }

    pub fn relay(&self, worker: usize) -> &Relay {
        &self.workers[worker].1
    }

    pub fn signal(&mut self, worker: usize, signal: &str) {
        let process = &mut self.workers[worker].0;
        if !process.has_ended() {
            send_signal(signal, process.id().into());
        }
    }

    pub async fn kill(&mut self, worker: usize) {
        self.workers[worker].0.kill().await;
    }

    /// Starts another in place of each that has ended, without waiting for it.
    pub fn restart_ended(&mut self) {
        for at in 0..self.workers.len() {
            if self.workers[at].0.has_ended() {
                self.starts += 1;
                let at_relay = self.workers[at].1.address;
                self.workers[at].0 = start(&format!("worker-{}", self.starts), at_relay);
            }
        }
    }

    /// Until whoever is about to end has ended, and all run.
    pub async fn mend(&mut self) {
        sleep(Duration::from_millis(20)).await;
        self.restart_ended();
    }

    async fn worker(&mut self) -> (Running, Relay) {
        let target = self.coordinator.workers_at.trim_start_matches("http://").parse().expect("an address");
        let relay = Relay::to(target).await;
        self.starts += 1;
        (start(&format!("worker-{}", self.starts), relay.address), relay)
    }

    /// For whoever looks for what went wrong: the last lines of all.
    pub fn said(&self) -> String {
        let last = |name: &str, said: String| {
            let lines: Vec<&str> = said.lines().collect();
            format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(40)..].join("\n"))
        };
        let workers = self.workers.iter().enumerate();
        let workers = workers.map(|(at, (worker, _))| last(&format!("worker {at}"), worker.said()));
        last("coordinator", self.coordinator.process.said()) + &workers.collect::<String>()
    }
}

fn start(name: &str, coordinator: std::net::SocketAddr) -> Running {
    let coordinator = format!("http://{coordinator}");
    let args = ["worker", "--coordinator", &coordinator, "--join-token", TOKEN, "--name", name];
    Running::start(&[&args[..], &["--threads", "1", "--collective-timeout", "10"]].concat())
}
