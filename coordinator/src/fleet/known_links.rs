//! What is known of the links between workers: found out once, and kept for as long as the coordinator lives.

use flotilla_planner::Link;
use flotilla_proto::Hello;
use flotilla_shared::{LinkChoice, LinkRate};
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// More are forgotten: workers come and go.
const KNOWN_MAX: usize = 4096;
/// What each peer takes of a wait, of the whole latency that is measured between two.
const PEER_WITHIN_S: f64 = 0.2e-6;
const PEER_BETWEEN_S: f64 = 3e-6;
/// Links of which one takes less than so many times as long as the other are taken for equal: no two are measured alike.
const ALIKE_WITHIN: f64 = 1.5;

/// What is known, by the places of both ends; nothing of two that did not reach each other. Cheap to clone.
#[derive(Clone, Default)]
pub struct KnownLinks(Arc<Mutex<BTreeMap<Ends, Known>>>);

/// Found, or tried in vain, at that time.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub rate: Option<LinkRate>,
    pub at: Instant,
}

pub type Ends = (String, String);

/// As the planner takes links.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// The slowest of each kind, which those that are not known are taken for.
    pub within: Option<Link>,
    pub between: Option<Link>,
    /// Of two places each; none where they do not reach each other.
    pub ways: Vec<(Ends, Option<Link>)>,
}

/// Where a worker is, as far as links go: its host, or itself where memory is not to be shared.
pub fn place(worker: &Hello, choice: LinkChoice) -> &str {
    match choice {
        LinkChoice::Tcp => &worker.collective_address,
        LinkChoice::Auto | LinkChoice::Shm => &worker.host,
    }
}

impl KnownLinks {
    /// What is known between `workers`.
    pub fn between(&self, workers: &[impl Borrow<Hello>], choice: LinkChoice) -> Measured {
        let places: BTreeSet<&str> = workers.iter().map(|worker| place(worker.borrow(), choice)).collect();
        let known = self.lock();
        let theirs =
            known.iter().filter(|((a, b), _)| places.contains(a.as_str()) && places.contains(b.as_str()));
        let (within, between): (Vec<_>, Vec<_>) =
            theirs.map(|(ends, known)| (ends.clone(), known.rate)).partition(|((a, b), _)| a == b);
        let (within, mut ways) = as_planned(within, PEER_WITHIN_S);
        let (between, others) = as_planned(between, PEER_BETWEEN_S);
        ways.extend(others);
        Measured { within, between, ways }
    }

    pub(super) fn know(&self, ends: Ends, rate: Option<LinkRate>) {
        let mut known = self.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(ends, Known { rate, at: Instant::now() });
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<Ends, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn ends(a: &str, b: &str) -> Ends {
    if a <= b { (a.to_owned(), b.to_owned()) } else { (b.to_owned(), a.to_owned()) }
}

/// Links of one kind: the slowest, and all, where those that are about alike are alike.
fn as_planned(
    rates: Vec<(Ends, Option<LinkRate>)>,
    peer_s: f64,
) -> (Option<Link>, Vec<(Ends, Option<Link>)>) {
    let found = || rates.iter().filter_map(|(_, rate)| *rate);
    let latencies = leveled(found().map(|rate| (rate.latency_s - peer_s).max(0.0)).collect());
    let bytes_s = leveled(found().map(|rate| 1.0 / rate.bytes_per_s).collect());
    let link =
        |latency_s, byte_s: f64| Link { name: "measured", latency_s, peer_s, bytes_per_s: 1.0 / byte_s };
    let slowest = |times: &[f64]| times.iter().copied().reduce(f64::max);
    let all = slowest(&latencies).zip(slowest(&bytes_s)).map(|(latency_s, byte_s)| link(latency_s, byte_s));
    let mut links = latencies.into_iter().zip(bytes_s).map(|(latency_s, byte_s)| link(latency_s, byte_s));
    let ways = rates.iter().map(|(ends, rate)| (ends.clone(), rate.and_then(|_| links.next())));
    (all, ways.collect())
}

/// Those that take less, but not much less, than one take as long.
fn leveled(mut times: Vec<f64>) -> Vec<f64> {
    let mut order: Vec<usize> = (0..times.len()).collect();
    order.sort_by(|&a, &b| times[b].total_cmp(&times[a]));
    let mut longest = f64::INFINITY;
    for at in order {
        if times[at] * ALIKE_WITHIN < longest {
            longest = times[at];
        }
        times[at] = longest;
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_differ_little_are_alike_and_as_slow_as_the_slowest() {
        let ends = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let rate = |us: f64, bytes_per_s| Some(LinkRate { latency_s: 1e-6 * us, bytes_per_s });
        let rates = vec![
            (ends("a", "b"), rate(33.0, 1e9)),
            (ends("a", "c"), None),
            (ends("b", "c"), rate(43.0, 1.25e9)),
            (ends("c", "d"), rate(103.0, 1e8)),
        ];
        let (slowest, ways) = as_planned(rates, 3e-6);
        let found: Vec<Option<(u64, u64)>> = ways
            .iter()
            .map(|(_, link)| {
                link.map(|link| ((1e6 * link.latency_s).round() as u64, link.bytes_per_s.round() as u64))
            })
            .collect();
        assert_eq!(
            found,
            [Some((40, 1_000_000_000)), None, Some((40, 1_000_000_000)), Some((100, 100_000_000))]
        );
        assert_eq!(slowest, ways[3].1);
        assert_eq!(as_planned(vec![(ends("a", "b"), None)], 0.0).0, None);
    }
}
