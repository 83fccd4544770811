//! Workers that are lost.

use crate::faked::{Fault, Fleet, ask_all, check, who_is_bad_ends};
use flotilla_coordinator::driver::Replicas;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn a_lost_worker_counts_against_nobody_who_gets_further() {
    let fleet = Fleet::new(Fault::Loss);
    let mut driver = fleet.replica(&Replicas::default());
    driver.ready().await;
    check(&[false; 6], &ask_all(&driver, &[false; 6], Duration::ZERO).await, "losses");
    assert!(fleet.losses() >= 5, "{} groups lost", fleet.losses());
    assert_eq!(fleet.tally.lock().unwrap().acquittals, 0);
}

#[tokio::test(start_paused = true)]
async fn who_ends_workers_ends_and_the_others_go_on() {
    let fleets: [(&[bool], u64); 6] = [
        (&[true], 3),
        (&[false, false, false, false, true], 5),
        (&[false, true, false, false, false], 6),
        (&[false, true, false, true, false], 10),
        // Two choices of one request, say.
        (&[false, false, true, true], 8),
        (&[true, false, false], 6),
    ];
    who_is_bad_ends([Fault::Deadly, Fault::DeadlyDecode], &fleets).await;
}

/// Step 1 of a group brings one whom a loss met one row further than it was, step 2 two, which is enough.
#[tokio::test(start_paused = true)]
async fn one_that_is_alone_survives_whatever_lets_it_get_further() {
    let fates: [(&[u64], bool); 6] = [
        (&[1, 3], true),
        (&[2, 3], true),
        (&[3], true),
        (&[1, 1, 9], false),
        (&[1, 9, 2], false),
        (&[2], false),
    ];
    for (steps, survives) in fates {
        let fleet = Fleet::new(Fault::LossIn(steps));
        let mut driver = fleet.replica(&Replicas::default());
        driver.ready().await;
        let told = ask_all(&driver, &[false], Duration::ZERO).await;
        check(&[!survives], &told, &format!("{steps:?}"));
        driver.ready().await;
        assert!(fleet.losses() >= 3, "{steps:?}: {} groups lost", fleet.losses());
    }
}

/// Whoever told it could tell it a hundred times.
#[tokio::test(start_paused = true)]
async fn a_worker_that_is_told_to_go_counts_against_nobody() {
    let fleet = Fleet::new(Fault::LeavesFirst(9));
    let mut driver = fleet.replica(&Replicas::default());
    driver.ready().await;
    check(&[false], &ask_all(&driver, &[false], Duration::ZERO).await, "alone");
    assert_eq!(fleet.losses(), 9);
}
