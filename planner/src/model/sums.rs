//! What ranks give each other: sums within a stage, and x from one stage to the next. As the engine does it
//! (`engine/src/collective/processes/`, `stages.rs`), but for cards, where NCCL is taken to find the better way by itself.

use super::spread::Spread;
use crate::fleet::Fleet;
use crate::link::Link;

/// In memory, vectors of up to so many values go whole to every peer (`sums.rs` there, measured).
const WHOLE_IN_MEMORY_MAX: usize = 16 << 10;
/// Between hosts, over the number of ranks: more never do.
const WHOLE_BY_WIRE_MAX: usize = 64 << 10;
/// Fewer always do: pieces have something for every rank.
const WHOLE_BY_WIRE_MIN: usize = 512;
/// Where ranks share memory, longer vectors go by parts of so many values.
const CHUNK: usize = 64 << 10;
/// x that is handed on goes in pieces from so many bytes on.
const HANDED_WHOLE_BYTES_MAX: f64 = (64 << 10) as f64;
/// int8: bytes of a value for each of its bytes as f32, ranks up to which vectors always go whole, and seconds of a value to be
/// rounded and read: 583 and 2.9 µs more than f32 over loopback for 262144 and 1440 values (docs/performance.md).
const CODED: f64 = 1.125 / 4.0;
const CODED_WHOLE_RANKS_MAX: usize = 4;
const CODING_S: f64 = 2.2e-9;

/// A sum of `values` f32 over the ranks of a stage.
pub fn all_reduce_s(fleet: &Fleet, ranks: &Spread, values: usize) -> f64 {
    if ranks.size() < 2 {
        return 0.0;
    }
    if ranks.on_cards() || !ranks.shares() {
        return sum_s(fleet, ranks, values);
    }
    let (chunks, rest) = (values / CHUNK, values % CHUNK);
    let of = |times: usize, values| if times == 0 { 0.0 } else { times as f64 * sum_s(fleet, ranks, values) };
    of(chunks, CHUNK) + of(usize::from(rest > 0), rest)
}

/// Every rank's best tokens to every rank: 8 bytes a row, whole.
pub fn gather_s(fleet: &Fleet, ranks: &Spread, rows: usize) -> f64 {
    if ranks.size() < 2 { 0.0 } else { round_s(fleet, ranks, 8.0 * rows as f64, 1.0) }
}

/// Up to how many values vectors should go whole: where two rounds become faster than one. None where the engine knows better:
/// in memory, and on cards.
pub fn whole_values_max(fleet: &Fleet, ranks: &Spread) -> Option<usize> {
    if ranks.is_one_host() || ranks.on_cards() {
        return None;
    }
    let is_whole = |values| whole_s(fleet, ranks, values, 1.0) <= pieces_s(fleet, ranks, values, 1.0);
    let (mut whole, mut pieces) = (WHOLE_BY_WIRE_MIN, WHOLE_BY_WIRE_MAX / ranks.size() + 1);
    while pieces - whole > 1 {
        let middle = whole + (pieces - whole) / 2;
        if is_whole(middle) { whole = middle } else { pieces = middle }
    }
    Some(whole)
}

fn sum_s(fleet: &Fleet, ranks: &Spread, values: usize) -> f64 {
    let (size, coded) = (ranks.size(), fleet.int8 && !ranks.is_one_host() && !ranks.on_cards());
    let bytes = if coded { CODED } else { 1.0 };
    let coding_s = if coded { values as f64 * CODING_S } else { 0.0 };
    let whole = || whole_s(fleet, ranks, values, bytes) + coding_s;
    let pieces = || pieces_s(fleet, ranks, values, bytes) + coding_s;
    match ranks.is_one_host() {
        _ if ranks.on_cards() => whole().min(pieces()),
        true if values <= WHOLE_IN_MEMORY_MAX => whole(),
        true => pieces(),
        false if coded && size <= CODED_WHOLE_RANKS_MAX || values <= WHOLE_BY_WIRE_MIN => whole(),
        false if values > WHOLE_BY_WIRE_MAX / size => pieces(),
        false if coded => whole(),
        false if whole_s(fleet, ranks, values, 1.0) <= pieces_s(fleet, ranks, values, 1.0) => whole(),
        false => pieces(),
    }
}

/// One round, in which each rank gives all to the R - 1 others; `by_wire` of its bytes between hosts.
fn whole_s(fleet: &Fleet, ranks: &Spread, values: usize, by_wire: f64) -> f64 {
    round_s(fleet, ranks, 4.0 * values as f64, by_wire)
}

/// Two rounds, of a piece to each other rank, and of the sum of one's own to all; sums are f32.
fn pieces_s(fleet: &Fleet, ranks: &Spread, values: usize, by_wire: f64) -> f64 {
    let each = 4.0 * values as f64 / ranks.size() as f64;
    round_s(fleet, ranks, each, by_wire) + round_s(fleet, ranks, each, 1.0)
}

/// One round, in which each rank gives `each` bytes to each other one. Within a host each device has a way of its own; the
/// way between hosts is shared by a host's ranks, so of r of R ranks r (R - r) times that leave it.
fn round_s(fleet: &Fleet, ranks: &Spread, each: f64, by_wire: f64) -> f64 {
    let hosts = ranks.hosts().iter();
    let slowest =
        hosts.map(|&own| within_s(fleet, ranks, own, each).max(between_s(fleet, ranks, own, by_wire * each)));
    slowest.fold(0.0, f64::max)
}

fn within_s(fleet: &Fleet, ranks: &Spread, (host, own): (u16, usize), each: f64) -> f64 {
    let link = || fleet.link_within(host, ranks.on_cards());
    if own < 2 { 0.0 } else { link_s(link(), own - 1, (own - 1) as f64 * each) }
}

/// A host's own way is as fast as the fastest that it has, and each peer's may be slower.
fn between_s(fleet: &Fleet, ranks: &Spread, (host, own): (u16, usize), each: f64) -> f64 {
    let size = ranks.size();
    if fleet.ways.is_empty() {
        let bytes = (own * (size - own)) as f64 * each;
        return if own < size { fleet.between.round_s(size - 1, bytes) } else { 0.0 };
    }
    let mut together: Option<Link> = None;
    let (mut bytes, mut slowest_s) = (0.0, 0.0f64);
    for &(other, theirs) in ranks.hosts().iter().filter(|(other, _)| *other != host) {
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
fn link_s(link: Option<Link>, peers: usize, bytes: f64) -> f64 {
    link.map_or(f64::INFINITY, |link| link.round_s(peers, bytes))
}

/// x: f32 [T, H] from a stage to the next: short ones to each of its ranks, of long ones a piece to each, which they gather.
/// Each has it from the rank that the engine chooses by its place, wherever that is.
pub fn hand_over_s(fleet: &Fleet, from: &Spread, to: &Spread, values: usize) -> f64 {
    let bytes = 4.0 * values as f64;
    if bytes <= HANDED_WHOLE_BYTES_MAX {
        return copies_s(fleet, from, to, bytes);
    }
    let piece = bytes / to.size() as f64;
    let gathered_s = if to.size() > 1 { round_s(fleet, to, piece, 1.0) } else { 0.0 };
    copies_s(fleet, from, to, piece) + gathered_s
}

/// So many bytes to each rank of the next stage, whose ranks stand by host. What comes from another host waits for the slowest
/// link that it comes by.
fn copies_s(fleet: &Fleet, from: &Spread, to: &Spread, bytes: f64) -> f64 {
    let mut givers = from.places().iter().copied().cycle();
    let far_s = to.places().chunk_by(|a, b| a == b).filter_map(|takers| {
        let host = takers[0];
        let far = givers.clone().take(takers.len()).filter(|giver| *giver != host);
        givers.nth(takers.len() - 1);
        let copies = far.clone().count() as f64;
        far.map(|giver| link_s(fleet.link(giver, host), 1, copies * bytes)).reduce(f64::max)
    });
    let far_s = far_s.reduce(f64::max);
    let near = to.hosts().iter().map(|&(host, _)| fleet.link_within(host, to.on_cards()));
    let near_s = near.map(|link| link_s(link, 1, bytes));
    far_s.unwrap_or_else(|| near_s.fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Costs;
    use flotilla_shared::{BackendKind, Inventory, KvDtype};

    /// Devices of one kind in these hosts, all of which are ranks.
    fn at<const N: usize>(hosts: [u16; N], between: &str) -> (Fleet, Spread) {
        let device = Inventory {
            name: "d".into(),
            backend: BackendKind::Cpu,
            kv: KvDtype::F16,
            device: "any".into(),
            memory_bytes: 0,
            bandwidth: 0.0,
            compute: 0.0,
            expert_compute: 0.0,
            threads: 1,
        };
        let (within, between) = (Link::preset("shm"), Link::preset(between));
        let (devices, ways) = (vec![device; N], Default::default());
        let hosts = hosts.to_vec();
        let (within_cards, costs) = (None, Costs::default());
        let fleet = Fleet { devices, hosts, within, between, within_cards, ways, int8: false, costs };
        let ranks = Spread::of(&fleet, &(0..N).collect::<Vec<_>>());
        (fleet, ranks)
    }

    fn sum<const N: usize>(hosts: [u16; N], between: &str, values: usize) -> f64 {
        let (fleet, ranks) = at(hosts, between);
        all_reduce_s(&fleet, &ranks, values)
    }

    /// Two ranks by memory, as measured on 2026-11-28 (docs/performance.md, "Sums over processes").
    #[test]
    fn memory_takes_about_what_was_measured() {
        for (values, measured_us) in [(1440, 2.0), (2880, 3.5), (262_144, 220.0), (1_474_560, 1330.0)] {
            let us = 1e6 * sum([0, 0], "10gbe", values);
            assert!((0.85..1.2).contains(&(us / measured_us)), "{values}: {us} µs, measured {measured_us}");
        }
    }

    #[test]
    fn long_vectors_go_in_pieces() {
        assert_eq!(sum([0], "10gbe", 1 << 20), 0.0);
        let (fleet, ranks) = at([0, 1, 2, 3], "10gbe");
        let start = fleet.between.round_s(3, 0.0);
        let whole = (all_reduce_s(&fleet, &ranks, 500) - start) * fleet.between.bytes_per_s;
        assert!((whole - 3.0 * 2000.0).abs() < 1.0, "{whole}");
        let pieces = (all_reduce_s(&fleet, &ranks, 1 << 20) - 2.0 * start) * fleet.between.bytes_per_s;
        assert!((pieces - 2.0 * 3.0 * f64::from(1 << 20)).abs() < 16.0, "{pieces}");
        // Where some share memory, by chunks: 16 of them.
        let (fleet, ranks) = at([0, 1, 0, 1], "10gbe");
        let pieces = (all_reduce_s(&fleet, &ranks, 1 << 20) - 32.0 * start) * fleet.between.bytes_per_s;
        assert!((pieces - 2.0 * 4.0 * f64::from(1 << 20)).abs() < 16.0, "{pieces}");
    }

    /// Two ranks have nothing to win; of four on a slow network even one row is faster in pieces.
    #[test]
    fn the_length_at_which_pieces_begin_follows_the_link() {
        let most = |(fleet, ranks): (Fleet, Spread)| whole_values_max(&fleet, &ranks);
        assert_eq!(most(at([0, 0, 0], "1gbe")), None);
        assert_eq!(most(at([0, 1], "1gbe")), Some(32 << 10));
        assert!(most(at([0, 1, 2, 3], "1gbe")).unwrap() < 2880);
        assert!(most(at([0, 1, 2, 3], "100gbe")).unwrap() > 16_000);
        for between in ["1gbe", "25gbe", "100gbe"] {
            let (fleet, ranks) = at([0, 1, 2, 3], between);
            let at = whole_values_max(&fleet, &ranks).unwrap();
            let both = |values| (whole_s(&fleet, &ranks, values, 1.0), pieces_s(&fleet, &ranks, values, 1.0));
            let (whole, pieces) = both(at);
            assert!(whole <= pieces && all_reduce_s(&fleet, &ranks, at) == whole, "{between}");
            let (whole, pieces) = both(at + 1);
            assert!(pieces <= whole || at == WHOLE_BY_WIRE_MAX / 4, "{between}");
            assert_eq!(all_reduce_s(&fleet, &ranks, at + 1), pieces, "{between}");
        }
    }

    #[test]
    fn int8_is_for_slow_networks() {
        let coded = |hosts: [u16; 2], between: &str, values| {
            let (fleet, ranks) = at(hosts, between);
            all_reduce_s(&Fleet { int8: true, ..fleet }, &ranks, values)
        };
        assert!(coded([0, 1], "1gbe", 46_080) < 0.4 * sum([0, 1], "1gbe", 46_080));
        assert!(coded([0, 1], "100gbe", 1 << 20) > sum([0, 1], "100gbe", 1 << 20));
        assert_eq!(coded([0, 0], "1gbe", 46_080), sum([0, 0], "1gbe", 46_080));
    }

    #[test]
    fn each_pair_of_hosts_has_its_own_way() {
        let (fast, slow) = (Link::preset("100gbe"), Link::preset("1gbe"));
        fn with<const N: usize, const M: usize>(hosts: [u16; N], ways: [(u16, u16, Option<Link>); M]) -> f64 {
            let (fleet, ranks) = at(hosts, "10gbe");
            all_reduce_s(&Fleet { ways: ways.into_iter().collect(), ..fleet }, &ranks, 2880)
        }
        // What is said of others costs nothing.
        let usual = with([0, 1], []);
        assert_eq!(with([0, 1], [(0, 2, Some(slow))]), usual);
        assert!(with([0, 1], [(0, 1, Some(fast))]) < usual);
        // Equal ways are as one for all.
        let equal = [(0, 1), (0, 2), (1, 2)].map(|(a, b)| (a, b, Some(Link::preset("10gbe"))));
        let (one_s, all_s) = (with([0, 1, 2], equal), with([0, 1, 2], []));
        assert!((one_s / all_s - 1.0).abs() < 1e-12, "{one_s} is not {all_s}");
        // Bytes over the slow way, beside those over the others; two rounds of a third are faster than one.
        let mixed_s = with([0, 1, 2], [(1, 2, Some(slow))]);
        let slow_s = (2.0 * slow.round_s(2, 4.0 * 960.0)).min(slow.round_s(2, 4.0 * 2880.0));
        assert!((mixed_s / slow_s - 1.0).abs() < 1e-12, "{mixed_s} is not {slow_s}");
        assert_eq!(with([0, 1, 2], [(1, 2, None)]), f64::INFINITY);
        assert!(with([0, 0], [(0, 0, Some(slow))]) > with([0, 0], []));
    }

    /// Processors of a host share memory, whatever cards are beside them; and what was measured of memory is not the cards'.
    #[test]
    fn beside_cards_processors_of_a_host_sum_as_without_them() {
        let (alone, cpus) = at([0, 0], "10gbe");
        let (mut mixed, _) = at([0, 0, 0, 0], "10gbe");
        let pcie = Link::preset("pcie4");
        mixed.within_cards = Some(pcie);
        mixed.devices[2..].iter_mut().for_each(|device| device.backend = BackendKind::Cuda);
        let cards = Spread::of(&mixed, &[2, 3]);
        for values in [1440, 262_144] {
            assert_eq!(all_reduce_s(&mixed, &cpus, values), all_reduce_s(&alone, &cpus, values));
            let by_bus = Fleet { within: pcie, ..alone.clone() };
            assert_eq!(all_reduce_s(&mixed, &cards, values), whole_s(&by_bus, &cpus, values, 1.0));
            assert_eq!(hand_over_s(&mixed, &cpus, &cpus, values), hand_over_s(&alone, &cpus, &cpus, values));
        }
        let slow =
            Fleet { ways: [(0, 0, Some(Link::preset("1gbe")))].into_iter().collect(), ..mixed.clone() };
        assert!(all_reduce_s(&slow, &cpus, 1440) > all_reduce_s(&mixed, &cpus, 1440));
        assert_eq!(all_reduce_s(&slow, &cards, 1440), all_reduce_s(&mixed, &cards, 1440));
        let cut = Fleet { ways: [(0, 0, None)].into_iter().collect(), ..mixed };
        assert_eq!(all_reduce_s(&cut, &cards, 1440), f64::INFINITY);
    }

    #[test]
    fn x_leaves_a_host_once_for_each_rank_that_takes_it_or_in_pieces() {
        let (fleet, _) = at([0, 0, 1, 1, 1, 1], "10gbe");
        let of = |devices: &[usize]| Spread::of(&fleet, devices);
        let (here, there) = (of(&[0, 1]), of(&[2, 3, 4, 5]));
        assert!(hand_over_s(&fleet, &here, &here, 2880) < 10e-6);
        let start = fleet.between.round_s(1, 0.0);
        let one = hand_over_s(&fleet, &here, &of(&[2]), 2880) - start;
        let four = hand_over_s(&fleet, &here, &there, 2880) - start;
        assert!((four / one - 4.0).abs() < 1e-9);
        let (one, four) = [of(&[2]), there].map(|to| hand_over_s(&fleet, &here, &to, 1 << 20)).into();
        assert!(four < 1.3 * one, "{four} and {one}");
        let cut = Fleet { ways: [(0, 1, None)].into_iter().collect(), ..fleet.clone() };
        assert_eq!(hand_over_s(&cut, &here, &of(&[2]), 2880), f64::INFINITY);
    }

    /// Places 0 to 3 of the larger stage have x from places 0, 1, 0, 1 of the smaller one.
    #[test]
    fn x_leaves_hosts_where_stages_have_other_numbers_of_ranks_in_them() {
        let (fleet, _) = at([0, 0, 1, 1, 0, 1], "10gbe");
        let of = |devices: &[usize]| Spread::of(&fleet, devices);
        let over = |from: &[usize], to: &[usize]| hand_over_s(&fleet, &of(from), &of(to), 2880);
        let by_wire_s = fleet.between.round_s(1, 4.0 * 2880.0);
        assert_eq!(over(&[4, 5], &[0, 1, 2, 3]), by_wire_s);
        assert_eq!(over(&[0, 1, 2, 3], &[4, 5]), by_wire_s);
        for (from, to) in [(&[4, 5][..], &[0, 2][..]), (&[0, 1, 2, 3], &[4])] {
            assert!(over(from, to) < 10e-6, "{from:?}, {to:?}");
        }
    }
}
