//! A group's first step, whom its failures count against, and when it ends for a larger one.

use crate::faked::{Joined, SLOW, TOKEN, formation, hello, ready_worker, sampled, worker_as, worker_on};
use flotilla_coordinator::fleet::{After, Fleet, Formation, Members, Progress};
use flotilla_coordinator::group::{Group, GroupError};
use flotilla_engine::weights::{Synthetic, WeightSource};
use flotilla_proto::Hello;
use flotilla_proto::wire::{self, from_worker};
use flotilla_shared::step::SequenceWork;
use flotilla_shared::{Epoch, Held, KvBlocks, LinkRate, ModelSpec, Plan, Rank, SequenceId, StepId, StepPlan};
use std::time::Duration;
use tokio::sync::watch;

#[tokio::test]
async fn a_group_carries_out_a_step_before_it_serves() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let mut steps = ready_worker(&fleet, sampled).await.steps;
    let progress = watch::Sender::new(Progress::Ready);
    let mut group = fleet.form(Epoch(3), &formation(), After::Nothing, &progress).await.unwrap();
    let first = steps.try_recv().expect("a step was carried out");
    assert_eq!((first.epoch, first.step, first.work[0].tokens.as_slice()), (3, 1, &[5][..]));
    // Whoever drives it begins with one, in whose message the sequence of that step is released.
    let work =
        vec![SequenceWork { sequence: SequenceId(1), tokens: vec![6], sample: true, ..Default::default() }];
    group.send(&StepPlan { epoch: Epoch(3), step: StepId(1), work, ..Default::default() }).unwrap();
    assert_eq!(group.outcome().await.unwrap().step, StepId(1));
    assert_eq!(group.rank_times()[0].compute_us, 9);
    let second = steps.recv().await.unwrap();
    assert_eq!((second.step, second.release), (2, vec![first.work[0].sequence]));
    group.send(&StepPlan { epoch: Epoch(3), step: StepId(2), ..Default::default() }).unwrap();
    assert_eq!(group.outcome().await.unwrap().step, StepId(2));
    assert_eq!(steps.recv().await.unwrap().release, Vec::<u64>::new());
}

#[tokio::test]
async fn a_group_whose_first_step_fails_does_not_come_to_be() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let _steps = ready_worker(&fleet, |plan| {
        let (reason, epoch) = ("a kernel is missing".to_owned(), plan.epoch);
        vec![from_worker::Message::Failed(wire::Failed { reason, epoch, blames_another: false })]
    })
    .await;
    let progress = watch::Sender::new(Progress::Ready);
    let formed = fleet.form(Epoch(1), &formation(), After::Nothing, &progress).await;
    let error = formed.err().expect("it failed").to_string();
    assert!(error.contains("first step failed") && error.contains("a kernel is missing"), "{error}");
    assert_eq!(*progress.borrow(), Progress::FirstStep);
}

fn failed(plan: &wire::StepPlan, reason: &str, blames_another: bool) -> Vec<from_worker::Message> {
    let (reason, epoch) = (reason.to_owned(), plan.epoch);
    vec![from_worker::Message::Failed(wire::Failed { reason, epoch, blames_another })]
}

/// Every step but the first of a group fails.
fn fails(plan: wire::StepPlan) -> Vec<from_worker::Message> {
    if plan.step == 1 { sampled(plan) } else { failed(&plan, "not a number", false) }
}

/// How the next step of a group of so many workers fails.
async fn fail_once(fleet: &Fleet, formation: &Formation, epoch: u64, acquits: bool) -> GroupError {
    let progress = watch::Sender::new(Progress::Ready);
    let mut group = fleet.form(Epoch(epoch), formation, After::Nothing, &progress).await.unwrap();
    let work = vec![SequenceWork { sequence: SequenceId(1), tokens: vec![6], ..Default::default() }];
    let plan = StepPlan { epoch: Epoch(epoch), step: StepId(1), work, ..Default::default() };
    group.send(&plan).unwrap();
    let error = group.outcome().await.expect_err("it fails");
    if acquits {
        group.acquit();
    }
    error
}

/// In a step and between two: it was told to go, which is no fault of what was in the step.
#[tokio::test]
async fn a_worker_that_says_that_it_leaves_is_not_lost() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let _steps = ready_worker(&fleet, |plan| match plan.step {
        1 => sampled(plan),
        _ => vec![from_worker::Message::Leaving(wire::Leaving { reason: "it was told to stop".into() })],
    })
    .await;
    let progress = watch::Sender::new(Progress::Ready);
    let mut group = fleet.form(Epoch(1), &formation(), After::Nothing, &progress).await.unwrap();
    let loss = group.loss();
    let work = vec![SequenceWork { sequence: SequenceId(1), tokens: vec![6], ..Default::default() }];
    group.send(&StepPlan { epoch: Epoch(1), step: StepId(1), work, ..Default::default() }).unwrap();
    let left = GroupError::Left { rank: Rank(0), reason: "it leaves: it was told to stop".into() };
    assert_eq!(group.outcome().await, Err(left.clone()));
    assert_eq!(loss.await.map(|(error, _)| error), Some(left));
}

/// By its own fault three times in a row: without the acquittal in between it would be.
#[tokio::test]
async fn a_worker_that_is_acquitted_is_not_sent_away() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let mut steps = ready_worker(&fleet, fails).await.steps;
    for (epoch, acquits) in [(1, false), (2, true), (3, false), (4, false)] {
        let error = fail_once(&fleet, &formation(), epoch, acquits).await;
        assert!(matches!(error, GroupError::Refused { .. }), "{error}");
    }
    fail_once(&fleet, &formation(), 5, false).await;
    // The third that counts.
    let sent_away = async { while steps.recv().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(60), sent_away).await.expect("it is sent away");
}

/// Whoever fails by its own fault is named, also if the other rank's complaint comes first.
#[tokio::test]
async fn the_rank_that_fails_is_named_and_not_the_one_that_it_leaves_alone() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let _a = worker_on(&fleet, "here", Ok(LinkRate { latency_s: 2e-5, bytes_per_s: 1e9 }), |plan| {
        if plan.step == 1 { sampled(plan) } else { failed(&plan, "the other is gone", true) }
    })
    .await;
    let _b = worker_on(&fleet, "here", Ok(LinkRate { latency_s: 2e-5, bytes_per_s: 1e9 }), fails).await;
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let formation = Formation { ranks: 2, plan: Some(Plan::even(&spec, 2, 1)), ..formation() };
    let error = fail_once(&fleet, &formation, 1, false).await;
    assert!(matches!(&error, GroupError::Refused { reason, .. } if reason == "not a number"), "{error}");
}

/// The driver does something else now and then, and asks again: what was said in between is not lost.
#[tokio::test]
async fn a_rank_left_alone_is_heard_also_by_who_looks_away() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let _a = worker_on(&fleet, "here", Ok(LinkRate { latency_s: 2e-5, bytes_per_s: 1e9 }), |plan| {
        if plan.step == 1 { sampled(plan) } else { failed(&plan, "the other is gone", true) }
    })
    .await;
    let _b = worker_on(&fleet, "here", Ok(LinkRate { latency_s: 2e-5, bytes_per_s: 1e9 }), |plan| {
        if plan.step == 1 { sampled(plan) } else { Vec::new() }
    })
    .await;
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let formation = Formation { ranks: 2, plan: Some(Plan::even(&spec, 2, 1)), ..formation() };
    let progress = watch::Sender::new(Progress::Ready);
    let mut group = fleet.form(Epoch(1), &formation, After::Nothing, &progress).await.unwrap();
    let work = vec![SequenceWork { sequence: SequenceId(1), tokens: vec![6], ..Default::default() }];
    group.send(&StepPlan { epoch: Epoch(1), step: StepId(1), work, ..Default::default() }).unwrap();
    let heard = async {
        loop {
            if let Ok(outcome) = tokio::time::timeout(Duration::from_millis(100), group.outcome()).await {
                return outcome;
            }
        }
    };
    let heard =
        tokio::time::timeout(Duration::from_secs(60), heard).await.expect("it is not waited for for ever");
    let error = heard.expect_err("one is alone, and the other says nothing");
    assert!(matches!(&error, GroupError::Stranded { .. }), "{error}");
}

/// Its link is alive, and pings are answered. Whoever waits may look away and come back meanwhile.
#[tokio::test]
async fn a_step_that_nobody_answers_is_not_waited_for_for_ever() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let _steps =
        ready_worker(&fleet, |plan| if plan.step < 3 { sampled(plan) } else { Vec::new() }).await.steps;
    let progress = watch::Sender::new(Progress::Ready);
    let formation = Formation { step_timeout: Duration::from_secs(1), ..formation() };
    let mut group = fleet.form(Epoch(1), &formation, After::Nothing, &progress).await.unwrap();
    for step in [1, 2] {
        let work = vec![SequenceWork { sequence: SequenceId(1), tokens: vec![6], ..Default::default() }];
        group.send(&StepPlan { epoch: Epoch(1), step: StepId(step), work, ..Default::default() }).unwrap();
    }
    assert_eq!(group.outcome().await.map(|outcome| outcome.step), Ok(StepId(1)));
    let lost = async {
        loop {
            if let Ok(outcome) = tokio::time::timeout(Duration::from_millis(100), group.outcome()).await {
                return outcome;
            }
        }
    };
    let lost = tokio::time::timeout(Duration::from_secs(60), lost).await.expect("it is given up");
    let Err(GroupError::Lost { rank: Rank(0), reason }) = lost else { panic!("{lost:?}") };
    assert!(reason.contains("host has not answered step 2 in 1 s"), "{reason}");
}

/// Two workers of the same make that hold a half each.
fn halves() -> Members {
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let (weights, plan) = (Synthetic::new(spec.clone(), 1).identity().unwrap(), Plan::even(&spec, 2, 1));
    let hellos = ["a", "b"].into_iter().zip(0..).map(|(name, rank)| {
        let mut hello = Hello { held: Some(Held::of(weights, &plan, Rank(rank))), ..hello() };
        (hello.inventory.name, hello.inventory.memory_bytes) = (name.into(), 1 << 40);
        hello
    });
    Members { weights, hellos: hellos.collect() }
}

/// Those that go first may be no group: of two backends, or too small. More wait that are one.
#[tokio::test]
async fn others_that_wait_are_tried_where_the_first_are_no_group() {
    use flotilla_shared::BackendKind::{Cpu, Cuda};
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let (weights, plan) = (Synthetic::new(spec.clone(), 1).identity().unwrap(), Plan::even(&spec, 2, 1));
    let large = 1 << 40;
    let fleets = [
        [("card-1", Cuda, large), ("a", Cpu, large), ("card-2", Cuda, large)],
        [("card-1", Cuda, large), ("a", Cuda, 1 << 20), ("card-2", Cuda, large)],
    ];
    let after = [After::Nothing, After::Loss];
    for (workers, after) in fleets.iter().flat_map(|fleet| after.map(|after| (fleet, after))) {
        let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
        let mut joined = Vec::new();
        for (name, backend, memory_bytes) in workers {
            let mut hello = hello();
            hello.inventory.name = (*name).into();
            (hello.inventory.backend, hello.inventory.memory_bytes) = (*backend, *memory_bytes);
            // The survivor.
            hello.held = (*name == "card-1").then(|| Held::of(weights, &plan, Rank(0)));
            joined.push(worker_as(&fleet, hello, |_| Err("it has no links".into()), sampled).await);
        }
        let progress = watch::Sender::new(Progress::Ready);
        let wanted = Formation { ranks: 2, plan: None, ..formation() };
        let group = fleet.form(Epoch(1), &wanted, after, &progress).await.expect("two fit");
        assert_eq!(group.names(), ["card-1", "card-2"], "{workers:?}, after {after:?}");
    }
}

/// Anything fits on it.
async fn roomy_worker(fleet: &Fleet) -> Joined {
    let mut hello = hello();
    hello.inventory.memory_bytes = 1 << 40;
    worker_as(fleet, hello, |_| Err("it has no links".into()), sampled).await
}

/// What does not fit ends no group, and what fits later does.
#[tokio::test]
async fn a_group_does_not_end_for_a_newcomer_that_is_of_no_use() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let wanted = Formation { ranks: 3, ..formation() };
    let (members, considered) = (halves(), watch::Sender::new(2));
    let mut grown = Box::pin(fleet.grown(&wanted, &members, &considered));
    let mut small = hello();
    (small.inventory.memory_bytes, small.inventory.name) = (1 << 20, "a small one".into());
    let small = worker_as(&fleet, small, |_| Err("it has no links".into()), sampled).await;
    let is_early = tokio::time::timeout(Duration::from_secs(1), &mut grown).await.is_ok();
    assert!(!is_early, "it ends for one on which nothing fits");
    let _large = roomy_worker(&fleet).await;
    drop(tokio::time::timeout(Duration::from_secs(60), grown).await.expect("the other fits"));
    drop(small);
}

/// Workers of these names and hosts, on which anything fits.
async fn workers(fleet: &Fleet, named: &[(&str, &str)], held: Option<&Held>) -> Vec<Joined> {
    let mut joined = Vec::new();
    for (name, host) in named {
        let mut hello = Hello { held: held.cloned(), ..hello() };
        (hello.inventory.name, hello.inventory.memory_bytes) = ((*name).into(), 1 << 40);
        (*host).clone_into(&mut hello.host);
        joined.push(worker_as(fleet, hello, |_| Err("it has no links".into()), sampled).await);
    }
    joined
}

/// There are enough without them, at once; but these have the weights.
#[tokio::test]
async fn who_is_on_the_way_home_from_a_lost_group_is_waited_for() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let progress = watch::Sender::new(Progress::Ready);
    let wanted = Formation { ranks: 2, plan: None, ..formation() };
    let _group = workers(&fleet, &[("y", SLOW), ("z", "host")], None).await;
    let group = fleet.form(Epoch(1), &wanted, After::Nothing, &progress).await.unwrap();
    let _spares = workers(&fleet, &[("a", "host"), ("b", "host")], None).await;
    drop(group);
    let group = fleet.form(Epoch(2), &wanted, After::Loss, &progress).await.unwrap();
    assert_eq!(group.names(), ["y", "z"]);
}

/// The coordinator is new, and one of its workers went with the one before.
#[tokio::test]
async fn those_that_come_back_with_weights_are_enough_in_time() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let progress = watch::Sender::new(Progress::Ready);
    let return_grace = Some(Duration::from_millis(100));
    let wanted = Formation { ranks: 3, plan: None, return_grace, ..formation() };
    let mut formed = Box::pin(fleet.form(Epoch(1), &wanted, After::Nothing, &progress));
    let _new = workers(&fleet, &[("a", "host")], None).await;
    let is_early = tokio::time::timeout(Duration::from_secs(2), &mut formed).await.is_ok();
    assert!(!is_early, "nobody has weights: all three are waited for");
    let _back = workers(&fleet, &[("b", "host")], halves().hellos[0].held.as_ref()).await;
    let group = tokio::time::timeout(Duration::from_secs(60), formed).await.expect("two are enough").unwrap();
    assert_eq!(group.names(), ["b", "a"]);
}

/// Another that holds some of these weights comes first by its name.
#[tokio::test]
async fn the_larger_group_is_of_those_that_were_prepared_for_it() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let progress = watch::Sender::new(Progress::Ready);
    let wanted = Formation { ranks: 3, plan: None, ..formation() };
    let (members, considered) = (halves(), watch::Sender::new(2));
    let _newcomer = workers(&fleet, &[("d", "host")], None).await;
    let growing = fleet.grown(&wanted, &members, &considered).await;
    let held = members.hellos[0].held.as_ref();
    let _others = workers(&fleet, &[("0", "host"), ("a", "host"), ("b", "host")], held).await;
    for (after, expected) in [(After::Growth(&growing), ["a", "b", "d"]), (After::Loss, ["0", "a", "b"])] {
        let group = fleet.form(fleet.next_epoch(), &wanted, after, &progress).await.unwrap();
        let mut names = group.names();
        names.sort_unstable();
        assert_eq!(names, expected);
    }
}

/// Whoever ends each group as it meets loads well, and is known by its name when it is started again.
#[tokio::test]
async fn a_group_does_not_end_at_once_for_whoever_was_in_one_that_did_not_come_to_be() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let mut named = hello();
    (named.inventory.memory_bytes, named.inventory.name) = (1 << 40, "unlucky".into());
    let links = |_: &str| Err("it has no links".into());
    let fails = worker_as(&fleet, named.clone(), links, |plan| failed(&plan, "a test", false)).await;
    let progress = watch::Sender::new(Progress::Ready);
    fleet
        .form(Epoch(1), &formation(), After::Nothing, &progress)
        .await
        .map(drop)
        .expect_err("its first step fails");
    drop(fails);
    let _again = worker_as(&fleet, named, links, sampled).await;
    let wanted = Formation { ranks: 3, ..formation() };
    let (members, considered) = (halves(), watch::Sender::new(2));
    let mut grown = Box::pin(fleet.grown(&wanted, &members, &considered));
    let is_early = tokio::time::timeout(Duration::from_secs(2), &mut grown).await.is_ok();
    assert!(!is_early, "it ends for one that has just failed");
    let _other = roomy_worker(&fleet).await;
    drop(tokio::time::timeout(Duration::from_secs(20), grown).await.expect("the other may come"));
}

#[tokio::test]
async fn two_groups_that_lack_a_worker_do_not_both_end_for_one() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let wanted = Formation { ranks: 3, ..formation() };
    let (members, considered) = (halves(), watch::Sender::new(2));
    let [mut one, mut other] = [0, 1].map(|_| Box::pin(fleet.grown(&wanted, &members, &considered)));
    let _newcomer = roomy_worker(&fleet).await;
    let growing = tokio::select! {
        growing = &mut one => growing,
        growing = &mut other => {
            std::mem::swap(&mut one, &mut other);
            growing
        }
    };
    let is_early = tokio::time::timeout(Duration::from_secs(1), &mut other).await.is_ok();
    assert!(!is_early, "both end for one worker");
    // It is part of a group now.
    let progress = watch::Sender::new(Progress::Ready);
    let _group = fleet.form(Epoch(1), &formation(), After::Nothing, &progress).await.unwrap();
    drop(growing);
    let is_early = tokio::time::timeout(Duration::from_secs(1), &mut other).await.is_ok();
    assert!(!is_early, "it ends for a worker that is taken");
    let _newcomer = roomy_worker(&fleet).await;
    drop(tokio::time::timeout(Duration::from_secs(60), other).await.expect("this one is its own"));
}

/// A replica that nobody asked for may look for a group that never comes to be: it has nothing to make good.
#[tokio::test]
async fn whoever_finds_no_plan_for_one_replica_more_keeps_no_group_from_growing() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let progress = watch::Sender::new(Progress::Ready);
    let (members, considered) = (halves(), watch::Sender::new(2));
    let _newcomer = roomy_worker(&fleet).await;
    let wanted = Formation { ranks: 3, ..formation() };
    // Nobody has so much memory.
    let in_vain = Formation { plan: None, kv_blocks: KvBlocks::plain(u32::MAX), ..formation() };
    let grown = tokio::time::timeout(Duration::from_secs(60), fleet.grown(&wanted, &members, &considered));
    tokio::select! {
        biased;
        formed = fleet.form(Epoch(1), &in_vain, After::OthersUnasked, &progress) => panic!("it ends: {:?}", formed.err()),
        grown = grown => drop(grown.expect("the newcomer is of use to it")),
    }
}
