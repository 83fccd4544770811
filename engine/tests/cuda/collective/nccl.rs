//! Sums by NCCL: by its double on the emulated card, by NVIDIA's on cards that it serves.

use super::faults::Corrupting;
use super::*;

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
    let mut sum = |y: &mut DeviceSum| {
        alone.enqueue(&stream, y.values.device_ptr_mut(&stream).0, 2880, || false).unwrap()
    };
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

/// How many communicators this process has aborted, where it can be known.
fn aborts() -> Option<i32> {
    type Aborts = unsafe extern "C" fn() -> i32;
    let nccl = Nccl::open().unwrap_or_else(|error| panic!("{error}"));
    // SAFETY: the library is open already; the function is the emulated NCCL's, of that type.
    unsafe {
        let library = libloading::Library::new(nccl.path()).ok()?;
        library.get::<Aborts>(c"flotilla_emulated_nccl_aborts").ok().map(|aborts| aborts())
    }
}

/// NCCL lets nobody leave whose sums are recorded still.
#[test]
fn a_group_whose_recordings_are_gone_is_left_in_peace() {
    if !can_sum_by_nccl(2) {
        return;
    }
    let left = on_ranks(2, &only(SumPath::Nccl), true, |rank, card, mut group| {
        let before = aborts();
        group.barrier().unwrap();
        let mut y = buffer(&card, 2880);
        let graph = record(&card, || group.all_reduce(&mut y).unwrap());
        fill(&card, &mut y, &values(0, rank, 2880));
        graph.launch().unwrap();
        settle(&mut group).unwrap();
        check(&card, &y, &sums(0, 2, 2880), "replayed");
        drop(graph);
        drop(group);
        (before, aborts())
    });
    assert!(left.iter().all(|(before, after)| before == after), "{left:?}");
}

/// Others hear at once of an error, though NCCL ends only with what was recorded.
#[test]
fn an_error_is_told_before_recordings_are_gone() {
    if !can_sum_by_nccl(2) {
        return;
    }
    on_ranks(2, &only(SumPath::Nccl), true, |rank, card, mut group| {
        let mut y = buffer(&card, 2880);
        let graph = record(&card, || group.all_reduce(&mut y).unwrap());
        let error = match rank {
            0 => group.all_reduce(&mut buffer(&card, LONGEST + 1)).unwrap_err(),
            _ => {
                let start = Instant::now();
                while !group.is_broken() && start.elapsed() < BOUND {
                    thread::sleep(Duration::from_millis(1));
                }
                group.barrier().unwrap_err()
            }
        };
        assert!(rank == 1 || matches!(error, CollectiveError::TooLong { .. }), "{error}");
        assert!(rank == 0 || error.culprit() == Some(Rank(0)), "{error}");
        drop(graph);
    });
}

/// A length that was not checked at the start: NCCL may have to connect the ranks for it, and waits for all in the call.
const NOT_CHECKED: usize = 100;

/// A sum that NCCL has not begun yet hears an abort, and a rank that leaves.
#[test]
fn a_sum_in_progress_ends_with_the_group() {
    if !can_sum_by_nccl(2) {
        return;
    }
    for leaves in [true, false] {
        on_ranks(2, &only(SumPath::Nccl), true, |rank, card, mut group| {
            let mut y = buffer(&card, NOT_CHECKED);
            group.barrier().unwrap();
            if rank == 1 {
                if leaves {
                    return;
                }
                while !group.is_broken() {
                    thread::sleep(Duration::from_millis(1));
                }
                return assert_eq!(group.barrier().unwrap_err().culprit(), Some(Rank(0)));
            }
            let handle = group.abort_handle();
            let abort = thread::spawn(move || {
                thread::sleep(Duration::from_millis(50));
                if !leaves {
                    handle.abort();
                }
            });
            let error = group.all_reduce(&mut y).and_then(|()| settle(&mut group)).unwrap_err();
            match leaves {
                true => assert_eq!(error.culprit(), Some(Rank(1)), "{error}"),
                false => assert_eq!(error, CollectiveError::Aborted),
            }
            abort.join().unwrap();
        });
    }
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
        let test = ["--exact", "collective::nccl::four_ranks_sum_by_nccl", "--nocapture"];
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
