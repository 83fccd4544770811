//! Sums of values in cards' memories: the same bits on all ranks on every way, as they are and replayed
//! from a graph; an end in bounded time whatever happens; and a check at the start that sees what is wrong.

mod faults;
mod lost;
mod nccl;
mod processes;

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

/// Who waits for a card sleeps for tens of microseconds, to which Linux would add 50.
#[test]
fn a_thread_that_waits_for_its_card_wakes_in_time() {
    on_ranks(2, &settings(SumChoice::Auto), false, |_, _, _| {
        // SAFETY: it reads a number of this thread's.
        assert_eq!(unsafe { libc::prctl(libc::PR_GET_TIMERSLACK) }, 1);
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
