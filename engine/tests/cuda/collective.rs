//! Sums of values in cards' memories: the same bits on all ranks on every way, as they are and replayed
//! from a graph; an end in bounded time whatever happens; and a check at the start that sees what is wrong.

use crate::support::cards;
use cudarc::driver::{CudaGraph, DevicePtrMut, sys};
use flotilla_engine::collective::card::nccl::{Communicator, make_id};
use flotilla_engine::collective::card::{CardSettings, SumChoice, SumPath, Wire, host};
use flotilla_engine::collective::threads::{ThreadsCollective, group_with_deadline};
use flotilla_engine::collective::{
    AbortHandle, AllReduce, CardCollective, Collective, CollectiveError, ProcessCollective,
};
use flotilla_engine::cuda::{Card, DeviceSum, Nccl, Source, Version, card_count};
use flotilla_shared::{Epoch, Rank};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use std::{env, thread};

const PATIENCE: Duration = Duration::from_secs(30);
/// Nothing that ends by itself takes longer, on the busiest machine.
const BOUND: Duration = Duration::from_secs(20);
/// Values of the longest sum: odd, and of several chunks.
const LONGEST: usize = 20_011;

fn settings(choice: SumChoice) -> CardSettings {
    CardSettings { choice, wire: Wire::F32, elements_max: LONGEST, deadline: PATIENCE, latency_runs: 0 }
}

fn only(path: SumPath) -> CardSettings {
    settings(SumChoice::Only(path))
}

/// Card 0 for all, each rank with a stream of its own; or a card for each, where there are so many.
fn card_of(rank: usize, own_cards: bool) -> Card {
    let card = cards().remove(0).card;
    let ordinal = if own_cards { rank % card_count().unwrap() } else { 0 };
    if ordinal == 0 { card } else { Card::open(ordinal).unwrap() }
}

/// Whether `ranks` can sum by NCCL here: they have a card each, or NCCL is one that takes several on a card and has been
/// told to. If not, says what is missing; such a test has nothing to show on this machine.
fn can_sum_by_nccl(ranks: usize) -> bool {
    let (is_real, count) = (cards().remove(0).name == "cuda", card_count().unwrap());
    if !is_real || count >= ranks {
        return true;
    }
    let told = env::var("NCCL_MULTI_RANK_GPU_ENABLE").as_deref() == Ok("1");
    let version = Nccl::open().unwrap_or_else(|error| panic!("{error}")).version();
    let shares = told && version >= Version { major: 2, minor: 30, patch: 0 };
    if !shares {
        eprintln!(
            "skipped: {ranks} ranks by NCCL need {ranks} cards ({count} found), or NCCL from 2.30 on ({version} found) \
             with NCCL_MULTI_RANK_GPU_ENABLE=1"
        );
    }
    shares
}

/// Whether each of two ranks has a card; says so if not.
fn have_two_cards() -> bool {
    let (is_real, count) = (cards().remove(0).name == "cuda", card_count().unwrap());
    let have = !is_real || count > 1;
    if !have {
        eprintln!("skipped: it needs 2 cards, {count} found");
    }
    have
}

/// The ways that can be shown here, of those with so many ranks.
fn shown<const N: usize>(ways: [(SumPath, usize); N]) -> Vec<(SumPath, usize)> {
    let can = |&(path, ranks): &(SumPath, usize)| path != SumPath::Nccl || can_sum_by_nccl(ranks);
    ways.into_iter().filter(can).collect()
}

/// Ranks that wait for each other on one card, and calls of the driver that wait for the whole card, do
/// not go together: each test has the cards to itself.
static CARDS: Mutex<()> = Mutex::new(());

/// Runs `body` on each rank of a group of threads; gives back what each gave.
fn on_threads<T: Send>(
    links: Vec<ThreadsCollective>,
    body: impl Fn(usize, ThreadsCollective) -> T + Sync,
) -> Vec<T> {
    let _cards = CARDS.lock().unwrap_or_else(PoisonError::into_inner);
    let body = &body;
    thread::scope(|scope| {
        let ranks = links.into_iter().enumerate();
        let threads: Vec<_> = ranks.map(|(rank, link)| scope.spawn(move || body(rank, link))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

type Group = CardCollective<ThreadsCollective>;

/// As [`on_threads`], with a group that has formed.
fn on_ranks<T: Send>(
    size: usize,
    settings: &CardSettings,
    own_cards: bool,
    body: impl Fn(usize, Card, Group) -> T + Sync,
) -> Vec<T> {
    on_threads(group_with_deadline(size, PATIENCE), |rank, link| {
        let card = card_of(rank, own_cards);
        let group = CardCollective::form(&card, link, settings).unwrap_or_else(|error| panic!("{error}"));
        body(rank, card, group)
    })
}

/// What `rank` has at place `i` in a round: of any size, so that sums depend on the order of the terms.
fn value(round: usize, rank: usize, i: usize) -> f32 {
    let seed = (round as u64) << 40 ^ (rank as u64) << 32 ^ i as u64;
    let mut bits = seed.wrapping_add(0x1234_5678).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits ^= bits >> 32;
    let exponent = 115 + (bits >> 40) as u32 % 24;
    f32::from_bits((bits as u32 & 0x807f_ffff) | exponent << 23)
}

fn values(round: usize, rank: usize, n: usize) -> Vec<f32> {
    (0..n).map(|i| value(round, rank, i)).collect()
}

/// ((x₀ + x₁) + x₂) + …
fn sums(round: usize, size: usize, n: usize) -> Vec<f32> {
    let sum = |i| (1..size).fold(value(round, 0, i), |sum, rank| sum + value(round, rank, i));
    (0..n).map(sum).collect()
}

fn buffer(card: &Card, n: usize) -> DeviceSum {
    DeviceSum { stream: Arc::clone(card.stream()), values: card.upload(&vec![f32::NAN; n]).unwrap(), len: n }
}

fn fill(card: &Card, y: &mut DeviceSum, values: &[f32]) {
    card.stream().memcpy_htod(values, &mut y.values.slice_mut(..values.len())).unwrap();
    card.synchronize().unwrap();
    y.len = values.len();
}

#[track_caller]
fn check(card: &Card, y: &DeviceSum, expected: &[f32], what: &str) {
    let found = card.download(&y.values).unwrap();
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.to_bits(), expected.to_bits(), "{what}: value {i} is {found}, expected {expected}");
    }
    assert!(found[y.len..].iter().all(|value| value.is_nan()), "{what}: written past the end");
}

fn settle(group: &mut impl AllReduce<DeviceSum>) -> Result<(), CollectiveError> {
    group.settle()
}

fn sum_lengths(size: usize, path: SumPath, own_cards: bool, lengths: &[usize]) {
    let longest = *lengths.iter().max().unwrap();
    let settings = CardSettings { elements_max: longest, ..only(path) };
    on_ranks(size, &settings, own_cards, |rank, card, mut group| {
        assert_eq!(group.path(), (size > 1).then_some(path));
        for (round, &n) in lengths.iter().chain(lengths).enumerate() {
            let mut y = buffer(&card, longest + 3);
            fill(&card, &mut y, &values(round, rank, n));
            group.all_reduce(&mut y).unwrap();
            settle(&mut group).unwrap();
            check(&card, &y, &sums(round, size, n), &format!("rank {rank} of {size}, {n} values by {path}"));
        }
    });
}

/// Around what a thread, a block and a chunk have.
const LENGTHS: [usize; 15] = [1, 0, 2, 3, 5, 31, 64, 65, 2047, 2049, 2880, 4095, 4096, 4097, LONGEST];

#[test]
fn all_ranks_hold_the_sum_in_rank_order() {
    for size in [1, 2, 3, 4, 5] {
        for path in [SumPath::Staged, SumPath::Host, SumPath::Shared] {
            sum_lengths(size, path, false, &LENGTHS);
        }
    }
}

#[test]
fn ranks_with_a_card_each_sum_alike() {
    for (path, size) in shown([(SumPath::Staged, 2), (SumPath::Host, 2), (SumPath::Nccl, 2)]) {
        sum_lengths(size, path, true, &[1, 0, 2880, LONGEST]);
    }
}

/// Longer than what one operation holds.
#[test]
fn a_sum_longer_than_a_slot_takes_several_operations() {
    for path in [SumPath::Host, SumPath::Shared] {
        sum_lengths(2, path, false, &[600_001, 7, 524_288]);
    }
}

#[test]
fn a_sum_longer_than_announced_is_refused() {
    for path in [SumPath::Staged, SumPath::Host, SumPath::Shared] {
        on_ranks(2, &only(path), false, |_, card, mut group| {
            let error = group.all_reduce(&mut buffer(&card, LONGEST + 1)).unwrap_err();
            assert!(matches!(error, CollectiveError::TooLong { .. }), "{error}");
            assert!(
                error.to_string().contains("all-reduce of 80048 bytes, expected at most 80044"),
                "{error}"
            );
        });
    }
}

/// Values in the host's memory go by the link, between sums by the cards.
#[test]
fn the_link_serves_as_before() {
    on_ranks(3, &only(SumPath::Shared), false, |rank, card, mut group| {
        let mut y = buffer(&card, 2880);
        fill(&card, &mut y, &values(0, rank, 2880));
        group.all_reduce(&mut y).unwrap();
        let mut x = values(1, rank, 100);
        group.all_reduce(&mut x[..]).unwrap();
        assert_eq!(x, sums(1, 3, 100));
        let mut all = Vec::new();
        group.all_gather(&[rank as u8; 2], &mut all).unwrap();
        assert_eq!(all, [0, 0, 1, 1, 2, 2]);
        group.barrier().unwrap();
        settle(&mut group).unwrap();
        check(&card, &y, &sums(0, 3, 2880), "a sum that went on meanwhile");
        assert_eq!((group.rank(), group.size()), (Rank(rank as u16), 3));
    });
}

fn record(card: &Card, sum: impl FnOnce()) -> CudaGraph {
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    card.stream().begin_capture(mode).unwrap();
    sum();
    card.stream().end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().expect("it has sums in it")
}

/// A graph with sums of several lengths, launched again and again with other values; the operations'
/// numbers pass the largest of 32 bits meanwhile.
fn replay(size: usize, path: SumPath, own_cards: bool, equal: impl Fn(&[f32], &[f32]) -> bool + Sync) {
    let lengths = [2880, LONGEST, 5];
    on_ranks(size, &only(path), own_cards, |rank, card, mut group| {
        assert!(group.capturable());
        let mut parts = lengths.map(|n| buffer(&card, n));
        let graph = record(&card, || parts.iter_mut().for_each(|y| group.all_reduce(y).unwrap()));
        for round in 0..50 {
            for (n, y) in lengths.iter().zip(&mut parts) {
                fill(&card, y, &values(round * 3, rank, *n));
            }
            graph.launch().unwrap();
            // One that is not recorded comes between.
            let mut alone = buffer(&card, 64);
            fill(&card, &mut alone, &values(round * 3 + 1, rank, 64));
            group.all_reduce(&mut alone).unwrap();
            settle(&mut group).unwrap_or_else(|error| panic!("rank {rank}, replay {round}: {error}"));
            let found = |y: &DeviceSum| card.download(&y.values).unwrap();
            for (n, y) in lengths.iter().zip(&parts) {
                assert!(
                    equal(&found(y), &sums(round * 3, size, *n)),
                    "rank {rank}, replay {round}, {n} values"
                );
            }
            assert!(
                equal(&found(&alone), &sums(round * 3 + 1, size, 64)),
                "rank {rank}, after replay {round}"
            );
        }
    });
}

fn same_bits(found: &[f32], expected: &[f32]) -> bool {
    found.iter().zip(expected).all(|(found, expected)| found.to_bits() == expected.to_bits())
}

#[test]
fn a_graph_of_sums_by_the_cards_can_be_replayed() {
    for path in [SumPath::Host, SumPath::Shared] {
        for size in [2, 4] {
            replay(size, path, false, same_bits);
        }
    }
    on_ranks(2, &only(SumPath::Staged), false, |_, _, group| assert!(!group.capturable()));
}

#[test]
fn a_graph_of_sums_by_nccl_can_be_replayed() {
    // NCCL promises no order of the terms; two have only one.
    if can_sum_by_nccl(2) {
        replay(2, SumPath::Nccl, true, same_bits);
    }
}

/// All that one card can show of NCCL: it is found, begins, sums, is recorded and replayed, and ends.
#[test]
fn nccl_serves_a_rank_that_is_alone() {
    let _cards = CARDS.lock().unwrap_or_else(PoisonError::into_inner);
    let (card, nccl) = (card_of(0, false), Nccl::open().unwrap_or_else(|error| panic!("{error}")));
    let start = Instant::now();
    let id = make_id(&nccl).unwrap();
    let mut alone = Communicator::meet(nccl, &card, id, (Rank(0), 1), PATIENCE, || false).unwrap();
    let mut y = buffer(&card, 2880);
    let stream = Arc::clone(&y.stream);
    let mut sum =
        |y: &mut DeviceSum| alone.enqueue(&stream, y.values.device_ptr_mut(&stream).0, 2880).unwrap();
    fill(&card, &mut y, &values(0, 0, 2880));
    sum(&mut y);
    check(&card, &y, &values(0, 0, 2880), "as it was");
    let graph = record(&card, || sum(&mut y));
    for round in 1..4 {
        fill(&card, &mut y, &values(round, 0, 2880));
        graph.launch().unwrap();
        check(&card, &y, &values(round, 0, 2880), "replayed");
    }
    drop(graph);
    drop(alone);
    assert!(start.elapsed() < BOUND);
}

/// NCCL refuses them, unless it is told otherwise: in its own words, in bounded time, and the card is as good as
/// before.
#[test]
fn two_ranks_on_one_card_end_in_an_error_of_nccls() {
    if env::var("NCCL_MULTI_RANK_GPU_ENABLE").is_ok() {
        return eprintln!("skipped: NCCL has been told to take several ranks on one card");
    }
    let start = Instant::now();
    let (card, nccl) = (card_of(0, false), Nccl::open().unwrap_or_else(|error| panic!("{error}")));
    let id = make_id(&nccl).unwrap();
    let formed = on_threads(group_with_deadline(2, PATIENCE), |rank, _link| {
        let card = card_of(0, false);
        let ranks = (Rank(rank as u16), 2);
        Communicator::meet(nccl, &card, id, ranks, Duration::from_secs(10), || false).map(|_| "a group")
    });
    for reason in formed.iter().map(|formed| formed.as_ref().expect_err("one card for both")) {
        assert!(reason.starts_with("cannot form the group: "), "{reason}");
    }
    assert!(start.elapsed() < BOUND, "{formed:?}");
    let y = card.upload(&values(0, 0, 100)).unwrap();
    assert!(same_bits(&card.download(&y).unwrap(), &values(0, 0, 100)));
}

/// An abort by another thread ends a kernel that waits.
#[test]
fn an_abort_ends_waiting_cards() {
    let all = [(SumPath::Host, 3), (SumPath::Shared, 3), (SumPath::Staged, 3), (SumPath::Nccl, 2)];
    for (path, size) in shown(all) {
        let start = Instant::now();
        on_ranks(size, &only(path), path == SumPath::Nccl, |rank, card, mut group| {
            let mut y = buffer(&card, 2880);
            let error = match rank {
                // Rank 1 does not come, but ends the group.
                1 => {
                    thread::sleep(Duration::from_millis(200));
                    let handle: AbortHandle = group.abort_handle();
                    thread::spawn(move || handle.abort()).join().unwrap();
                    settle(&mut group).unwrap_err()
                }
                _ => group.all_reduce(&mut y).and_then(|()| settle(&mut group)).unwrap_err(),
            };
            match rank {
                1 => assert_eq!(error, CollectiveError::Aborted, "{path}"),
                _ => assert_eq!(error.culprit(), Some(Rank(1)), "{path}, rank {rank}: {error}"),
            }
            // The group is of no more use, and says why.
            assert_eq!(group.all_reduce(&mut y).unwrap_err(), error);
            assert_eq!(group.barrier().unwrap_err(), error);
        });
        assert!(start.elapsed() < BOUND, "{path}");
    }
}

#[test]
fn a_rank_that_never_comes_ends_the_group_at_the_deadline() {
    let all = [(SumPath::Host, 3), (SumPath::Shared, 3), (SumPath::Staged, 3), (SumPath::Nccl, 2)];
    for (path, size) in shown(all) {
        let silent = size - 1;
        let deadline = Duration::from_secs(2);
        let settings = CardSettings { deadline, ..only(path) };
        let start = Instant::now();
        let errors = on_threads(group_with_deadline(size, deadline), |rank, link| {
            let card = card_of(rank, path == SumPath::Nccl);
            let mut group = CardCollective::form(&card, link, &settings).unwrap();
            group.barrier().unwrap();
            if rank == silent {
                // Who sums by NCCL asks the link who is silent, once the deadline is over.
                while !group.is_broken() && start.elapsed() < BOUND {
                    thread::sleep(Duration::from_millis(20));
                }
                return group.barrier().map(|()| "in time");
            }
            let mut y = buffer(&card, 2880);
            group.all_reduce(&mut y).and_then(|()| settle(&mut group)).map(|()| "summed")
        });
        for (rank, result) in errors.iter().take(silent).enumerate() {
            let error = result.as_ref().unwrap_err();
            assert_eq!(error.culprit(), Some(Rank(silent as u16)), "{path}, rank {rank}: {error}");
        }
        let named =
            errors[..silent].iter().any(|result| matches!(result, Err(CollectiveError::Deadline { .. })));
        assert!(named, "{path}: {errors:?}");
        assert!(errors[silent].is_err(), "{path}: it is told, too");
        assert!(start.elapsed() < BOUND, "{path}: {:?}", start.elapsed());
    }
}

/// Slow is not silent: each operation has the deadline for itself.
#[test]
fn many_sums_may_take_longer_than_the_deadline_of_one() {
    for path in [SumPath::Host, SumPath::Shared] {
        let deadline = Duration::from_secs(1);
        let settings = CardSettings { deadline, ..only(path) };
        on_ranks(2, &settings, false, |rank, card, mut group| {
            let mut y = buffer(&card, 64);
            let start = Instant::now();
            for _ in 0..8 {
                // Rank 1 comes late to each; rank 0 has asked for all of them at once.
                if rank == 1 {
                    thread::sleep(deadline / 4);
                }
                group.all_reduce(&mut y).unwrap();
            }
            settle(&mut group).unwrap_or_else(|error| panic!("{path}, rank {rank}: {error}"));
            assert!(start.elapsed() > deadline);
        });
    }
}

#[test]
fn a_rank_whose_thread_ends_is_named() {
    for path in [SumPath::Host, SumPath::Shared] {
        let start = Instant::now();
        on_ranks(2, &only(path), false, |rank, card, mut group| {
            if rank == 1 {
                return;
            }
            let mut y = buffer(&card, 2880);
            let error = group.all_reduce(&mut y).and_then(|()| settle(&mut group)).unwrap_err();
            assert!(matches!(error, CollectiveError::PeerLost { peer: Rank(1), .. }), "{path}: {error}");
        });
        assert!(start.elapsed() < BOUND, "{path}");
    }
}

/// Nobody looks after the cards here: those that wait for a rank that leaves end by themselves. (To leave is to let
/// go of memory, which a driver does when the whole card is at rest; and while it waits for that, a real one lets no
/// other thread ask it anything. On a real card, ranks that were lost so hung.)
#[test]
fn a_rank_that_leaves_ends_the_waiting_for_it_without_the_hosts_help() {
    // 2880 values are one launch, LONGEST are two.
    for (path, n) in
        [(SumPath::Host, 2880), (SumPath::Host, LONGEST), (SumPath::Shared, 2880), (SumPath::Shared, LONGEST)]
    {
        let start = Instant::now();
        on_ranks(3, &only(path), false, |rank, card, mut group| {
            let mut y = buffer(&card, LONGEST);
            fill(&card, &mut y, &values(0, rank, n));
            group.all_reduce(&mut y).unwrap();
            settle(&mut group).unwrap();
            if rank == 1 {
                // The others' cards wait by then.
                return thread::sleep(Duration::from_millis(200));
            }
            group.all_reduce(&mut y).unwrap();
            card.synchronize().unwrap();
            let error = settle(&mut group).unwrap_err();
            assert_eq!(error.culprit(), Some(Rank(1)), "{path}, rank {rank}: {error}");
        });
        assert!(start.elapsed() < BOUND, "{path}, {n} values: {:?}", start.elapsed());
    }
}

/// The last resort: a kernel that waits has a clock of its own.
#[test]
fn a_card_that_nobody_looks_after_does_not_wait_for_ever() {
    for (path, n) in [(SumPath::Host, 2880), (SumPath::Shared, LONGEST)] {
        let deadline = Duration::from_secs(1);
        let settings = CardSettings { deadline, ..only(path) };
        let start = Instant::now();
        let (done, on_done) = mpsc::channel();
        let on_done = Mutex::new(on_done);
        on_ranks(2, &settings, false, |rank, card, mut group| {
            if rank == 1 {
                // It is there, and gives nothing, until the other one is done or it is too late.
                return assert!(
                    on_done.lock().unwrap().recv_timeout(BOUND).is_ok(),
                    "{path}: it waits for ever"
                );
            }
            let mut y = buffer(&card, LONGEST);
            fill(&card, &mut y, &values(0, rank, n));
            group.all_reduce(&mut y).unwrap();
            card.synchronize().unwrap();
            done.send(()).unwrap();
            settle(&mut group).unwrap_err();
        });
        assert!(start.elapsed() < BOUND, "{path}: {:?}", start.elapsed());
    }
}

/// Who is done first leaves first, and the others still get their sums.
#[test]
fn leaving_in_peace_harms_nobody() {
    for round in 0..10 {
        let path = [SumPath::Host, SumPath::Shared][round % 2];
        on_ranks(3, &only(path), false, |rank, card, mut group| {
            let mut y = buffer(&card, LONGEST);
            fill(&card, &mut y, &values(round, rank, LONGEST));
            group.all_reduce(&mut y).unwrap();
            // Rank 0, whose the memory is, is sometimes the first and sometimes the last.
            let wait = if round < 5 { rank } else { 2 - rank };
            thread::sleep(Duration::from_millis(3 * wait as u64));
            settle(&mut group).unwrap();
            check(&card, &y, &sums(round, 3, LONGEST), "the last sum");
        });
    }
}

#[test]
fn what_is_asked_for_and_impossible_is_an_error_on_all_ranks() {
    on_threads(group_with_deadline(2, PATIENCE), |rank, link| {
        let card = card_of(rank, false);
        let error = CardCollective::form(&card, link, &only(SumPath::Nccl)).err().expect("one card for both");
        let text = error.to_string();
        assert!(text.starts_with("cannot sum by `nccl`: ") && text.contains("hint: --sum auto"), "{text}");
    });
    if !have_two_cards() {
        return;
    }
    on_threads(group_with_deadline(2, PATIENCE), |rank, link| {
        let card = card_of(rank, true);
        let error = CardCollective::form(&card, link, &only(SumPath::Shared)).err();
        let text = error.expect("a card for each").to_string();
        assert!(text.starts_with("cannot sum by `shared`: ranks 0 and 1 have different cards"), "{text}");
    });
}

#[test]
fn unasked_ranks_that_share_a_card_sum_in_its_memory() {
    on_ranks(2, &settings(SumChoice::Auto), false, |_, _, group| {
        assert_eq!(group.path(), Some(SumPath::Shared));
        assert_eq!(group.report().passed_over, []);
        assert_eq!(group.report().latencies, []);
    });
}

#[test]
fn latencies_are_told_by_length() {
    for path in [SumPath::Staged, SumPath::Host, SumPath::Shared] {
        let settings = CardSettings { latency_runs: 2, elements_max: 6000, ..only(path) };
        on_ranks(2, &settings, false, |_, _, group| {
            let lengths: Vec<usize> = group.report().latencies.iter().map(|of| of.elements).collect();
            assert_eq!(lengths, [2880, 5760, 6000]);
            assert!(group.report().latencies.iter().all(|of| of.time > Duration::ZERO));
        });
    }
}

/// `host.cu`, with a mistake in it.
fn faulty(size: usize, right: &str, wrong: &str) -> Source {
    let mut source = host::source(size);
    assert_eq!(source.text.matches(right).count(), 1, "{right}");
    source.text = Box::leak(source.text.replace(right, wrong).into_boxed_str());
    source
}

/// A mistake on one rank only, which the ways in `faulty_ways` do not survive; what comes after them does.
fn planted_in(faulty_ways: &[SumPath], right: &str, wrong: &str) {
    let only = faulty_ways.iter().map(|&path| SumChoice::Only(path));
    for choice in [SumChoice::Auto].into_iter().chain(only) {
        let settings = CardSettings { deadline: Duration::from_secs(4), ..settings(choice) };
        on_threads(group_with_deadline(3, PATIENCE), |rank, link| {
            let source = if rank == 1 { faulty(3, right, wrong) } else { host::source(3) };
            let card = card_of(rank, false);
            let group = CardCollective::form_with(&card, link, &settings, &source);
            if let SumChoice::Only(asked) = choice {
                let error = group.err().expect("it was asked for");
                let told = matches!(error, CollectiveError::NoSuchPath { path, .. } if path == asked);
                return assert!(told, "{error}");
            }
            let mut group = group.unwrap_or_else(|error| panic!("{wrong}: {error}"));
            let passed_over: Vec<SumPath> = group.report().passed_over.iter().map(|way| way.0).collect();
            assert_eq!(passed_over, faulty_ways, "{wrong}: {:?}", group.report());
            assert!(group.report().passed_over.iter().all(|(_, reason)| reason.contains("rank")));
            let left = [SumPath::Host, SumPath::Staged].into_iter().find(|path| !faulty_ways.contains(path));
            assert_eq!(group.path(), left, "{wrong}");
            let mut y = buffer(&card, 100);
            fill(&card, &mut y, &values(0, rank, 100));
            group.all_reduce(&mut y).unwrap();
            settle(&mut group).unwrap();
            check(&card, &y, &sums(0, 3, 100), wrong);
        });
    }
}

fn planted(right: &str, wrong: &str) {
    planted_in(&[SumPath::Shared, SumPath::Host], right, wrong);
}

#[test]
fn a_sum_in_another_order_does_not_pass_the_check() {
    planted(
        "r++) sum = r == 0 ? parts[0] : add(sum, parts[r - first]);",
        "r++) sum = r == 0 ? parts[RANKS - 1] : add(sum, parts[RANKS - 1 - r]);",
    );
}

#[test]
fn a_flag_that_is_never_raised_does_not_pass_the_check() {
    planted("unsigned* flag = &flags[rank * FLAGS + chunk];", "unsigned lost, *flag = &lost;");
}

#[test]
fn a_short_sum_in_another_order_does_not_pass_the_check() {
    planted(
        "sums[unit][0] = r == 0 ? a : __fadd_rn(sums[unit][0], a);",
        "sums[unit][0] = r == 0 ? 0.0f : r == 1 ? a : __fadd_rn(__fadd_rn(sums[unit][0], a), value_of(got[unit][0].first));",
    );
}

/// Values of the operation before, taken for this one's.
#[test]
fn a_short_sum_that_does_not_wait_does_not_pass_the_check() {
    planted(
        "return (unsigned)(pairs.first >> 32) == operation && (unsigned)(pairs.second >> 32) == operation;",
        "return true;",
    );
}

#[test]
fn an_odd_value_that_is_not_pushed_does_not_pass_the_check() {
    planted("mine[unit][1] = 2 * i + 1 < n ? y[2 * i + 1] : 0.0f;", "mine[unit][1] = 0.0f;");
}

/// What is wrong in a card's memory only leaves the machine's.
#[test]
fn a_fault_within_a_card_leaves_the_machines_memory() {
    planted_in(&[SumPath::Shared], "store_release_card(flag, operation);", ";");
}

#[test]
fn a_tail_that_is_not_pushed_does_not_pass_the_check() {
    planted("if (tail >= start && tail < end) slot[tail] = y[tail];", "");
}

/// A link that, on one rank, changes one bit of every sum, and lies when the check's sums are compared.
struct Corrupting(ThreadsCollective, bool);

/// How the word on the check's sums begins.
const HASH: &str = r#"{"hash":""#;

impl AllReduce<[f32]> for Corrupting {
    fn all_reduce(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        self.0.all_reduce(x)?;
        if let (true, Some(last)) = (self.1, x.last_mut()) {
            *last = f32::from_bits(last.to_bits() ^ 1);
        }
        Ok(())
    }
}

impl Collective for Corrupting {
    fn rank(&self) -> Rank {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn all_gather(&mut self, mine: &[u8], out: &mut Vec<u8>) -> Result<(), CollectiveError> {
        match std::str::from_utf8(mine) {
            Ok(text) if self.1 && text.starts_with(HASH) => {
                self.0.all_gather(text.replacen(HASH, &format!("{HASH}0"), 1).as_bytes(), out)
            }
            _ => self.0.all_gather(mine, out),
        }
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.0.barrier()
    }

    fn end(&mut self, error: CollectiveError) {
        self.0.end(error);
    }

    fn abort_handle(&self) -> AbortHandle {
        self.0.abort_handle()
    }
}

#[test]
fn a_link_that_changes_a_bit_does_not_pass_the_check() {
    on_threads(group_with_deadline(2, PATIENCE), |rank, link| {
        let link = Corrupting(link, rank == 1);
        let group = CardCollective::form(&card_of(rank, false), link, &only(SumPath::Staged));
        let error = group.err().expect("nothing is left to fall back to").to_string();
        assert!(error.contains("cannot sum by `staged`: rank 1: value 0 of 1 is"), "{error}");
    });
}

/// NCCL's sums are compared with each other, since they may be in any order.
#[test]
fn ranks_that_hold_different_bits_by_nccl_fall_back() {
    if !can_sum_by_nccl(2) {
        return;
    }
    for choice in [SumChoice::Auto, SumChoice::Only(SumPath::Nccl)] {
        on_threads(group_with_deadline(2, PATIENCE), |rank, link| {
            let link = Corrupting(link, rank == 1);
            match (choice, CardCollective::form(&card_of(rank, true), link, &settings(choice))) {
                // All ways are made out to be faulty, the last one too.
                (SumChoice::Auto, Err(CollectiveError::NoSuchPath { path, .. })) => {
                    assert_eq!(path, SumPath::Staged);
                }
                (SumChoice::Only(_), Err(error)) => {
                    let text = error.to_string();
                    assert!(text.contains("`nccl`: ranks 0 and 1 hold different sums"), "{text}");
                }
                (_, formed) => panic!("{:?}", formed.map(|group| group.path())),
            }
        });
    }
}

/// What no code of ours does: it ends with NCCL's words, and not in a wait.
#[test]
fn sums_of_different_lengths_by_nccl_are_an_error() {
    if !can_sum_by_nccl(2) {
        return;
    }
    on_ranks(2, &only(SumPath::Nccl), true, |rank, card, mut group| {
        let mut y = buffer(&card, 100 + rank);
        let start = Instant::now();
        let error = group.all_reduce(&mut y).and_then(|()| settle(&mut group)).unwrap_err();
        let told = matches!(error, CollectiveError::Nccl { .. } | CollectiveError::PeerGaveUp { .. });
        assert!(told && start.elapsed() < BOUND, "{error}");
    });
}

#[test]
fn nccl_comes_first_where_each_rank_has_a_card() {
    if !have_two_cards() {
        return;
    }
    on_ranks(2, &settings(SumChoice::Auto), true, |_, _, group| {
        assert_eq!(group.path(), Some(SumPath::Nccl));
    });
}

/// Rounded to bf16 on the way: equal on all ranks, and close.
#[test]
fn nccl_sums_in_bf16_where_it_is_told_to() {
    if !can_sum_by_nccl(2) {
        return;
    }
    let settings = CardSettings { wire: Wire::Bf16, latency_runs: 1, ..only(SumPath::Nccl) };
    let sums_of = on_ranks(2, &settings, true, |rank, card, mut group| {
        let mut y = buffer(&card, LONGEST);
        fill(&card, &mut y, &values(0, rank, LONGEST));
        group.all_reduce(&mut y).unwrap();
        settle(&mut group).unwrap();
        card.download(&y.values).unwrap()
    });
    assert!(same_bits(&sums_of[0], &sums_of[1]));
    for (i, sum) in sums_of[0].iter().enumerate() {
        let (a, b) = (value(0, 0, i), value(0, 1, i));
        assert!((sum - (a + b)).abs() <= (a.abs() + b.abs()) / 128.0, "value {i}: {sum} of {a} and {b}");
    }
    assert!(!same_bits(&sums_of[0], &sums(0, 2, LONGEST)), "they are rounded");
}

const FOUR: &str = "FLOTILLA_TEST_FOUR_CARDS";

/// A process has as many emulated cards as it was told of at its start, so this is in one of its own.
#[test]
fn four_ranks_sum_by_nccl() {
    if env::var(FOUR).is_err() {
        let test = ["--exact", "collective::four_ranks_sum_by_nccl", "--nocapture"];
        let mut other = Command::new(env::current_exe().unwrap());
        other.args(test).env(FOUR, "1").env("FLOTILLA_EMULATED_CARDS", "4");
        let output = other.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        return assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
    if !can_sum_by_nccl(4) {
        return;
    }
    for size in [3, 4] {
        let close = |found: &[f32], expected: &[f32]| {
            found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 0.01)
        };
        replay(size, SumPath::Nccl, true, close);
    }
}

const RANK: &str = "FLOTILLA_TEST_PAIR_RANK";
const PATH: &str = "FLOTILLA_TEST_PAIR_PATH";
const PEERS: &str = "FLOTILLA_TEST_PAIR_PEERS";

/// Two processes, each with a card of its own: sums, and then one of them dies.
fn sum_in_two_processes(path: SumPath) {
    let _cards = CARDS.lock().unwrap_or_else(PoisonError::into_inner);
    let (theirs, ours) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = [&ours, &theirs].map(|listener| listener.local_addr().unwrap().to_string());
    // The other one listens for itself; nobody dials rank 1 but the ranks above.
    drop(theirs);
    let mut other = Command::new(env::current_exe().unwrap())
        .args(["--exact", "collective::the_other_process", "--nocapture"])
        .env(RANK, "1")
        .env(PATH, path.to_string())
        .env(PEERS, addresses.join(","))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let error = be_one_of_two(path, Rank(0), ours, &addresses).expect_err("the other one dies");
    assert_eq!(error.culprit(), Some(Rank(1)), "{path}: {error}");
    assert!(!other.wait().unwrap().success(), "it dies");
}

#[test]
fn processes_sum_through_shared_memory() {
    sum_in_two_processes(SumPath::Host);
}

#[test]
fn processes_sum_by_nccl() {
    if can_sum_by_nccl(2) {
        sum_in_two_processes(SumPath::Nccl);
    }
}

/// Started by [`sum_in_two_processes`], and by nobody else.
#[test]
fn the_other_process() {
    let (Ok(rank), Ok(peers)) = (env::var(RANK), env::var(PEERS)) else { return };
    let peers: Vec<String> = peers.split(',').map(str::to_owned).collect();
    let rank = Rank(rank.parse().unwrap());
    let listener = TcpListener::bind(&peers[rank.index()]).unwrap();
    let SumChoice::Only(path) = env::var(PATH).unwrap().parse().unwrap() else { panic!("a path") };
    let result = be_one_of_two(path, rank, listener, &peers);
    panic!("it should have died: {result:?}");
}

fn be_one_of_two(
    path: SumPath,
    rank: Rank,
    listener: TcpListener,
    peers: &[String],
) -> Result<(), CollectiveError> {
    let link = ProcessCollective::connect(rank, listener, peers, &[7; 32], Epoch(3), PATIENCE)?;
    let card = card_of(rank.index(), true);
    let mut group = CardCollective::form(&card, link, &only(path))?;
    assert_eq!(group.path(), Some(path));
    for (round, n) in [2880, LONGEST, 1, 2880].into_iter().enumerate() {
        let mut y = buffer(&card, LONGEST);
        fill(&card, &mut y, &values(round, rank.index(), n));
        group.all_reduce(&mut y)?;
        settle(&mut group)?;
        check(&card, &y, &sums(round, 2, n), "two processes");
    }
    group.barrier()?;
    let start = Instant::now();
    if rank == Rank(1) {
        thread::sleep(Duration::from_millis(300));
        std::process::abort();
    }
    let mut y = buffer(&card, LONGEST);
    let result = group.all_reduce(&mut y).and_then(|()| settle(&mut group));
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    result
}
