//! A coordinator and three workers, each behind a relay of its own; who has ended is started again.

use crate::support::client::Client;
use crate::support::relay::{Relay, Weather};
use crate::support::server::{Coordinator, EQUAL, PATIENCE, Running, TOKEN, free_port, send_signal};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Two make a group, one waits.
pub const WORKERS: usize = 3;

pub struct Fleet {
    coordinator: Coordinator,
    workers: Vec<Member>,
    starts: usize,
}

struct Member {
    process: Running,
    /// On its way to the coordinator.
    relay: Relay,
    /// Before its door for the other workers, and that door.
    peers: Relay,
    listen: SocketAddr,
}

impl Fleet {
    /// `links`: how the workers reach each other.
    pub async fn start(model: &Path, links: &str) -> Fleet {
        // Never fewer than two: other sums have other last bits.
        let more = ["--regroup-grace", "60", "--collective", links];
        let coordinator = Coordinator::start(model, 2, &more).await;
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
        &self.workers[worker].relay
    }

    /// On all links between workers.
    pub fn between_all(&self, weather: Weather) {
        self.workers.iter().for_each(|worker| worker.peers.set(weather));
    }

    pub fn signal(&mut self, worker: usize, signal: &str) {
        let process = &mut self.workers[worker].process;
        if !process.has_ended() {
            send_signal(signal, process.id().into());
        }
    }

    pub async fn kill(&mut self, worker: usize) {
        self.workers[worker].process.kill().await;
    }

    /// Starts another in place of each that has ended, without waiting for it.
    pub fn restart_ended(&mut self) {
        for worker in &mut self.workers {
            if worker.process.has_ended() {
                self.starts += 1;
                worker.process = start(self.starts, &worker.relay, &worker.peers, worker.listen);
            }
        }
    }

    /// Until whoever is about to end has ended, and all run.
    pub async fn mend(&mut self) {
        sleep(Duration::from_millis(20)).await;
        self.restart_ended();
    }

    /// Whoever was cut off, silenced or started again has joined: nobody is lost for good.
    pub async fn all_back(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.restart_ended();
            let metrics = self.client().text("/metrics").await;
            let states = metrics.lines().filter(|line| line.starts_with("flotilla_workers{"));
            let there: f64 = states.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
            if there == WORKERS as f64 {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{there} of {WORKERS} workers are there"));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn worker(&mut self) -> Member {
        let target = self.coordinator.workers_at.trim_start_matches("http://").parse().expect("an address");
        let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (relay, peers) = (Relay::to(target).await, Relay::to(listen).await);
        self.starts += 1;
        Member { process: start(self.starts, &relay, &peers, listen), relay, peers, listen }
    }

    /// For whoever looks for what went wrong: the last lines of all, but for those of requests, of which there are many.
    pub fn said(&mut self) -> String {
        let last = |name: &str, said: String| {
            let lines: Vec<&str> = said.lines().filter(|line| !line.contains("request_id=")).collect();
            format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(40)..].join("\n"))
        };
        let workers = self.workers.iter_mut().enumerate().map(|(at, worker)| {
            let state = if worker.process.has_ended() { "ended" } else { "runs" };
            last(&format!("worker {at}, which {state}"), worker.process.said())
        });
        workers.collect::<String>() + &last("coordinator", self.coordinator.process.said())
    }
}

fn start(number: usize, coordinator: &Relay, peers: &Relay, listen: SocketAddr) -> Running {
    let (coordinator, name) = (format!("http://{}", coordinator.address), format!("worker-{number}"));
    let (listen, advertise) = (listen.to_string(), peers.address.to_string());
    let args = ["worker", "--coordinator", &coordinator, "--join-token", TOKEN, "--name", &name];
    let doors = ["--collective-listen", &listen, "--advertise-host", &advertise];
    // With int8 every product of a row has the same bits in any batch. With bf16 it has not, in the last ones: in a
    // hundred thousand tokens some are chosen by them, and would be taken for lost.
    let exact = ["--dense", "int8", "--activations", "int8x2"];
    let limits = ["--threads", "1", "--collective-timeout", "3"];
    Running::start(&[&args[..], &doors, &limits, &exact, &EQUAL].concat())
}
