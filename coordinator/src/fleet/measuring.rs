//! What the links between waiting workers do, found out before a plan is made over them: one pair of workers for every
//! two hosts, and one for every host with several. As many pairs at once as have no worker in common.

use super::assign::random_key;
use super::known_links::{KnownLinks, ends, place};
use super::worker::Worker;
use flotilla_proto::measured_from;
use flotilla_proto::wire::{from_worker, to_worker};
use flotilla_shared::{Epoch, LinkChoice, LinkRate, LinkTest, Links, Rank, WireFormat};
use futures::future::join_all;
use std::collections::BTreeMap;
use std::time::Duration;
use tracing::{info, warn};

/// Workers give up sooner: 5 s to meet, as long for a sum, and 3 s of sums after it.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A link that could not be measured is tried again after this; after a loss, when requests wait, after that.
const RETRY: Duration = Duration::from_secs(60);
const RETRY_AFTER_LOSS: Duration = Duration::from_secs(600);
/// With more hosts each is measured with its neighbours only.
const HOSTS_PAIRED_MAX: usize = 16;

impl KnownLinks {
    /// Measures what is not known between `workers`, and gives back those that still are here. After a loss only links
    /// that failed long ago are tried.
    pub async fn learn(
        &self,
        epoch: Epoch,
        choice: LinkChoice,
        workers: Vec<Worker>,
        after_loss: bool,
    ) -> Vec<Worker> {
        let mut pairs = self.unknown(&workers, choice, after_loss);
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

    /// Places of two workers for each link that is to be tried.
    fn unknown(&self, workers: &[Worker], choice: LinkChoice, after_loss: bool) -> Vec<(usize, usize)> {
        let mut places: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, worker) in workers.iter().enumerate() {
            places.entry(place(&worker.hello, choice)).or_default().push(at);
        }
        let places: Vec<(&str, Vec<usize>)> = places.into_iter().collect();
        let known = self.lock();
        let retry = if after_loss { RETRY_AFTER_LOSS } else { RETRY };
        let is_new = |a: &str, b: &str| match known.get(&ends(a, b)) {
            None => !after_loss,
            Some(known) => known.rate.is_none() && known.at.elapsed() >= retry,
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
        let mut found = meet_again(epoch, choice, [&mut one, &mut other]).await;
        // Who dials may get through where the other does not, and in a group either may have to.
        if let Ok(first) = found.rate {
            let Found { rate, mut here } = meet_again(epoch, choice, [&mut other, &mut one]).await;
            here.reverse();
            found = Found { rate: rate.map(|second| slower(first, second)), here };
        }
        let (a_name, b_name) = (one.name(), other.name());
        match &found.rate {
            Ok(LinkRate { latency_s, bytes_per_s }) => {
                let (latency_us, bytes_per_second) = (1e6 * latency_s, bytes_per_s);
                info!(a = a_name, b = b_name, latency_us, bytes_per_second, "link");
            }
            Err(reason) => {
                warn!(a = a_name, b = b_name, reason, "two workers do not reach each other");
            }
        }
        // Of one that is gone in the middle nothing is known.
        if found.here == [true; 2] {
            self.know(ends(place(&one.hello, choice), place(&other.hello, choice)), found.rate.ok());
        }
        [(a, found.here[0].then_some(one)), (b, found.here[1].then_some(other))]
    }
}

/// What two workers found, or why they did not, and who of them still is here.
struct Found {
    rate: Result<LinkRate, String>,
    here: [bool; 2],
}

/// As `meet`, once more if they did not: a worker that was just busy is not cut off.
async fn meet_again(epoch: Epoch, choice: LinkChoice, [one, other]: [&mut Worker; 2]) -> Found {
    let found = meet(epoch, choice, [&mut *one, &mut *other]).await;
    match found {
        Found { rate: Err(_), here: [true, true] } => meet(epoch, choice, [one, other]).await,
        _ => found,
    }
}

/// The second of them dials.
async fn meet(epoch: Epoch, choice: LinkChoice, [one, other]: [&mut Worker; 2]) -> Found {
    let peers = [&*one, &*other].map(|worker| worker.hello.collective_address.clone());
    let links =
        Links::between([place(&one.hello, choice), place(&other.hello, choice)], choice, WireFormat::F32);
    let key = random_key();
    for (rank, worker) in [(0, &*one), (1, &*other)] {
        let test = LinkTest { epoch, rank: Rank(rank), peers: peers.clone(), links: links.clone(), key };
        worker.tell(to_worker::Message::Measure((&test).into()));
    }
    let (first, second) = tokio::join!(answer(epoch, one), answer(epoch, other));
    let here = [&first, &second].map(|answer| !matches!(answer, Answer::Gone(_)));
    let rate = match (first, second) {
        (Answer::Rate(first), Answer::Rate(second)) => Ok(slower(first, second)),
        // Who is gone is the reason of both.
        (Answer::Gone(reason), _) | (_, Answer::Gone(reason)) => Err(reason),
        (Answer::NoRate(reason), _) | (_, Answer::NoRate(reason)) => Err(reason),
    };
    Found { rate, here }
}

fn slower(a: LinkRate, b: LinkRate) -> LinkRate {
    LinkRate { latency_s: a.latency_s.max(b.latency_s), bytes_per_s: a.bytes_per_s.min(b.bytes_per_s) }
}

enum Answer {
    Rate(LinkRate),
    /// The worker is here, and has no rate.
    NoRate(String),
    Gone(String),
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
