//! What ranks give each other: sums within a stage, and x from one stage to the next.

use crate::fleet::Fleet;
use crate::link::Link;

/// As `engine/src/collective/processes/sums.rs`: within a host up to 64 KiB go whole to every peer; between hosts, over
/// the number of ranks.
const WHOLE_WITHIN_MAX: usize = 16 << 10;
const WHOLE_BETWEEN_MAX: usize = 64 << 10;

/// How many ranks of a stage are in each host that has some.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spread(Vec<(u16, usize)>);

impl Spread {
    /// `hosts`: of each rank.
    pub fn of(hosts: impl IntoIterator<Item = u16>) -> Spread {
        let mut counts: Vec<(u16, usize)> = Vec::new();
        for host in hosts {
            match counts.binary_search_by_key(&host, |(host, _)| *host) {
                Ok(at) => counts[at].1 += 1,
                Err(at) => counts.insert(at, (host, 1)),
            }
        }
        Spread(counts)
    }

    fn has(&self, host: u16) -> bool {
        self.0.binary_search_by_key(&host, |(host, _)| *host).is_ok()
    }

    fn counts(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|(_, count)| *count)
    }
}

/// A sum of `values` f32 over the ranks of a stage.
///
/// Whole: one round, in which each rank gives its n bytes to the R - 1 others. By pieces: two rounds of n (R - 1) / R bytes
/// a rank. Within a host each device has a way of its own; the way between hosts is shared by a host's ranks, so of r of R
/// ranks r (R - r) vectors or r (R - r) / R leave it.
pub fn all_reduce_s(fleet: &Fleet, ranks: &Spread, values: usize) -> f64 {
    let size: usize = ranks.counts().sum();
    if size < 2 {
        return 0.0;
    }
    let alone = ranks.0.len() == 1;
    let whole = values <= if alone { WHOLE_WITHIN_MAX } else { WHOLE_BETWEEN_MAX / size };
    let bytes = 4.0 * values as f64;
    let (rounds, each) = if whole { (1.0, bytes) } else { (2.0, bytes / size as f64) };
    let slowest =
        ranks.0.iter().map(|&own| within_s(fleet, own, each).max(between_s(fleet, ranks, own, each)));
    rounds * slowest.fold(0.0, f64::max)
}

/// One round within a host.
fn within_s(fleet: &Fleet, (host, own): (u16, usize), each: f64) -> f64 {
    if own < 2 { 0.0 } else { round_s(fleet.link(host, host), own - 1, (own - 1) as f64 * each) }
}

/// One round from a host to the others: its own way is as fast as the fastest that it has, and each peer's may be slower.
fn between_s(fleet: &Fleet, ranks: &Spread, (host, own): (u16, usize), each: f64) -> f64 {
    let size: usize = ranks.counts().sum();
    if fleet.ways.is_empty() {
        let link = (own < size).then_some(fleet.between);
        return link.map_or(0.0, |link| link.round_s(size - 1, (own * (size - own)) as f64 * each));
    }
    let mut together: Option<Link> = None;
    let (mut bytes, mut slowest_s) = (0.0, 0.0f64);
    for &(other, theirs) in ranks.0.iter().filter(|(other, _)| *other != host) {
        let Some(link) = fleet.link(host, other) else { return f64::INFINITY };
        let given = (own * theirs) as f64 * each;
        bytes += given;
        slowest_s = slowest_s.max(given / link.bytes_per_s);
        together = Some(together.map_or(link, |known| Link {
            latency_s: known.latency_s.max(link.latency_s),
            peer_s: known.peer_s.max(link.peer_s),
            bytes_per_s: known.bytes_per_s.max(link.bytes_per_s),
            ..known
        }));
    }
    together.map_or(0.0, |link| link.round_s(size - 1, bytes.max(slowest_s * link.bytes_per_s)))
}

/// There is no end to it where there is no link.
fn round_s(link: Option<Link>, peers: usize, bytes: f64) -> f64 {
    link.map_or(f64::INFINITY, |link| link.round_s(peers, bytes))
}

/// Every rank's best tokens to every rank: 8 bytes a row.
pub fn gather_s(fleet: &Fleet, ranks: &Spread, rows: usize) -> f64 {
    all_reduce_s(fleet, ranks, 2 * rows)
}

/// x: f32 [T, H] from a stage to the next, a copy to each of its ranks. Where every host of the next has a rank of the
/// stage before, nothing leaves a host; otherwise it comes by the slowest link that it may come by.
pub fn hand_over_s(fleet: &Fleet, from: &Spread, to: &Spread, values: usize) -> f64 {
    let bytes = 4.0 * values as f64;
    let far = to.0.iter().filter(|(host, _)| !from.has(*host));
    let far = far.flat_map(|&(host, copies)| {
        let links = from.0.iter().map(move |&(giver, _)| fleet.link(giver, host));
        links.map(move |link| round_s(link, 1, copies as f64 * bytes))
    });
    let near = || to.0.iter().map(|&(host, _)| round_s(fleet.link(host, host), 1, bytes)).fold(0.0, f64::max);
    far.reduce(f64::max).unwrap_or_else(near)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Costs;

    fn fleet() -> Fleet {
        let (within, between) = (Link::preset("shm"), Link::preset("10gbe"));
        Fleet {
            devices: vec![],
            hosts: vec![],
            within,
            between,
            ways: Default::default(),
            costs: Costs::default(),
        }
    }

    /// Two ranks by memory, as measured on 2026-11-28 (docs/performance.md, "Sums over processes").
    #[test]
    fn memory_takes_about_what_was_measured() {
        let two = Spread::of([0, 0]);
        for (values, measured_us) in [(1440, 2.0), (2880, 3.5), (262_144, 220.0), (1_474_560, 1330.0)] {
            let us = 1e6 * all_reduce_s(&fleet(), &two, values);
            assert!((0.85..1.2).contains(&(us / measured_us)), "{values}: {us} µs, measured {measured_us}");
        }
    }

    #[test]
    fn long_vectors_go_in_pieces() {
        let fleet = fleet();
        assert_eq!(all_reduce_s(&fleet, &Spread::of([0]), 1 << 20), 0.0);
        let ranks = Spread::of([0, 1, 0, 1]);
        let start = fleet.between.round_s(3, 0.0);
        // Whole: each host of two ranks sends 2 · 2 vectors.
        let whole = (all_reduce_s(&fleet, &ranks, 1024) - start) * fleet.between.bytes_per_s;
        assert!((whole - 4.0 * 4096.0).abs() < 1.0, "{whole}");
        let pieces = (all_reduce_s(&fleet, &ranks, 1 << 20) - 2.0 * start) * fleet.between.bytes_per_s;
        assert!((pieces - 2.0 * 4.0 * f64::from(1 << 20)).abs() < 16.0, "{pieces}");
    }

    #[test]
    fn each_pair_of_hosts_has_its_own_way() {
        let (fast, slow) = (Link::preset("100gbe"), Link::preset("1gbe"));
        let own = |a, b, link| fleet_of([(a, b, link)]);
        let (pair, three) = (Spread::of([0, 1]), Spread::of([0, 1, 2]));
        // What is said of others costs nothing.
        let usual = all_reduce_s(&fleet(), &pair, 2880);
        assert_eq!(all_reduce_s(&own(0, 2, Some(slow)), &pair, 2880), usual);
        assert!(all_reduce_s(&own(0, 1, Some(fast)), &pair, 2880) < usual);
        // Equal ways are as one for all.
        let equal = fleet_of([(0, 1), (0, 2), (1, 2)].map(|(a, b)| (a, b, Some(fleet().between))));
        let (one_s, all_s) = (all_reduce_s(&equal, &three, 2880), all_reduce_s(&fleet(), &three, 2880));
        assert!((one_s / all_s - 1.0).abs() < 1e-12, "{one_s} is not {all_s}");
        // Bytes over the slow way, beside those over the others.
        let mixed_s = all_reduce_s(&own(1, 2, Some(slow)), &three, 2880);
        let slow_s = slow.round_s(2, 4.0 * 2880.0);
        assert!((mixed_s / slow_s - 1.0).abs() < 1e-12, "{mixed_s} is not {slow_s}");
        assert_eq!(all_reduce_s(&own(1, 2, None), &three, 2880), f64::INFINITY);
        let (here, there) = (Spread::of([0, 0]), Spread::of([2]));
        assert_eq!(hand_over_s(&own(0, 2, None), &here, &there, 2880), f64::INFINITY);
        assert!(
            hand_over_s(&own(0, 2, Some(fast)), &here, &there, 2880)
                < hand_over_s(&fleet(), &here, &there, 2880)
        );
        assert!(all_reduce_s(&own(0, 0, Some(slow)), &here, 2880) > all_reduce_s(&fleet(), &here, 2880));
    }

    fn fleet_of<const N: usize>(ways: [(u16, u16, Option<Link>); N]) -> Fleet {
        Fleet { ways: ways.into_iter().collect(), ..fleet() }
    }

    #[test]
    fn x_leaves_a_host_once_for_each_rank_that_takes_it() {
        let fleet = fleet();
        let (here, there) = (Spread::of([0, 0]), Spread::of([1; 4]));
        assert!(hand_over_s(&fleet, &here, &here, 2880) < 10e-6);
        let one = hand_over_s(&fleet, &here, &Spread::of([1]), 2880) - fleet.between.round_s(1, 0.0);
        let four = hand_over_s(&fleet, &here, &there, 2880) - fleet.between.round_s(1, 0.0);
        assert!((four / one - 4.0).abs() < 1e-9);
    }
}
