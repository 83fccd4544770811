//! Workers that fail as they are told to, in virtual time, and who asks them for tokens.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flotilla_coordinator::driver::{
    self, DriverHandle, Failure, FleetHandle, Generation, Refusal, Replicas, TokenEvent,
};
use flotilla_coordinator::group::{Group, GroupError};
use flotilla_scheduler::{Scheduler, Settings};
use flotilla_shared::step::Sampled;
use flotilla_shared::{Epoch, KvBlocks, Rank, SequenceId, StepOutcome, StepPlan, TokenId};
use tokio::time::sleep;

pub const STEP: Duration = Duration::from_millis(20);
pub const TOKENS: usize = 20;
/// Prompts that begin with it are bad.
pub const POISON: TokenId = 666;

/// When workers fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
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
pub struct Tally {
    pub steps: usize,
    /// With rows of a bad prompt beside others.
    pub mixed: usize,
    pub acquittals: usize,
}

#[derive(Clone)]
pub struct Fleet {
    pub fault: Arc<Mutex<Fault>>,
    pub tally: Arc<Mutex<Tally>>,
    pub formed: Arc<Mutex<u64>>,
    /// Then none comes to be again.
    pub groups_max: u64,
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
    pub fn new(fault: Fault) -> Fleet {
        let (tally, formed) = (Arc::default(), Arc::default());
        Fleet { fault: Arc::new(Mutex::new(fault)), tally, formed, groups_max: u64::MAX }
    }

    /// A replica whose group stands again a second after it was lost.
    pub fn replica(&self, replicas: &Replicas) -> DriverHandle {
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

    pub fn losses(&self) -> u64 {
        *self.formed.lock().unwrap() - 1
    }
}

/// What became of a request: its tokens, and its last word.
pub type Told = (usize, TokenEvent);

pub async fn ask(driver: &DriverHandle, is_bad: bool) -> tokio::task::JoinHandle<Told> {
    let first = if is_bad { POISON } else { 1 };
    let prompt = [vec![first], vec![2; 40]].concat();
    let generation = || Generation { prompt: prompt.clone(), tokens_max: TOKENS, ..Generation::default() };
    let mut stream = loop {
        match driver.submit(generation()).await {
            Ok(stream) => break stream,
            // The group is lost at this moment: it comes again when there is one.
            Err(Refusal::NotReady(_)) => driver.clone().ready().await,
            Err(refusal) => panic!("it is taken in: {refusal:?}"),
        }
    };
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
pub async fn ask_all(driver: &DriverHandle, bad: &[bool], apart: Duration) -> Vec<Told> {
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

pub fn is_whole((tokens, last): &Told) -> bool {
    *tokens == TOKENS && matches!(last, TokenEvent::Finished { .. })
}

pub fn is_blamed((_, last): &Told) -> bool {
    matches!(
        last,
        TokenEvent::Failed(
            Failure::StepsFail(GroupError::Refused { .. }) | Failure::LosesWorkers(GroupError::Lost { .. })
        )
    )
}

pub fn check(bad: &[bool], told: &[Told], what: &str) {
    for (is_bad, one) in bad.iter().zip(told) {
        assert!(if *is_bad { is_blamed(one) } else { is_whole(one) }, "{what}: bad {bad:?}, {told:?}");
    }
}

/// In fleets of so many requests, of which some are bad, and after so many lost groups at most.
pub async fn who_is_bad_ends(faults: [Fault; 2], fleets: &[(&[bool], u64)]) {
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
