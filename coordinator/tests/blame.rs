//! Requests that make steps fail or end workers, in virtual time: the real driver and scheduler over workers that refuse
//! steps or are lost. Who is to blame ends with an error, everybody else has all of its tokens, and a fleet that fails
//! whatever it is given is not tried for ever.

use std::collections::{BTreeSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flotilla_coordinator::driver::{
    self, DriverHandle, Failure, FleetHandle, Generation, Replicas, TokenEvent,
};
use flotilla_coordinator::group::{Group, GroupError};
use flotilla_scheduler::{Scheduler, Settings};
use flotilla_shared::step::Sampled;
use flotilla_shared::{Epoch, KvBlocks, Rank, SequenceId, StepOutcome, StepPlan, TokenId};
use tokio::time::sleep;

const STEP: Duration = Duration::from_millis(20);
const TOKENS: usize = 20;
/// Prompts that begin with it are bad.
const POISON: TokenId = 666;

/// When workers fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// In each step that has rows of a bad prompt.
    Poison,
    /// Likewise, but only once it decodes.
    PoisonedDecode,
    /// In each step.
    Always,
    /// As `Poison` and `PoisonedDecode`, and the worker is gone.
    Deadly,
    DeadlyDecode,
    /// A worker is lost in each fourth step.
    Loss,
    /// In some steps by their number in the group, whatever is in them; in each group the next one, over and over.
    LossIn(&'static [u64]),
    /// A worker is told to go in the first step of each of so many groups.
    LeavesFirst(u64),
    Never,
}

#[derive(Debug, Default)]
struct Tally {
    steps: usize,
    /// With rows of a bad prompt beside others.
    mixed: usize,
    acquittals: usize,
}

#[derive(Clone)]
struct Fleet {
    fault: Arc<Mutex<Fault>>,
    tally: Arc<Mutex<Tally>>,
    formed: Arc<Mutex<u64>>,
    /// Then none comes to be again.
    groups_max: u64,
}

struct Workers {
    fleet: Fleet,
    bad: BTreeSet<SequenceId>,
    steps: VecDeque<Result<StepOutcome, GroupError>>,
}

impl Workers {
    fn carry_out(&mut self, plan: &StepPlan) -> Result<StepOutcome, GroupError> {
        let bad = plan.work.iter().filter(|work| work.position == 0 && work.tokens[0] == POISON);
        self.bad.extend(bad.map(|work| work.sequence));
        let mut tally = self.fleet.tally.lock().unwrap();
        tally.steps += 1;
        let has_bad = |from: u32| {
            plan.work.iter().any(|work| self.bad.contains(&work.sequence) && work.position >= from)
        };
        let bad = plan.work.iter().filter(|work| self.bad.contains(&work.sequence)).count();
        tally.mixed += usize::from(bad > 0 && bad < plan.work.len());
        let fault = *self.fleet.fault.lock().unwrap();
        if matches!(fault, Fault::LeavesFirst(groups) if plan.epoch.0 <= groups) {
            return Err(GroupError::Left { rank: Rank(0), reason: "it was told to stop".into() });
        }
        let fails = match fault {
            Fault::Poison | Fault::Deadly => has_bad(0),
            Fault::PoisonedDecode | Fault::DeadlyDecode => has_bad(1),
            Fault::Always => true,
            Fault::Loss => tally.steps.is_multiple_of(4),
            Fault::LossIn(steps) => steps[plan.epoch.0 as usize % steps.len()] == plan.step.0,
            Fault::Never | Fault::LeavesFirst(_) => false,
        };
        let refuses = matches!(fault, Fault::Poison | Fault::PoisonedDecode | Fault::Always);
        if fails && refuses {
            return Err(GroupError::Refused {
                rank: Rank(1),
                step: plan.step,
                reason: "not a number".into(),
            });
        }
        if fails {
            return Err(GroupError::Lost { rank: Rank(0), reason: "its power was cut".into() });
        }
        let sampling = plan.work.iter().filter(|work| work.sample);
        let sampled = sampling.map(|work| Sampled { sequence: work.sequence, token: 7, logprobs: None });
        let sampled = sampled.collect();
        Ok(StepOutcome { epoch: plan.epoch, step: plan.step, sampled, ..StepOutcome::default() })
    }
}

impl Group for Workers {
    fn send(&mut self, plan: &StepPlan) -> Result<(), GroupError> {
        let outcome = self.carry_out(plan);
        self.steps.push_back(outcome);
        Ok(())
    }

    async fn outcome(&mut self) -> Result<StepOutcome, GroupError> {
        sleep(STEP).await;
        self.steps.pop_front().expect("a step was sent")
    }

    fn acquit(&mut self) {
        self.fleet.tally.lock().unwrap().acquittals += 1;
    }
}

impl Fleet {
    fn new(fault: Fault) -> Fleet {
        let (tally, formed) = (Arc::default(), Arc::default());
        Fleet { fault: Arc::new(Mutex::new(fault)), tally, formed, groups_max: u64::MAX }
    }

    /// A replica whose group stands again a second after it was lost.
    fn replica(&self, replicas: &Replicas) -> DriverHandle {
        let regroup_wait = Duration::from_secs(60);
        let settings = driver::Settings { regroup_wait, replicas: replicas.clone(), ..Default::default() };
        let (driver, groups) = driver::start(Scheduler::new(Settings::default()).unwrap(), settings);
        replicas.add(driver.clone());
        tokio::spawn(self.clone().keep_formed(driver.clone(), groups));
        driver
    }

    async fn keep_formed(self, mut driver: DriverHandle, groups: FleetHandle<Workers>) {
        while *self.formed.lock().unwrap() < self.groups_max {
            let epoch = {
                let mut formed = self.formed.lock().unwrap();
                *formed += 1;
                Epoch(*formed)
            };
            let workers = Workers { fleet: self.clone(), bad: BTreeSet::new(), steps: VecDeque::new() };
            groups.formed(epoch, KvBlocks::plain(4096), workers);
            driver.ready().await;
            driver.lost().await;
            sleep(Duration::from_secs(1)).await;
        }
    }

    fn losses(&self) -> u64 {
        *self.formed.lock().unwrap() - 1
    }
}

/// What became of a request: its tokens, and its last word.
type Told = (usize, TokenEvent);

async fn ask(driver: &DriverHandle, is_bad: bool) -> tokio::task::JoinHandle<Told> {
    let first = if is_bad { POISON } else { 1 };
    let prompt = [vec![first], vec![2; 40]].concat();
    let generation = Generation { prompt, tokens_max: TOKENS, ..Generation::default() };
    let mut stream = driver.submit(generation).await.expect("it is taken in");
    tokio::spawn(async move {
        let mut tokens = 0;
        loop {
            match stream.next().await {
                TokenEvent::Token { .. } => tokens += 1,
                last => return (tokens, last),
            }
        }
    })
}

/// Asks one after the other, `apart` between them; what became of each.
async fn ask_all(driver: &DriverHandle, bad: &[bool], apart: Duration) -> Vec<Told> {
    let mut asked = Vec::new();
    for &is_bad in bad {
        driver.clone().ready().await;
        asked.push(ask(driver, is_bad).await);
        sleep(apart).await;
    }
    let mut told = Vec::new();
    for one in asked {
        told.push(tokio::time::timeout(Duration::from_secs(600), one).await.expect("it ends").unwrap());
    }
    told
}

fn is_whole((tokens, last): &Told) -> bool {
    *tokens == TOKENS && matches!(last, TokenEvent::Finished { .. })
}

fn is_blamed((_, last): &Told) -> bool {
    matches!(
        last,
        TokenEvent::Failed(
            Failure::StepsFail(GroupError::Refused { .. }) | Failure::LosesWorkers(GroupError::Lost { .. })
        )
    )
}

fn check(bad: &[bool], told: &[Told], what: &str) {
    for (is_bad, one) in bad.iter().zip(told) {
        assert!(if *is_bad { is_blamed(one) } else { is_whole(one) }, "{what}: bad {bad:?}, {told:?}");
    }
}

/// In fleets of so many requests, of which some are bad, and after so many lost groups at most.
async fn who_is_bad_ends(faults: [Fault; 2], fleets: &[(&[bool], u64)]) {
    for fault in faults {
        for &(bad, losses_max) in fleets {
            let fleet = Fleet::new(fault);
            let mut driver = fleet.replica(&Replicas::default());
            driver.ready().await;
            let told = ask_all(&driver, bad, Duration::ZERO).await;
            check(bad, &told, &format!("{fault:?}"));
            assert!(fleet.losses() <= losses_max, "{fault:?} {bad:?}: {} groups lost", fleet.losses());
        }
    }
}

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

async fn lost_times(driver: &mut DriverHandle, times: usize) {
    for time in 0..times {
        if time > 0 {
            driver.ready().await;
        }
        driver.lost().await;
    }
}

/// A replica that loses its group three times and then has none any more, and another that has work.
async fn one_that_does_not_come_back(fault: Fault, bad: bool) -> (Vec<Told>, Fleet, Duration) {
    let home = Fleet { groups_max: 3, ..Fleet::new(Fault::LossIn(&[1])) };
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
    let home = Fleet { groups_max: 3, ..Fleet::new(Fault::LossIn(&[1])) };
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

#[tokio::test(start_paused = true)]
async fn with_two_replicas_it_does_not_end_workers_of_one_and_the_other_for_ever() {
    let fleet = Fleet::new(Fault::Deadly);
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

#[tokio::test(start_paused = true)]
async fn with_two_replicas_it_does_not_go_from_one_to_the_other_for_ever() {
    let fleet = Fleet::new(Fault::Poison);
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
