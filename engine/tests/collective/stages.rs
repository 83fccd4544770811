//! Stages: each sums by itself, x goes from one to the next whole, tokens go back, and when a rank fails every stage
//! ends, soon, with an error that says whose fault it is, and what was awaited.

use crate::groups::{Kind, PATIENT, run_stages};
use flotilla_engine::collective::{Collective, CollectiveError, Operation};
use flotilla_shared::Rank;
use std::thread;
use std::time::{Duration, Instant};

/// Far less than [`PATIENT`]: what ends before did not wait for the deadline.
const SOON: Duration = Duration::from_secs(5);

const STAGES: [&[usize]; 5] = [&[1, 1], &[1, 3], &[3, 2], &[2, 1, 3], &[1, 2, 2, 1]];

/// Which stage a rank is of, and whether it is the last.
fn stage(stages: &[usize], rank: usize) -> (usize, bool) {
    let mut end = 0;
    let is_in = |size: &usize| {
        end += size;
        rank < end
    };
    let stage = stages.iter().position(is_in).unwrap();
    (stage, stage + 1 == stages.len())
}

fn value(round: usize, i: usize) -> f32 {
    (round * 1000 + i % 997) as f32
}

/// Short and long ones in turn, several on their way at once: the first stage waits for tokens now and then only.
#[test]
fn x_goes_on_and_tokens_go_back() {
    const LENGTHS: [usize; 5] = [2880, 16_384, 16_385, 100_003, 1];
    for kind in Kind::ALL {
        for stages in STAGES {
            let cut = stages.to_vec();
            let sums = run_stages(kind, stages, PATIENT, move |mut group| {
                let (stage, is_last) = stage(&cut, group.rank().index());
                assert_eq!((group.size(), group.member(group.place())), (cut[stage], group.rank()));
                let (mut heard, mut told) = (0, Vec::new());
                for round in 0..40 {
                    let n = LENGTHS[round % LENGTHS.len()];
                    let mut x = vec![0.0; n];
                    match stage {
                        0 => x = (0..n).map(|i| value(round, i)).collect(),
                        _ => group.take_over(&mut x).unwrap(),
                    }
                    assert!(
                        x.iter().enumerate().all(|(i, x)| *x == value(round, i) + stage as f32),
                        "{kind:?} {cut:?}, round {round}, stage {stage}"
                    );
                    // Every rank's part of one, in sum.
                    let mut one = [group.place() as f32 + 1.0; 3];
                    group.all_reduce(&mut one).unwrap();
                    let ranks = group.size() as f32;
                    assert_eq!(one, [ranks * (ranks + 1.0) / 2.0; 3]);
                    x.iter_mut().for_each(|x| *x += 1.0);
                    match is_last {
                        true => group.tell(&vec![round as u8; round]).unwrap(),
                        false => group.hand_on(&mut x).unwrap(),
                    }
                    // Whoever has told all may be gone.
                    while stage == 0 && heard < 40 && group.hear(heard + 3 < round, &mut told).unwrap() {
                        assert_eq!(told, vec![heard as u8; heard]);
                        heard += 1;
                    }
                }
                while stage == 0 && heard < 40 {
                    assert!(group.hear(true, &mut told).unwrap());
                    heard += 1;
                }
                group.barrier().unwrap();
                heard
            });
            let expected = (0..stages.iter().sum()).map(|rank| 40 * usize::from(stage(stages, rank).0 == 0));
            assert_eq!(sums, expected.collect::<Vec<_>>(), "{kind:?} {stages:?}");
        }
    }
}

/// Of stages of two, one and two ranks, rank `who` does `instead` of its fifth step; the errors of the others, which may be
/// some steps behind it.
fn errors_when(
    kind: Kind,
    who: u16,
    deadline: Duration,
    instead: impl Fn(Box<dyn Collective>) + Clone + Send + 'static,
) -> Vec<(Rank, CollectiveError)> {
    let start = Instant::now();
    let stages = [2, 1, 2];
    let errors = run_stages(kind, &stages, deadline, move |mut group| {
        let (rank, mut x) = (group.rank(), vec![1.0; 2880]);
        let (stage, is_last) = stage(&stages, rank.index());
        let mut step = || -> Result<(), CollectiveError> {
            if stage > 0 {
                group.take_over(&mut x)?;
            }
            group.all_reduce(&mut x)?;
            if is_last {
                group.tell(b"token")?
            } else {
                group.hand_on(&mut x)?
            }
            if stage == 0 {
                group.hear(true, &mut Vec::new())?;
            }
            Ok(())
        };
        if rank == Rank(who) {
            (0..4).for_each(|_| step().unwrap());
            instead(group);
            return None;
        }
        let error = (0..).find_map(|_| step().err()).unwrap();
        assert_eq!(group.barrier(), Err(error.clone()), "a group that failed stays so");
        Some((rank, error))
    });
    assert!(start.elapsed() < SOON, "{kind:?}: {:?}", start.elapsed());
    errors.into_iter().flatten().collect()
}

#[test]
fn a_rank_that_goes_ends_every_stage_and_is_named() {
    for kind in Kind::ALL {
        for who in 0..5 {
            let errors = errors_when(kind, who, PATIENT, drop);
            assert_eq!(errors.len(), 4);
            // By sockets, a peer may see another's link close before it hears why.
            let named = errors.iter().filter(|(_, error)| error.culprit() == Some(Rank(who)));
            assert!(named.count() >= 1, "{kind:?}, rank {who}: {errors:?}");
            let others = errors.iter().filter(|(_, error)| error.culprit().is_none());
            assert_eq!(others.count(), 0, "{kind:?}, rank {who}: {errors:?}");
        }
    }
}

#[test]
fn a_stage_that_hangs_is_named_at_the_deadline_with_what_was_awaited() {
    let hangs = |group: Box<dyn Collective>| {
        thread::sleep(Duration::from_millis(1500));
        drop(group);
    };
    for kind in Kind::ALL {
        let errors = errors_when(kind, 2, Duration::from_millis(300), hangs);
        let late: Vec<_> =
            errors.iter().filter(|(_, error)| matches!(error, CollectiveError::Deadline { .. })).collect();
        assert!(!late.is_empty(), "{kind:?}: {errors:?}");
        // Whoever waits for it, or for one who does.
        for (rank, error) in late {
            let words = match rank.0 {
                0 | 1 => {
                    ["rank 3 is silent: the return of tokens to stage 0", "rank 4 is silent: the return"]
                }
                _ => ["rank 2 is silent: the hand-over from stage 1 to stage 2 waited for"; 2],
            };
            assert!(words.iter().any(|words| error.to_string().starts_with(words)), "{kind:?}: {error}");
        }
    }
}

#[test]
fn a_rank_that_ends_its_stage_ends_the_others_because_of_whom_it_blames() {
    for kind in Kind::ALL {
        let ends = |mut group: Box<dyn Collective>| {
            let (peer, operation) = (Rank(4), Operation::AllReduce);
            group.end(CollectiveError::PeerLost { peer, operation, reason: "its card is silent".into() });
        };
        let errors = errors_when(kind, 2, PATIENT, ends);
        let says = |(_, error): &&(Rank, CollectiveError)| error.culprit() == Some(Rank(4));
        assert!(errors.iter().any(|error| says(&error)), "{kind:?}: {errors:?}");
    }
}

/// A rank of one stage that waits for another knows that it was aborted, and both stages end.
#[test]
fn an_abort_ends_what_waits_for_another_stage() {
    for kind in Kind::ALL {
        let start = Instant::now();
        let errors = run_stages(kind, &[1, 1], PATIENT, move |mut group| {
            if group.rank() == Rank(0) {
                return (0..).find_map(|_| group.hear(true, &mut Vec::new()).err()).unwrap();
            }
            let handle = group.abort_handle();
            let aborter = thread::spawn(move || {
                thread::sleep(Duration::from_millis(50));
                handle.abort();
            });
            let error = group.take_over(&mut [0.0; 8]).unwrap_err();
            aborter.join().unwrap();
            error
        });
        assert!(start.elapsed() < SOON);
        assert_eq!(errors[1], CollectiveError::Aborted, "{kind:?}");
        assert_eq!(errors[0].culprit(), Some(Rank(1)), "{kind:?}: {}", errors[0]);
    }
}

#[test]
fn stages_that_do_not_hand_over_the_same_say_so() {
    for kind in Kind::ALL {
        let errors = run_stages(kind, &[1, 1], PATIENT, |mut group| match group.rank() {
            Rank(0) => {
                group.hand_on(&mut [0.0; 10]).unwrap();
                group.hear(true, &mut Vec::new()).unwrap_err()
            }
            _ => group.take_over(&mut [0.0; 11]).unwrap_err(),
        });
        let words = "during the hand-over from stage 0 to stage 1: its length is 40, expected 44";
        let bytes = errors[1].to_string();
        assert!(bytes.starts_with("rank 0 is out of step") && bytes.contains(words), "{kind:?}: {bytes}");
        assert_eq!(errors[0].culprit(), Some(Rank(0)), "{kind:?}: {}", errors[0]);
    }
}
