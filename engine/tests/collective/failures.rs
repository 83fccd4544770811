//! When a rank fails, the others' operations end, soon, with an error that says whose fault it is.

use crate::groups::{Kind, PATIENT, connect, listeners, run};
use flotilla_engine::collective::{Collective, CollectiveError, Operation};
use flotilla_shared::Rank;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Far less than [`PATIENT`]: what ends before did not wait for the deadline.
const SOON: Duration = Duration::from_secs(5);

/// All but rank 1, which does `instead`, sum until they fail; returns their errors.
fn errors_when_rank_1(
    kind: Kind,
    deadline: Duration,
    instead: impl Fn(Box<dyn Collective>) + Clone + Send + 'static,
) -> Vec<CollectiveError> {
    let start = Instant::now();
    let errors = run(kind, 4, deadline, move |mut group| {
        let mut x = vec![1.0f32; 2880];
        for _ in 0..10 {
            group.all_reduce(&mut x).unwrap();
        }
        if group.rank() == Rank(1) {
            instead(group);
            return None;
        }
        let error = loop {
            if let Err(error) = group.all_reduce(&mut x) {
                break error;
            }
        };
        assert_eq!(group.barrier(), Err(error.clone()), "a group that failed stays so");
        Some(error)
    });
    assert!(start.elapsed() < SOON, "{kind:?}: {:?}", start.elapsed());
    let errors: Vec<_> = errors.into_iter().flatten().collect();
    assert_eq!(errors.len(), 3);
    errors
}

#[test]
fn a_rank_that_goes_is_named() {
    for kind in Kind::ALL {
        for error in errors_when_rank_1(kind, PATIENT, drop) {
            assert_eq!(error.culprit(), Some(Rank(1)), "{kind:?}: {error}");
            let words = ["rank 1 left the group during all-reduce", "because of rank 1"];
            assert!(words.iter().any(|word| error.to_string().contains(word)), "{error}");
            assert!(error.to_string().contains("\nhint: "), "{error}");
        }
    }
}

#[test]
fn a_rank_that_ends_the_group_says_because_of_whom() {
    for kind in Kind::ALL {
        let ends = |mut group: Box<dyn Collective>| {
            let (peer, operation) = (Rank(3), Operation::AllReduce);
            let lost = CollectiveError::PeerLost { peer, operation, reason: "its card is silent".into() };
            group.end(lost.clone());
            assert!(group.is_broken());
            assert_eq!(group.barrier(), Err(lost));
            // The first reason stays.
            group.end(CollectiveError::Aborted);
            assert_eq!(group.barrier().unwrap_err().culprit(), Some(Rank(3)));
        };
        let told = errors_when_rank_1(kind, PATIENT, ends);
        let says = |error: &CollectiveError| error.culprit() == Some(Rank(3));
        assert!(told.iter().any(says), "{kind:?}: {told:?}");
        // By sockets, a peer may see another's link close before it hears why.
        assert!(kind != Kind::Threads || told.iter().all(says), "{kind:?}: {told:?}");
    }
}

/// Without an operation of its own, which would have to wait.
#[test]
fn a_rank_that_goes_can_be_seen() {
    for kind in Kind::ALL {
        run(kind, 3, PATIENT, move |mut group| {
            group.barrier().unwrap();
            if group.rank() == Rank(1) {
                return;
            }
            let start = Instant::now();
            while !group.is_broken() {
                assert!(start.elapsed() < SOON, "{kind:?}");
                thread::sleep(Duration::from_millis(1));
            }
            assert!(group.barrier().is_err());
        });
        run(kind, 3, PATIENT, move |mut group| {
            for _ in 0..3 {
                assert!(!group.is_broken());
                group.barrier().unwrap();
                thread::sleep(Duration::from_millis(10));
                assert!(!group.is_broken());
                group.barrier().unwrap();
            }
        });
    }
}

#[test]
fn a_rank_that_panics_is_named() {
    let panics = |group: Box<dyn Collective>| {
        let _ = thread::spawn(move || {
            let _group = group;
            panic!("as a broken kernel would")
        })
        .join();
    };
    for kind in Kind::ALL {
        for error in errors_when_rank_1(kind, PATIENT, panics) {
            assert_eq!(error.culprit(), Some(Rank(1)), "{kind:?}: {error}");
        }
    }
}

#[test]
fn a_rank_that_hangs_is_named_at_the_deadline() {
    let hangs = |group: Box<dyn Collective>| {
        thread::sleep(Duration::from_millis(1500));
        drop(group);
    };
    for kind in Kind::ALL {
        let errors = errors_when_rank_1(kind, Duration::from_millis(300), hangs);
        for error in &errors {
            assert_eq!(error.culprit(), Some(Rank(1)), "{kind:?}: {error}");
        }
        let late = errors.iter().find(|error| matches!(error, CollectiveError::Deadline { .. }));
        let late = late.expect("someone saw the deadline pass").to_string();
        assert!(late.starts_with("rank 1 is silent: all-reduce waited for "), "{late}");
        assert!(late.contains("(1 of 4 ranks still missing)"), "{late}");
    }
}

#[test]
fn an_aborted_rank_knows_that_it_was_and_the_others_blame_it() {
    for kind in Kind::ALL {
        let start = Instant::now();
        let (sender, handles) = mpsc::channel();
        let aborter = thread::spawn(move || {
            let handles: Vec<_> = (0..3).map(|_| handles.recv().unwrap()).collect();
            thread::sleep(Duration::from_millis(50));
            let (_, handle): &(Rank, flotilla_engine::collective::AbortHandle) =
                handles.iter().find(|(rank, _)| *rank == Rank(2)).unwrap();
            handle.abort();
            handle.clone().abort();
        });
        let errors = run(kind, 3, PATIENT, move |mut group| {
            sender.send((group.rank(), group.abort_handle())).unwrap();
            // Rank 0 never comes: the others block.
            if group.rank() == Rank(0) {
                thread::sleep(Duration::from_millis(400));
            }
            let error = (0..).find_map(|_| group.all_reduce(&mut [1.0; 8]).err()).unwrap();
            (group.rank(), error)
        });
        aborter.join().unwrap();
        assert!(start.elapsed() < SOON);
        for (rank, error) in errors {
            match rank {
                Rank(2) => assert_eq!(error, CollectiveError::Aborted, "{kind:?}"),
                _ => assert_eq!(error.culprit(), Some(Rank(2)), "{kind:?}, rank {rank}: {error}"),
            }
        }
    }
}

#[test]
fn ranks_that_do_not_do_the_same_say_so() {
    for kind in Kind::ALL {
        let errors = run(kind, 2, PATIENT, |mut group| match group.rank() {
            Rank(0) => group.all_reduce(&mut [0.0; 10]).unwrap_err(),
            _ => group.all_reduce(&mut [0.0; 11]).unwrap_err(),
        });
        // One may have ended the group before the other had compared.
        assert!(
            errors.iter().any(|error| error.to_string().contains("length is 4")
                || error.to_string().contains("length is 1")),
            "{kind:?}: {errors:?}"
        );
        let errors = run(kind, 2, PATIENT, |mut group| match group.rank() {
            Rank(0) => group.barrier().unwrap_err(),
            _ => group.all_gather(b"x", &mut Vec::new()).unwrap_err(),
        });
        let mismatch =
            |error: &CollectiveError| matches!(error, CollectiveError::Mismatch { field: "operation", .. });
        assert!(errors.iter().any(mismatch), "{kind:?}: {errors:?}");
    }
}

/// A rank that is done and goes takes nothing from those who still read its last words.
#[test]
fn a_rank_may_go_when_it_is_done() {
    for kind in Kind::ALL {
        for _ in 0..20 {
            let sums = run(kind, 3, PATIENT, move |mut group| {
                let mut x = vec![1.0f32; 40_000];
                group.all_reduce(&mut x).unwrap();
                if group.rank() != Rank(0) {
                    thread::sleep(Duration::from_micros(200));
                }
                x[39_999]
            });
            assert_eq!(sums, [3.0; 3], "{kind:?}");
        }
    }
}

#[test]
fn a_gather_that_is_too_long_is_refused_by_the_sender() {
    let (mut listeners, peers) = listeners(1);
    let mut solo = connect(0, listeners.remove(0), &peers, PATIENT).unwrap();
    let error = solo.all_gather(&vec![0; (64 << 20) + 1], &mut Vec::new()).unwrap_err().to_string();
    assert!(error.starts_with("all-gather of 67108865 bytes, expected at most 67108864"), "{error}");
}
