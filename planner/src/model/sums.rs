//! What ranks give each other: sums within a stage, and x from one stage to the next.

use crate::fleet::Fleet;

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
    let neighbours = ranks.counts().max().unwrap_or(1) - 1;
    let within = fleet.within.round_s(neighbours, neighbours as f64 * each);
    if alone {
        return rounds * within;
    }
    let leaving = ranks.counts().map(|own| own * (size - own)).max().unwrap_or(0);
    let between = fleet.between.round_s(size - 1, leaving as f64 * each);
    rounds * if neighbours > 0 { between.max(within) } else { between }
}

/// Every rank's best tokens to every rank: 8 bytes a row.
pub fn gather_s(fleet: &Fleet, ranks: &Spread, rows: usize) -> f64 {
    all_reduce_s(fleet, ranks, 2 * rows)
}

/// x: f32 [T, H] from a stage to the next, a copy to each of its ranks. Where every host of the next has a rank of the
/// stage before, nothing leaves a host.
pub fn hand_over_s(fleet: &Fleet, from: &Spread, to: &Spread, values: usize) -> f64 {
    let bytes = 4.0 * values as f64;
    let copies = to.0.iter().filter(|(host, _)| !from.has(*host)).map(|(_, count)| *count).max();
    match copies {
        None => fleet.within.round_s(1, bytes),
        Some(copies) => fleet.between.round_s(1, copies as f64 * bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Costs;
    use crate::link::Link;

    fn fleet() -> Fleet {
        let (within, between) = (Link::preset("shm"), Link::preset("10gbe"));
        Fleet { devices: vec![], hosts: vec![], within, between, costs: Costs::default() }
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
    fn x_leaves_a_host_once_for_each_rank_that_takes_it() {
        let fleet = fleet();
        let (here, there) = (Spread::of([0, 0]), Spread::of([1; 4]));
        assert!(hand_over_s(&fleet, &here, &here, 2880) < 10e-6);
        let one = hand_over_s(&fleet, &here, &Spread::of([1]), 2880) - fleet.between.round_s(1, 0.0);
        let four = hand_over_s(&fleet, &here, &there, 2880) - fleet.between.round_s(1, 0.0);
        assert!((four / one - 4.0).abs() < 1e-9);
    }
}
