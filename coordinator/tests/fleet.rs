//! The door for workers, with workers that are not ours: what each is told that may not join.

use flotilla_coordinator::board::LeftOut;
use flotilla_coordinator::fleet::{Fleet, Formation, Planning, Progress, Weights};
use flotilla_coordinator::group::{Group, GroupError};
use flotilla_planner::{Aim, Goal};
use flotilla_proto::wire::fleet_client::FleetClient;
use flotilla_proto::wire::{FromWorker, ToWorker, from_worker, to_worker};
use flotilla_proto::{Hello, PROTOCOL, measured, wire};
use flotilla_shared::step::SequenceWork;
use flotilla_shared::{
    BackendKind, Epoch, Inventory, KvBlocks, KvDtype, LinkRate, ModelSpec, Plan, SequenceId, StepId, StepPlan,
};
use std::time::Duration;
use tokio::sync::watch;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

const TOKEN: &str = "a-token";

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL,
        version: "9.9.9".into(),
        inventory: Inventory {
            name: "faked".into(),
            backend: BackendKind::Cpu,
            kv: KvDtype::F16,
            device: "none".into(),
            memory_bytes: 1 << 30,
            bandwidth: 0.0,
            compute: 0.0,
            expert_compute: 0.0,
            threads: 1,
        },
        collective_address: "127.0.0.1:1".into(),
        host: "host".into(),
        held: None,
        hands_on: None,
    }
}

/// Says `first` to a coordinator; how it was refused, or none if it was not.
async fn say(fleet: &Fleet, token: &str, first: from_worker::Message) -> Option<Status> {
    let endpoint = Endpoint::from_shared(format!("http://{}", fleet.address())).unwrap();
    let mut client = FleetClient::new(endpoint.connect().await.unwrap());
    let (says, outbox) = tokio::sync::mpsc::unbounded_channel();
    says.send(FromWorker { message: Some(first) }).unwrap();
    let mut request = Request::new(UnboundedReceiverStream::new(outbox));
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    client.join(request).await.err()
}

#[tokio::test]
async fn who_speaks_another_protocol_hears_both_versions() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    for protocol in [0, PROTOCOL - 1, PROTOCOL + 1, u32::MAX] {
        let other = from_worker::Message::Hello((&Hello { protocol, ..hello() }).into());
        let refused = say(&fleet, TOKEN, other).await.expect("it is refused");
        let words = format!(
            "this coordinator ({}) speaks protocol {PROTOCOL}, the worker (9.9.9) protocol {protocol}\n\
             hint: run the same version on both",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, words.as_str()));
    }
    assert_eq!(fleet.pool().count(), 0);
    let same = from_worker::Message::Hello((&hello()).into());
    assert!(say(&fleet, TOKEN, same).await.is_none());
}

#[tokio::test]
async fn who_does_not_know_the_token_or_does_not_say_hello_is_refused() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let good = || from_worker::Message::Hello((&hello()).into());
    for token in ["", "another", "a-token "] {
        let refused = say(&fleet, token, good()).await.expect("it is refused");
        assert_eq!(refused.code(), Code::Unauthenticated, "{token:?}");
    }
    let released = from_worker::Message::Released(Default::default());
    let refused = say(&fleet, TOKEN, released).await.expect("it is refused");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "the first message must be Hello")
    );
}

/// A worker of two hands: it joins, says that it is ready for whatever it is assigned, and answers steps by `answer`.
async fn ready_worker(fleet: &Fleet, answer: fn(wire::StepPlan) -> Vec<from_worker::Message>) -> Joined {
    worker_on(fleet, "host", Err("it has no links".into()), answer).await
}

/// The same on a host, with what it says of links.
async fn worker_on(
    fleet: &Fleet,
    host: &str,
    rate: Result<LinkRate, String>,
    answer: fn(wire::StepPlan) -> Vec<from_worker::Message>,
) -> Joined {
    worker_that(fleet, host, move |_| rate.clone(), answer).await
}

/// The same; `tells` is asked of a pair of hosts, the one that is dialed first.
async fn worker_that(
    fleet: &Fleet,
    host: &str,
    tells: impl Fn(&str) -> Result<LinkRate, String> + Send + 'static,
    answer: fn(wire::StepPlan) -> Vec<from_worker::Message>,
) -> Joined {
    let endpoint = Endpoint::from_shared(format!("http://{}", fleet.address())).unwrap();
    let mut client = FleetClient::new(endpoint.connect().await.unwrap());
    let (says, outbox) = tokio::sync::mpsc::unbounded_channel();
    let say = move |message| says.send(FromWorker { message: Some(message) }).map_err(drop);
    let mut hello = hello();
    hello.inventory.memory_bytes = 1 << 40;
    host.clone_into(&mut hello.host);
    host.clone_into(&mut hello.inventory.name);
    hello.collective_address = format!("{host}:1");
    say(from_worker::Message::Hello((&hello).into())).unwrap();
    let mut request = Request::new(UnboundedReceiverStream::new(outbox));
    request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    let mut hears = client.join(request).await.unwrap().into_inner();
    let (seen, steps) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(Some(ToWorker { message: Some(message) })) = hears.message().await {
            let said = match message {
                to_worker::Message::Assignment(assignment) => {
                    let epoch = assignment.epoch;
                    say(from_worker::Message::Ready(wire::Ready { epoch, ..Default::default() }))
                }
                to_worker::Message::Step(plan) => {
                    let _ = seen.send(plan.clone());
                    answer(plan).into_iter().try_for_each(&say)
                }
                to_worker::Message::Measure(test) => {
                    let hosts = test.peers.iter().map(|peer| peer.trim_end_matches(":1")).collect::<Vec<_>>();
                    let found = tells(&hosts.join("-"));
                    say(from_worker::Message::Measured(measured(Epoch(test.epoch), found)))
                }
                to_worker::Message::Dissolve(dissolve) => {
                    say(from_worker::Message::Released(wire::Released {
                        epoch: dissolve.epoch,
                        ..Default::default()
                    }))
                }
            };
            if said.is_err() {
                return;
            }
        }
    });
    steps
}

type Joined = tokio::sync::mpsc::UnboundedReceiver<wire::StepPlan>;

fn formation() -> Formation {
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    Formation {
        weights: Weights::Synthetic { seed: 1 },
        ranks: 1,
        planning: Default::default(),
        plan: Some(Plan::even(&spec, 1, 1)),
        spec,
        kv_blocks: KvBlocks::plain(4),
        step_tokens_max: 16,
        sampleable: vec![5..100],
        links: Default::default(),
        wire: Default::default(),
        regroup_grace: Duration::ZERO,
        board: Default::default(),
    }
}

fn sampled(plan: wire::StepPlan) -> Vec<from_worker::Message> {
    vec![from_worker::Message::Outcome(outcome(plan))]
}

fn outcome(plan: wire::StepPlan) -> wire::StepOutcome {
    let tokens =
        plan.work.iter().map(|work| wire::Sampled { sequence: work.sequence, token: 7, logprobs: None });
    wire::StepOutcome {
        epoch: plan.epoch,
        step: plan.step,
        sampled: tokens.collect(),
        compute_us: 9,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_group_carries_out_a_step_before_it_serves() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let mut steps = ready_worker(&fleet, sampled).await;
    let progress = watch::Sender::new(Progress::Ready);
    let mut group = fleet.form(Epoch(3), &formation(), false, &progress).await.unwrap();
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
    let formed = fleet.form(Epoch(1), &formation(), false, &progress).await;
    let error = formed.err().expect("it failed").to_string();
    assert!(error.contains("first step failed") && error.contains("a kernel is missing"), "{error}");
    assert_eq!(*progress.borrow(), Progress::FirstStep);
}

/// How many of two workers on two hosts a plan takes whose link they say to be so.
async fn ranks_over(rate: Result<LinkRate, String>) -> usize {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let _a = worker_on(&fleet, "here", rate.clone(), sampled).await;
    let _b = worker_on(&fleet, "there", rate, sampled).await;
    let goal = Goal { aim: Aim::Latency, context: 128, stages_max: 1 };
    let planning = Planning::Fastest { goal, within: None, between: None };
    let formation = Formation { ranks: 2, plan: None, planning, ..formation() };
    let progress = watch::Sender::new(Progress::Ready);
    let group = fleet.form(Epoch(1), &formation, false, &progress).await.unwrap();
    group.names().len()
}

#[tokio::test]
async fn links_are_measured_and_plans_follow_them() {
    assert_eq!(ranks_over(Ok(LinkRate { latency_s: 20e-6, bytes_per_s: 1e9 })).await, 2);
    assert_eq!(ranks_over(Ok(LinkRate { latency_s: 0.1, bytes_per_s: 1e6 })).await, 1);
    // Two that do not reach each other are no group.
    assert_eq!(ranks_over(Err("no way to it".into())).await, 1);
}

/// What a worker on this host says of its link to that one.
type Tells = fn(&str) -> Result<LinkRate, String>;

/// A group over workers on hosts `a`, `b` and `c`, of which each is named as its host; and whom the plan leaves out.
async fn group_of_three(tells: Tells, wanted: usize) -> (Vec<String>, Vec<LeftOut>) {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let mut joined = Vec::new();
    for host in ["a", "b", "c"].into_iter().take(wanted) {
        joined.push(worker_that(&fleet, host, tells, sampled).await);
    }
    let goal = Goal { aim: Aim::Latency, context: 128, stages_max: usize::MAX };
    let planning = Planning::Fastest { goal, within: None, between: None };
    let formation = Formation { ranks: wanted, plan: None, planning, ..formation() };
    let progress = watch::Sender::new(Progress::Ready);
    let group = fleet.form(Epoch(1), &formation, false, &progress).await.unwrap();
    let names = group.names().into_iter().map(str::to_owned).collect();
    (names, formation.board.groups()[0].1.left_out.clone())
}

const FAST: Result<LinkRate, String> = Ok(LinkRate { latency_s: 20e-6, bytes_per_s: 1e9 });

#[tokio::test]
async fn who_does_not_reach_another_is_left_out_and_the_board_says_why() {
    assert_eq!(group_of_three(|_| FAST, 3).await, (vec!["a".into(), "b".into(), "c".into()], vec![]));
    // A pair is cut where one of both says so; the third reaches both.
    let (names, left_out) =
        group_of_three(|pair| if pair == "a-c" { Err("no".into()) } else { FAST }, 3).await;
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.contains(&"b".into()), "{names:?}");
    let other = if names.contains(&"a".into()) { "a" } else { "c" };
    assert_eq!(left_out.len(), 1, "{left_out:?}");
    assert_eq!(left_out[0].reason, format!("it does not reach {other}"));
    // One way is not enough: in a group either end may have to dial.
    let (names, left_out) =
        group_of_three(|pair| if pair == "c-b" { Err("no".into()) } else { FAST }, 3).await;
    assert_eq!((names.len(), left_out.len()), (2, 1), "{names:?}");
    assert!(names.contains(&"a".into()), "{names:?}");
}

#[tokio::test]
async fn of_a_pair_that_is_far_one_is_left_out_though_the_others_are_near() {
    let far = |pair: &str| match pair {
        "a-c" | "c-a" | "b-c" | "c-b" => Ok(LinkRate { latency_s: 0.1, bytes_per_s: 1e6 }),
        _ => FAST,
    };
    let (names, left_out) = group_of_three(far, 3).await;
    assert_eq!(names, ["a", "b"]);
    assert_eq!(left_out, [LeftOut { name: "c".into(), reason: "it would not make the plan faster".into() }]);
}

/// What a worker answers the second step with, and what is said of it.
type Spoilt = (fn(wire::StepPlan) -> Vec<from_worker::Message>, &'static str);

/// Messages that are late, early, doubled, of another epoch or of another kind: none is taken for an answer.
#[tokio::test]
async fn what_is_no_answer_to_the_step_that_is_due_ends_the_group() {
    let answers: [Spoilt; 6] = [
        (|plan| old(plan, |outcome| outcome.epoch -= 1), "step 1 of epoch 2, where step 1 of epoch 3 is due"),
        (|plan| old(plan, |outcome| outcome.step -= 1), "step 0 of epoch 3, where step 1 of epoch 3 is due"),
        (|plan| old(plan, |outcome| outcome.step += 1), "step 2 of epoch 3, where step 1 of epoch 3 is due"),
        (
            |plan| match plan.step {
                // The one of the step before comes again.
                1 => [sampled(plan.clone()), sampled(plan)].concat(),
                _ => sampled(plan),
            },
            "step 0 of epoch 3, where step 1 of epoch 3 is due",
        ),
        (
            |plan| match plan.step {
                1 => sampled(plan),
                _ => {
                    vec![from_worker::Message::Ready(wire::Ready { epoch: plan.epoch, ..Default::default() })]
                }
            },
            "something else than its outcome",
        ),
        (
            |plan| match plan.step {
                1 => sampled(plan),
                _ => vec![from_worker::Message::Released(wire::Released { epoch: 2, held: None })],
            },
            "something else than its outcome",
        ),
    ];
    for (answer, words) in answers {
        let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
        let _steps = ready_worker(&fleet, answer).await;
        let progress = watch::Sender::new(Progress::Ready);
        let mut group = fleet.form(Epoch(3), &formation(), false, &progress).await.unwrap();
        let work = vec![SequenceWork { sequence: SequenceId(1), tokens: vec![6], ..Default::default() }];
        group.send(&StepPlan { epoch: Epoch(3), step: StepId(1), work, ..Default::default() }).unwrap();
        let error = group.outcome().await.expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
        // It is let go like any other, and serves in the next group.
        drop(group);
        fleet.form(Epoch(4), &formation(), false, &progress).await.unwrap();
    }
}

/// The first step is answered as it should be.
fn old(plan: wire::StepPlan, spoil: fn(&mut wire::StepOutcome)) -> Vec<from_worker::Message> {
    let first = plan.step == 1;
    let mut outcome = outcome(plan);
    if !first {
        spoil(&mut outcome);
    }
    vec![from_worker::Message::Outcome(outcome)]
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
    let mut group = fleet.form(Epoch(epoch), formation, false, &progress).await.unwrap();
    let work = vec![SequenceWork { sequence: SequenceId(1), tokens: vec![6], ..Default::default() }];
    let plan = StepPlan { epoch: Epoch(epoch), step: StepId(1), work, ..Default::default() };
    group.send(&plan).unwrap();
    let error = group.outcome().await.expect_err("it fails");
    if acquits {
        group.acquit();
    }
    error
}

/// By its own fault three times in a row: without the acquittal in between it would be.
#[tokio::test]
async fn a_worker_that_is_acquitted_is_not_sent_away() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let mut steps = ready_worker(&fleet, fails).await;
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
    let mut group = fleet.form(Epoch(1), &formation, false, &progress).await.unwrap();
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

#[tokio::test]
async fn two_groups_that_lack_a_worker_do_not_both_end_for_one() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let wanted = Formation { ranks: 3, ..formation() };
    let (mut one, mut other) = (Box::pin(fleet.grown(&wanted, 2, 2)), Box::pin(fleet.grown(&wanted, 2, 2)));
    let _newcomer = ready_worker(&fleet, sampled).await;
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
    let _group = fleet.form(Epoch(1), &formation(), false, &progress).await.unwrap();
    drop(growing);
    let is_early = tokio::time::timeout(Duration::from_secs(1), &mut other).await.is_ok();
    assert!(!is_early, "it ends for a worker that is taken");
    let _newcomer = ready_worker(&fleet, sampled).await;
    drop(tokio::time::timeout(Duration::from_secs(60), other).await.expect("this one is its own"));
}
