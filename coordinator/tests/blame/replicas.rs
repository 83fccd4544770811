//! Where there is another replica to go to.

use crate::faked::{Fault, Fleet, TOKENS, Told, ask, ask_all, check, is_blamed, is_whole};
use flotilla_coordinator::driver::{DriverHandle, Generation, Readiness, Refusal, Replicas};
use flotilla_coordinator::router::ReplicaRouter;
use std::pin::pin;
use std::time::Duration;

async fn lost_times(driver: &mut DriverHandle, times: usize) {
    for time in 0..times {
        if time > 0 {
            driver.ready().await;
        }
        driver.lost().await;
    }
}

/// Each of its groups is lost in the first step, three of them; then it has none any more.
fn home_that_is_lost() -> Fleet {
    Fleet { groups_max: 3, ..Fleet::new(Fault::LossIn(&[1])) }
}

/// Such a replica, and another that has work.
async fn one_that_does_not_come_back(fault: Fault, bad: bool) -> (Vec<Told>, Fleet, Duration) {
    let home = home_that_is_lost();
    let away = Fleet::new(fault);
    let replicas = Replicas::default();
    let mut one = home.replica(&replicas);
    one.ready().await;
    let (first, second) = tokio::join!(ask(&one, false), ask(&one, bad));
    let begun = tokio::time::Instant::now();
    lost_times(&mut one, 3).await;
    // Only now does the other serve.
    let mut other = away.replica(&replicas);
    other.ready().await;
    let asked = async { (first.await.unwrap(), second.await.unwrap()) };
    let mut asked = pin!(tokio::time::timeout(Duration::from_secs(600), asked));
    let mut busy = Vec::new();
    let told = loop {
        let beside = ask(&other, false).await;
        tokio::select! {
            told = &mut asked => break told.expect("they end"),
            beside = beside => busy.push(beside.unwrap()),
        }
        other.ready().await;
    };
    let took = begun.elapsed();
    other.ready().await;
    ([vec![told.0, told.1], busy].concat(), away, took)
}

/// The second is held: it met three losses, of which two were chance for all that is known.
#[tokio::test(start_paused = true)]
async fn one_whose_replica_does_not_come_back_is_tried_alone_in_another() {
    let (told, away, took) = one_that_does_not_come_back(Fault::Never, false).await;
    assert!(told.iter().all(is_whole), "{:?}", &told[..2]);
    assert!(took > Duration::from_secs(15), "it is waited for: {took:?}");
    assert_eq!(away.losses(), 0);
    let (told, away, _) = one_that_does_not_come_back(Fault::Deadly, true).await;
    assert!(is_blamed(&told[1]), "{:?}", told[1]);
    assert!(is_whole(&told[0]) && told[2..].iter().all(is_whole), "{told:?}");
    let mixed = away.tally.lock().unwrap().mixed;
    assert_eq!((away.losses(), mixed), (2, 0), "others made way for it");
}

#[tokio::test(start_paused = true)]
async fn one_whose_replica_does_not_come_back_goes_at_once_to_one_that_is_idle() {
    let home = home_that_is_lost();
    let (replicas, idle) = (Replicas::default(), Fleet::new(Fault::Never));
    let mut one = home.replica(&replicas);
    one.ready().await;
    let (first, other) = tokio::join!(ask(&one, false), ask(&one, false));
    lost_times(&mut one, 1).await;
    // Its client leaves after the first loss.
    other.abort();
    one.ready().await;
    lost_times(&mut one, 2).await;
    let begun = tokio::time::Instant::now();
    idle.replica(&replicas).ready().await;
    let told = first.await.unwrap();
    assert!(is_whole(&told), "{told:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// The other replica is idle, but not for those who go there first.
#[tokio::test(start_paused = true)]
async fn one_with_three_losses_does_not_follow_the_others_at_once() {
    let home = home_that_is_lost();
    let (replicas, away) = (Replicas::default(), Fleet::new(Fault::Deadly));
    let mut one = home.replica(&replicas);
    one.ready().await;
    let (first, second) = tokio::join!(ask(&one, false), ask(&one, true));
    lost_times(&mut one, 3).await;
    away.replica(&replicas).ready().await;
    let told = first.await.unwrap();
    assert!(is_whole(&told), "{told:?}");
    assert_eq!(away.losses(), 0, "its workers were lost before the others were done");
    let told = second.await.unwrap();
    assert!(is_blamed(&told), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn with_two_replicas_it_does_not_end_workers_of_one_and_the_other_for_ever() {
    ends_among_two_replicas(Fault::Deadly).await;
}

#[tokio::test(start_paused = true)]
async fn with_two_replicas_it_does_not_go_from_one_to_the_other_for_ever() {
    ends_among_two_replicas(Fault::Poison).await;
}

/// The third of one replica's four clients asks what is not answered; all others are.
async fn ends_among_two_replicas(fault: Fault) {
    let fleet = Fleet::new(fault);
    let replicas = Replicas::default();
    let (mut one, mut other) = (fleet.replica(&replicas), fleet.replica(&replicas));
    one.ready().await;
    other.ready().await;
    let (here, there) = ([false, false, true, false], [false; 4]);
    let told = tokio::join!(
        ask_all(&one, &here, Duration::from_millis(30)),
        ask_all(&other, &there, Duration::from_millis(30))
    );
    check(&here, &told.0, "here");
    check(&there, &told.1, "there");
    assert!(fleet.losses() <= 10, "{} groups lost", fleet.losses());
}

/// It moved at once to another replica, where nobody knew of the step that had failed.
#[tokio::test(start_paused = true)]
async fn one_that_makes_steps_fail_does_so_in_one_other_replica_at_most() {
    for bad in [&[true][..], &[false, true, false], &[false, false, true, true]] {
        for fault in [Fault::Poison, Fault::PoisonedDecode] {
            let (replicas, fleets) = (Replicas::default(), [(); 4].map(|()| Fleet::new(fault)));
            let mut drivers: Vec<DriverHandle> =
                fleets.iter().map(|fleet| fleet.replica(&replicas)).collect();
            for driver in &mut drivers {
                driver.ready().await;
            }
            let told = ask_all(&drivers[0], bad, Duration::ZERO).await;
            check(bad, &told, &format!("{fault:?}"));
            for driver in &mut drivers {
                driver.ready().await;
            }
            let losses = fleets.each_ref().map(Fleet::losses);
            let lost = losses.iter().filter(|losses| **losses > 0).count();
            // The first, and one for each that goes elsewhere.
            let lost_max = 1 + bad.iter().filter(|is_bad| **is_bad).count();
            assert!(lost <= lost_max, "{fault:?} {bad:?}: groups lost {losses:?}");
        }
    }
}

/// Whoever is asked does not say how many it was just sent.
#[tokio::test(start_paused = true)]
async fn those_who_move_are_shared_by_the_replicas_that_serve() {
    let home = Fleet { groups_max: 1, ..Fleet::new(Fault::LossIn(&[2])) };
    let (replicas, fleets) = (Replicas::default(), [(); 2].map(|()| Fleet::new(Fault::Never)));
    let mut one = home.replica(&replicas);
    one.ready().await;
    let others = fleets.each_ref().map(|fleet| fleet.replica(&replicas));
    for other in &others {
        other.clone().ready().await;
    }
    let told = ask_all(&one, &[false; 6], Duration::ZERO).await;
    check(&[false; 6], &told, "moved");
    let tokens = others.each_ref().map(|other| other.stats().counters.generated_tokens);
    assert!(tokens.iter().all(|&tokens| tokens > 2 * TOKENS as u64), "{tokens:?} of {}", 6 * TOKENS);
}

fn generation() -> Generation {
    Generation { prompt: vec![1; 100], tokens_max: TOKENS, ..Generation::default() }
}

/// All are chosen for before any driver says what it has to do.
#[tokio::test(start_paused = true)]
async fn those_of_a_burst_count_each_other() {
    let (replicas, fleet) = (Replicas::default(), Fleet::new(Fault::Never));
    let drivers = [(); 2].map(|()| fleet.replica(&replicas));
    for driver in &drivers {
        driver.clone().ready().await;
    }
    let router = ReplicaRouter::new(replicas);
    let ask = || {
        let router = router.clone();
        async move { router.submit(generation()).await.expect("it is taken in") }
    };
    // They begin alike, so one replica is asked first.
    let asked: Vec<_> = (0..16).map(|_| tokio::spawn(ask())).collect();
    let mut streams = Vec::new();
    for one in asked {
        streams.push(one.await.unwrap());
    }
    let busy = drivers.each_ref().map(DriverHandle::busy);
    assert!(busy.iter().sum::<usize>() == 16 && busy.iter().all(|&busy| busy >= 4), "{busy:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_being_dissolved_is_sent_nothing_more() {
    let (replicas, fleet) = (Replicas::default(), Fleet::new(Fault::Never));
    let drivers = [(); 2].map(|()| fleet.replica(&replicas));
    for driver in &drivers {
        driver.clone().ready().await;
    }
    let router = ReplicaRouter::new(replicas);
    router.dissolve(1, false).expect("the other serves");
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(router.submit(generation()).await.expect("it is taken in"));
    }
    assert_eq!(drivers.each_ref().map(DriverHandle::busy), [4, 0]);
    router.dissolve(0, true).expect("by force");
    assert!(matches!(router.submit(generation()).await, Err(Refusal::NotReady(Readiness::Lost { .. }))));
}
