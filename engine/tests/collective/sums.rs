//! Every rank holds the same bits: those of the sum in rank order.

use crate::groups::{Kind, PATIENT, run, run_linked};
use flotilla_engine::collective::Collective;
use flotilla_shared::sampling::mix;
use flotilla_shared::{Links, WireFormat};

/// Numbers of very different sizes, so that another order of sums gives other bits.
fn vector(seed: u64, rank: usize, n: usize) -> Vec<f32> {
    let value = |i: usize| {
        let bits = mix(seed ^ mix((rank as u64) << 32 | i as u64));
        let unit = (bits >> 40) as f32 / (1 << 23) as f32 - 1.0;
        unit * 2f32.powi((bits % 24) as i32)
    };
    (0..n).map(value).collect()
}

fn sum(seed: u64, ranks: usize, n: usize) -> Vec<f32> {
    let mut sum = vector(seed, 0, n);
    for rank in 1..ranks {
        sum.iter_mut().zip(vector(seed, rank, n)).for_each(|(sum, x)| *sum += x);
    }
    sum
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Lengths on both sides of every limit: of a block of the sum, of a whole vector, of what is shown at
/// once, of a socket's buffer.
const LENGTHS: [usize; 15] =
    [0, 1, 3, 511, 512, 513, 2880, 16_384, 16_385, 32_768, 32_769, 65_536, 65_537, 300_001, 7];

fn check(kind: Kind, ranks: usize) {
    let results = run(kind, ranks, PATIENT, |mut group| {
        let rank = group.rank().index();
        let reduce = |(seed, n): (usize, usize)| {
            let mut x = vector(seed as u64, rank, n);
            group.all_reduce(&mut x).unwrap();
            bits(&x)
        };
        LENGTHS.into_iter().enumerate().map(reduce).collect::<Vec<_>>()
    });
    for (seed, n) in LENGTHS.into_iter().enumerate() {
        let expected = bits(&sum(seed as u64, ranks, n));
        for (rank, found) in results.iter().enumerate() {
            assert!(found[seed] == expected, "{kind:?}, rank {rank} of {ranks}: {n} elements differ");
        }
    }
}

#[test]
fn threads_sum_in_rank_order() {
    (1..=8).for_each(|ranks| check(Kind::Threads, ranks));
}

#[test]
fn tcp_sums_in_rank_order() {
    (1..=8).for_each(|ranks| check(Kind::Tcp, ranks));
}

#[test]
fn memory_sums_in_rank_order() {
    (1..=8).for_each(|ranks| check(Kind::Shm, ranks));
}

#[test]
fn hosts_that_share_memory_inside_sum_in_rank_order() {
    (1..=8).for_each(|ranks| check(Kind::Mixed, ranks));
}

/// Whatever the lengths, and whoever shares memory with whom: the bits of the sum in rank order.
#[test]
fn random_lengths_over_random_hosts_have_the_same_bits() {
    let seed = 0x5eed_u64;
    println!("seed {seed:#x}");
    for trial in 0..24u64 {
        let chance = |n: u64| mix(seed ^ mix(trial << 8 | n));
        let ranks = 1 + (chance(0) % 6) as usize;
        let hosts: Vec<u16> = (0..ranks as u64).map(|rank| (chance(10 + rank) % 3) as u16).collect();
        let length =
            |round: u64| (chance(100 + round) % [9, 3000, 40_000, 150_000][round as usize % 4]) as usize;
        let lengths: Vec<usize> = (0..12).map(length).collect();
        // As the engine does, or as a plan says: far too little, in between, far too much.
        let told = [vec![], vec![0], vec![1], vec![700], vec![5000], vec![u32::MAX]];
        let whole_values_max = told[(chance(1) % 6) as usize].clone();
        let links = Links { hosts: hosts.clone(), must_share: true, whole_values_max, ..Links::default() };
        let theirs = lengths.clone();
        let results = run_linked(Kind::Mixed, ranks, PATIENT, links, move |mut group| {
            let (rank, mut gathered) = (group.rank().index(), Vec::new());
            let reduce = |(round, &n): (usize, &usize)| {
                let mut x = vector(round as u64, rank, n);
                group.all_reduce(&mut x).unwrap();
                // Each rank has another length, up to several times what can be shown at once.
                group.all_gather(&vec![rank as u8; n * (rank + 1)], &mut gathered).unwrap();
                (bits(&x), gathered.clone())
            };
            theirs.iter().enumerate().map(reduce).collect::<Vec<_>>()
        });
        for (round, &n) in lengths.iter().enumerate() {
            let expected = bits(&sum(round as u64, ranks, n));
            let gathered: Vec<u8> = (0..ranks).flat_map(|rank| vec![rank as u8; n * (rank + 1)]).collect();
            for (rank, found) in results.iter().enumerate() {
                assert!(
                    found[round].0 == expected,
                    "trial {trial}, hosts {hosts:?}, rank {rank}, {n} elements"
                );
                assert!(found[round].1 == gathered, "trial {trial}, hosts {hosts:?}, rank {rank}, {n} bytes");
            }
        }
    }
}

/// Rounded once by whoever gives it: all ranks hold the same bits, those of the sum of what was rounded,
/// whether they share memory or not; and where nothing passes the wire, nothing is rounded.
#[test]
fn int8_on_the_wire_is_the_same_for_all_and_close() {
    for (ranks, hosts) in
        [(2, vec![]), (2, vec![0, 0]), (3, vec![0, 1, 0]), (6, vec![]), (6, vec![0, 0, 1, 1, 1, 0])]
    {
        let links =
            Links { hosts: hosts.clone(), must_share: true, wire: WireFormat::Int8, ..Links::default() };
        let is_exact = !hosts.is_empty() && hosts.iter().all(|host| *host == 0);
        let lengths = [0, 1, 33, 2880, 16_385, 100_001];
        let results = run_linked(Kind::Mixed, ranks, PATIENT, links, move |mut group| {
            let rank = group.rank().index();
            let reduce = |(seed, n): (usize, usize)| {
                let mut x: Vec<f32> =
                    vector(seed as u64, rank, n).iter().map(|x| x.rem_euclid(2.0)).collect();
                group.all_reduce(&mut x).unwrap();
                x
            };
            lengths.into_iter().enumerate().map(reduce).collect::<Vec<_>>()
        });
        for (seed, n) in lengths.into_iter().enumerate() {
            let part = |rank: usize| vector(seed as u64, rank, n).into_iter().map(|x| x.rem_euclid(2.0));
            let mut exact = vec![0.0f32; n];
            (0..ranks).for_each(|rank| exact.iter_mut().zip(part(rank)).for_each(|(sum, x)| *sum += x));
            for found in &results {
                assert!(bits(&found[seed]) == bits(&results[0][seed]), "hosts {hosts:?}, {n} elements");
                // Half a step of 2 / 127 a rank.
                let bound = if is_exact { 0.0 } else { ranks as f32 * 1.01 / 127.0 };
                let far = found[seed].iter().zip(&exact).find(|(a, b)| (*a - *b).abs() > bound);
                assert!(far.is_none(), "hosts {hosts:?}, {n} elements: {far:?}");
            }
            assert!(n < 2880 || is_exact == (results[0][seed] == exact), "hosts {hosts:?}, {n} elements");
        }
    }
}

/// 48 MB each way on every link: more than any socket's buffer, so that whoever only sends would wait
/// for a peer that only sends too.
#[test]
fn long_vectors_in_both_directions_do_not_lock() {
    let sums = run(Kind::Tcp, 2, PATIENT, |mut group| {
        let mut x = vec![1.5f32; 24 << 20];
        group.all_reduce(&mut x).unwrap();
        x.iter().all(|&x| x == 3.0)
    });
    assert_eq!(sums, [true; 2]);
}

#[test]
fn gathers_are_in_rank_order_and_lengths_may_differ() {
    for kind in Kind::ALL {
        for ranks in 1..=5 {
            let gathered = run(kind, ranks, PATIENT, |mut group| {
                let rank = group.rank().index();
                let mut out = b"what was there before".to_vec();
                let mut all = Vec::new();
                for round in 0..20 {
                    let mine = vec![(10 * round + rank) as u8; (rank + round) % 3 * 1000 * round];
                    group.all_gather(&mine, &mut out).unwrap();
                    all.push(out.clone());
                    group.barrier().unwrap();
                }
                all
            });
            let of = |round: usize, rank: usize| {
                vec![(10 * round + rank) as u8; (rank + round) % 3 * 1000 * round]
            };
            let expected: Vec<Vec<u8>> =
                (0..20).map(|round| (0..ranks).flat_map(|rank| of(round, rank)).collect()).collect();
            assert!(gathered.iter().all(|found| *found == expected), "{kind:?}, {ranks} ranks");
        }
    }
}

/// Ranks that come late, each in turn, across many operations: slots and sequence numbers are reused.
#[test]
fn stragglers_change_nothing() {
    for kind in Kind::ALL {
        let sums = run(kind, 3, PATIENT, |mut group| {
            let (rank, mut last) = (group.rank().index(), Vec::new());
            for round in 0..300usize {
                if round % 7 == rank {
                    std::thread::sleep(std::time::Duration::from_micros(mix(round as u64) % 400));
                }
                let n = [1, 2880, 20_000][round % 3];
                let mut x = vector(round as u64, rank, n);
                group.all_reduce(&mut x).unwrap();
                last.push(mix(x.iter().fold(0, |hash, x| mix(hash ^ u64::from(x.to_bits())))));
            }
            last
        });
        assert!(sums.iter().all(|found| found == &sums[0]), "{kind:?}");
        let first = sum(0, 3, 1)[0].to_bits();
        assert_eq!(sums[0][0], mix(mix(u64::from(first))), "{kind:?}");
    }
}

/// Asks for the trait's bounds: a collective moves to the thread that computes.
#[test]
fn collectives_can_be_sent() {
    fn is_send<T: Send>() {}
    is_send::<Box<dyn Collective>>();
    is_send::<flotilla_engine::collective::AbortHandle>();
}
