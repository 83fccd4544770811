//! Ranks that stop, leave or never come: an end in bounded time, and the one at fault named.

use super::*;

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
