//! Steps that fail with their workers there; and, at random, either.

use crate::faked::{Fault, Fleet, Told, ask_all, check, is_whole, who_is_bad_ends};
use flotilla_coordinator::driver::{Failure, Replicas, TokenEvent};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn who_makes_steps_fail_ends_and_the_others_go_on() {
    let fleets: [(&[bool], u64); 5] = [
        (&[false, false, false, false, true], 3),
        (&[false, true, false, false, false], 5),
        (&[false, true, false, true, false], 8),
        // Two choices of one request, say.
        (&[false, false, true, true], 8),
        (&[true, false, false], 5),
    ];
    who_is_bad_ends([Fault::Poison, Fault::PoisonedDecode], &fleets).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_is_alone_is_given_up_after_three_steps() {
    let fleet = Fleet::new(Fault::Poison);
    let mut driver = fleet.replica(&Replicas::default());
    driver.ready().await;
    for round in 1..=2 {
        check(&[true], &ask_all(&driver, &[true], Duration::ZERO).await, "alone");
        driver.ready().await;
        assert_eq!(fleet.losses(), 3 * round);
    }
    // No worker is sent away for it; but who knows, if it goes on so.
    assert_eq!(fleet.tally.lock().unwrap().acquittals, 6);
    check(&[true], &ask_all(&driver, &[true], Duration::ZERO).await, "alone");
    assert_eq!(fleet.tally.lock().unwrap().acquittals, 6);
    driver.ready().await;
    check(&[false], &ask_all(&driver, &[false], Duration::ZERO).await, "after it");
}

#[tokio::test(start_paused = true)]
async fn where_every_step_fails_nobody_is_blamed_for_ever() {
    let fleet = Fleet::new(Fault::Always);
    let mut driver = fleet.replica(&Replicas::default());
    driver.ready().await;
    let told = ask_all(&driver, &[false; 20], Duration::ZERO).await;
    let lost = |(_, last): &Told| matches!(last, TokenEvent::Failed(Failure::GroupLost(_)));
    assert!(told.iter().all(lost), "{told:?}");
    driver.ready().await;
    assert_eq!(fleet.losses(), 6);
    // Whoever comes later is not tried so long.
    let told = ask_all(&driver, &[false], Duration::ZERO).await;
    assert!(!is_whole(&told[0]) && fleet.losses() == 6, "{told:?}");
    *fleet.fault.lock().unwrap() = Fault::Never;
    driver.ready().await;
    check(&[false; 3], &ask_all(&driver, &[false; 3], Duration::ZERO).await, "once it is mended");
}

/// Eighty fleets: sound requests are whole, whatever two bad ones do between them.
#[tokio::test(start_paused = true)]
async fn whoever_comes_when_the_sound_are_whole() {
    let mut seed: u64 = std::env::var("SEED").map_or(1, |seed| seed.parse().expect("SEED is a number"));
    for _ in 0..80 {
        let start = seed;
        let mut chance = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let faults = [Fault::Poison, Fault::PoisonedDecode, Fault::Deadly, Fault::DeadlyDecode];
        let fault = faults[chance(4) as usize];
        let mut bad = vec![false; 2 + chance(8) as usize];
        for _ in 0..chance(3) {
            let at = chance(bad.len() as u64) as usize;
            bad[at] = true;
        }
        if bad.iter().all(|bad| *bad) {
            continue;
        }
        let apart = Duration::from_millis(10 * chance(8));
        let fleet = Fleet::new(fault);
        let mut driver = fleet.replica(&Replicas::default());
        driver.ready().await;
        let told = ask_all(&driver, &bad, apart).await;
        check(&bad, &told, &format!("SEED={start} {fault:?} {apart:?}"));
    }
}
