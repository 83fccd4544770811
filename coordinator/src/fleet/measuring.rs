//! What the links between waiting workers do, found out before a plan is made over them: one pair of workers for every
//! two hosts, and one for every host with several. As many pairs at once as have no worker in common.

use super::form::random_key;
use super::worker::Worker;
use flotilla_planner::Link;
use flotilla_proto::measured_from;
use flotilla_proto::wire::{from_worker, to_worker};
use flotilla_shared::{Epoch, LinkChoice, LinkRate, LinkTest, Links, Rank, WireFormat};
use futures::future::join_all;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Workers give up sooner: 5 s to meet, as long for a sum, and 3 s of sums after it.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A link that could not be measured is tried again after this.
const RETRY: Duration = Duration::from_secs(60);
/// More are forgotten: workers come and go.
const KNOWN_MAX: usize = 4096;
/// With more hosts each is measured with its neighbours only.
const HOSTS_PAIRED_MAX: usize = 16;
/// What each peer takes of a wait, of the whole latency that is measured between two.
const PEER_WITHIN_S: f64 = 0.2e-6;
const PEER_BETWEEN_S: f64 = 3e-6;

/// What is known, by the places of both ends; nothing of two that did not reach each other. Cheap to clone.
#[derive(Clone, Default)]
pub struct KnownLinks(Arc<Mutex<BTreeMap<Ends, Known>>>);

/// Found, or tried in vain, at that time.
#[derive(Clone, Copy)]
struct Known {
    rate: Option<LinkRate>,
    at: Instant,
}

type Ends = (String, String);

/// As the planner takes links: the slowest counts, since sums wait for it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    pub within: Option<Link>,
    pub between: Option<Link>,
}

/// Where a worker is, as far as links go: its host, or itself where memory is not to be shared.
pub fn place(worker: &Worker, choice: LinkChoice) -> &str {
    match choice {
        LinkChoice::Tcp => &worker.hello.collective_address,
        LinkChoice::Auto | LinkChoice::Shm => &worker.hello.host,
    }
}

impl KnownLinks {
    /// Measures what is not known between `workers`, and gives back those that still are here.
    pub async fn learn(&self, epoch: Epoch, choice: LinkChoice, workers: Vec<Worker>) -> Vec<Worker> {
        let mut pairs = self.unknown(&workers, choice);
        let mut workers: Vec<Option<Worker>> = workers.into_iter().map(Some).collect();
        while !pairs.is_empty() {
            let (mut tests, mut later) = (Vec::new(), Vec::new());
            for (a, b) in pairs {
                match (workers[a].take(), workers[b].take()) {
                    (Some(one), Some(other)) => tests.push(self.test(epoch, choice, (a, one), (b, other))),
                    (one, other) => {
                        (workers[a], workers[b]) = (one, other);
                        later.push((a, b));
                    }
                }
            }
            // Nobody is left of a pair whose worker is gone.
            if tests.is_empty() {
                break;
            }
            for (at, worker) in join_all(tests).await.into_iter().flatten() {
                workers[at] = worker;
            }
            pairs = later;
        }
        workers.into_iter().flatten().collect()
    }

    /// Of links that are known between `workers`.
    pub fn slowest(&self, workers: &[Worker], choice: LinkChoice) -> Measured {
        let places: Vec<&str> = workers.iter().map(|worker| place(worker, choice)).collect();
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rates =
            known.iter().filter(|((a, b), _)| places.contains(&a.as_str()) && places.contains(&b.as_str()));
        let (within, between): (Vec<_>, Vec<_>) = rates.partition(|((a, b), _)| a == b);
        let slowest = |rates: Vec<(&Ends, &Known)>, peer_s: f64| {
            let rates: Vec<LinkRate> = rates.into_iter().filter_map(|(_, known)| known.rate).collect();
            let latency_s = rates.iter().map(|rate| rate.latency_s).reduce(f64::max)?;
            let bytes_per_s = rates.iter().map(|rate| rate.bytes_per_s).reduce(f64::min)?;
            Some(Link { name: "measured", latency_s: (latency_s - peer_s).max(0.0), peer_s, bytes_per_s })
        };
        Measured { within: slowest(within, PEER_WITHIN_S), between: slowest(between, PEER_BETWEEN_S) }
    }

    /// Places of two workers for each link that was not tried.
    fn unknown(&self, workers: &[Worker], choice: LinkChoice) -> Vec<(usize, usize)> {
        let mut places: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, worker) in workers.iter().enumerate() {
            places.entry(place(worker, choice)).or_default().push(at);
        }
        let places: Vec<(&str, Vec<usize>)> = places.into_iter().collect();
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = |a: &str, b: &str| {
            known.get(&ends(a, b)).is_none_or(|known| known.rate.is_none() && known.at.elapsed() >= RETRY)
        };
        let within = places.iter().filter(|(place, all)| all.len() > 1 && is_new(place, place));
        let within = within.map(|(_, all)| (all[0], all[1]));
        let between = host_pairs(places.len()).into_iter().map(|(a, b)| (&places[a], &places[b]));
        let between = between.filter(|(a, b)| is_new(a.0, b.0)).map(|(a, b)| (a.1[0], b.1[0]));
        within.chain(between).collect()
    }

    /// Both workers, if they are here afterwards.
    async fn test(
        &self,
        epoch: Epoch,
        choice: LinkChoice,
        (a, mut one): (usize, Worker),
        (b, mut other): (usize, Worker),
    ) -> [(usize, Option<Worker>); 2] {
        let (here, there) = (place(&one, choice).to_owned(), place(&other, choice).to_owned());
        let peers = [&one, &other].map(|worker| worker.hello.collective_address.clone());
        let links = Links::between([here.as_str(), &there], choice, WireFormat::F32);
        let key = random_key();
        for (rank, worker) in [(0, &one), (1, &other)] {
            let test = LinkTest { epoch, rank: Rank(rank), peers: peers.clone(), links: links.clone(), key };
            worker.tell(to_worker::Message::Measure((&test).into()));
        }
        let (first, second) = tokio::join!(answer(epoch, &mut one), answer(epoch, &mut other));
        let (ends, names) = (ends(&here, &there), (one.name().to_owned(), other.name().to_owned()));
        let rate = match (&first, &second) {
            (Answer::Rate(first), Answer::Rate(second)) => {
                let latency_s = first.latency_s.max(second.latency_s);
                let bytes_per_s = first.bytes_per_s.min(second.bytes_per_s);
                info!(
                    a = names.0,
                    b = names.1,
                    latency_us = 1e6 * latency_s,
                    bytes_per_second = bytes_per_s,
                    "link"
                );
                Some(LinkRate { latency_s, bytes_per_s })
            }
            (first, second) => {
                let reason = first.reason().or(second.reason()).unwrap_or_default();
                warn!(a = names.0, b = names.1, reason, "the link between two workers cannot be measured");
                None
            }
        };
        // Of one that is gone in the middle nothing is known.
        if !matches!((&first, &second), (Answer::Gone(_), _) | (_, Answer::Gone(_))) {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= KNOWN_MAX {
                known.clear();
            }
            known.insert(ends, Known { rate, at: Instant::now() });
        }
        let here =
            |worker, answer: &Answer| if matches!(answer, Answer::Gone(_)) { None } else { Some(worker) };
        [(a, here(one, &first)), (b, here(other, &second))]
    }
}

enum Answer {
    Rate(LinkRate),
    /// The worker is here, and has no rate.
    NoRate(String),
    Gone(String),
}

impl Answer {
    fn reason(&self) -> Option<&str> {
        match self {
            Answer::Rate(_) => None,
            Answer::NoRate(reason) | Answer::Gone(reason) => Some(reason),
        }
    }
}

async fn answer(epoch: Epoch, worker: &mut Worker) -> Answer {
    let Ok(said) = tokio::time::timeout(TIMEOUT, worker.says.recv()).await else {
        return Answer::Gone(format!("it says nothing for {} s", TIMEOUT.as_secs()));
    };
    match said {
        Some(Ok(from_worker::Message::Measured(measured))) if measured.epoch == epoch.0 => {
            measured_from(measured).map_or_else(Answer::NoRate, Answer::Rate)
        }
        Some(Ok(_)) => Answer::Gone("it says something else than Measured".into()),
        Some(Err(reason)) => Answer::Gone(reason),
        None => Answer::Gone("it is gone".into()),
    }
}

fn ends(a: &str, b: &str) -> Ends {
    if a <= b { (a.to_owned(), b.to_owned()) } else { (b.to_owned(), a.to_owned()) }
}

/// Every two of so many hosts; of many, those next to each other in a ring.
fn host_pairs(hosts: usize) -> Vec<(usize, usize)> {
    if hosts > HOSTS_PAIRED_MAX {
        return (0..hosts).map(|host| (host, (host + 1) % hosts)).collect();
    }
    (0..hosts).flat_map(|a| (a + 1..hosts).map(move |b| (a, b))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_hosts_are_all_paired_and_many_in_a_ring() {
        assert_eq!(host_pairs(1), []);
        assert_eq!(host_pairs(3), [(0, 1), (0, 2), (1, 2)]);
        assert_eq!(host_pairs(HOSTS_PAIRED_MAX).len(), HOSTS_PAIRED_MAX * (HOSTS_PAIRED_MAX - 1) / 2);
        assert_eq!(host_pairs(40).len(), 40);
    }
}
