//! Links between workers: measured before a plan is made, and what becomes of those that are not reached.

use crate::faked::{TOKEN, formation, hello, sampled, worker_as, worker_on, worker_that};
use flotilla_coordinator::board::LeftOut;
use flotilla_coordinator::fleet::{After, Fleet, Formation, Planning, Progress};
use flotilla_planner::model::{Spread, whole_values_max};
use flotilla_planner::{Aim, Goal, Link};
use flotilla_proto::Hello;
use flotilla_shared::{BackendKind, Epoch, Inventory, KvDtype, LinkRate, ModelSpec, Plan};
use tokio::sync::watch;

/// How many of two workers on two hosts a plan takes whose link they say to be so.
async fn ranks_over(rate: Result<LinkRate, String>) -> usize {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let _a = worker_on(&fleet, "here", rate.clone(), sampled).await;
    let _b = worker_on(&fleet, "there", rate, sampled).await;
    let goal = Goal { aim: Aim::Latency, context: 128, stages_max: 1 };
    let planning = Planning::Fastest { goal, within: None, between: None };
    let formation = Formation { ranks: 2, plan: None, planning, ..formation() };
    let progress = watch::Sender::new(Progress::Ready);
    let group = fleet.form(Epoch(1), &formation, After::Nothing, &progress).await.unwrap();
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
    let group = fleet.form(Epoch(1), &formation, After::Nothing, &progress).await.unwrap();
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

/// What three workers on as many hosts are told of lengths, by a plan that is made or given; made `after` what.
async fn lengths_told(plan: Option<Plan>, between: Option<Link>, after: After<'static>) -> Vec<u32> {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let mut joined = Vec::new();
    for host in ["a", "b", "c"] {
        joined.push(worker_that(&fleet, host, |_| FAST, sampled).await);
    }
    let goal = Goal { aim: Aim::Latency, context: 128, stages_max: 1 };
    let planning = Planning::Fastest { goal, within: None, between };
    let formation = Formation { ranks: 3, plan, planning, ..formation() };
    let progress = watch::Sender::new(Progress::Ready);
    let group = fleet.form(Epoch(1), &formation, after, &progress).await.unwrap();
    assert_eq!(group.names().len(), 3);
    let told = joined.iter_mut().map(|worker| {
        let assignment = worker.assigned.try_recv().expect("it is assigned");
        assignment.links.expect("links are told").whole_values_max
    });
    let told: Vec<_> = told.collect();
    assert!(told.iter().all(|one| *one == told[0]), "ranks that divide vectors differently: {told:?}");
    told[0].clone()
}

/// As the planner says of three hosts.
fn planned(between: Link) -> u32 {
    let device = hello().inventory;
    let fleet = flotilla_planner::Fleet {
        devices: vec![device; 3],
        hosts: vec![0, 1, 2],
        within: Link::preset("shm"),
        between,
        within_cards: None,
        ways: Default::default(),
        int8: false,
        costs: Default::default(),
    };
    whole_values_max(&fleet, &Spread::of(&fleet, &[0, 1, 2])).expect("they are apart") as u32
}

/// From which length on sums go in pieces: a link that is only assumed says nothing of it.
#[tokio::test]
async fn workers_are_told_lengths_where_their_links_are_known() {
    let measured = Link { name: "measured", latency_s: 17e-6, peer_s: 3e-6, bytes_per_s: 1e9 };
    assert_eq!(lengths_told(None, None, After::Nothing).await, [planned(measured)]);
    let usual = Link::preset("10gbe");
    assert!((1..21_000).contains(&planned(usual)), "another length than the engine's own");
    assert_eq!(lengths_told(None, Some(usual), After::Nothing).await, [planned(usual)]);
    assert_eq!(lengths_told(None, Some(usual), After::Loss).await, [planned(usual)]);
    // After a loss nothing is measured, nor for a plan that is given.
    assert_eq!(lengths_told(None, None, After::Loss).await, [0]);
    let even = || Some(Plan::even(&ModelSpec::published("gpt-oss-20b").unwrap(), 3, 1));
    assert_eq!(lengths_told(even(), None, After::Nothing).await, [0]);
    assert_eq!(lengths_told(even(), Some(usual), After::Nothing).await, [planned(usual)]);
}

/// Two processors of one host, with a card beside them that is too small: far apart, as they say, so one is enough.
#[tokio::test]
async fn beside_a_card_processors_of_a_host_are_priced_by_what_they_measured() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let small = Inventory {
        name: "card".into(),
        backend: BackendKind::Cuda,
        kv: KvDtype::Bf16,
        memory_bytes: 1,
        ..hello().inventory
    };
    let card = Hello { inventory: small, host: "here".into(), ..hello() };
    let slow = || Ok(LinkRate { latency_s: 0.1, bytes_per_s: 1e6 });
    let _card = worker_as(&fleet, card, move |_| slow(), sampled).await;
    let _a = worker_on(&fleet, "here", slow(), sampled).await;
    let _b = worker_on(&fleet, "here", slow(), sampled).await;
    let goal = Goal { aim: Aim::Latency, context: 128, stages_max: 1 };
    let planning = Planning::Fastest { goal, within: None, between: None };
    let formation = Formation { ranks: 3, plan: None, planning, ..formation() };
    let progress = watch::Sender::new(Progress::Ready);
    let group = fleet.form(Epoch(1), &formation, After::Nothing, &progress).await.unwrap();
    assert_eq!(group.names(), ["here"]);
}
