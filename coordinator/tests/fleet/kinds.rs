//! Where processors and cards wait, `--plan auto` makes a group of one kind, and it grows by its own kind.

use crate::faked::{Joined, TOKEN, formation, hello, sampled, worker_as};
use flotilla_coordinator::fleet::{After, Fleet, Formation, Planning, Progress};
use flotilla_planner::{Aim, Goal, Link};
use flotilla_proto::Hello;
use flotilla_shared::BackendKind::{self, Cpu, Cuda};
use flotilla_shared::Epoch;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// The fastest plan for so many; links are told, so none is measured.
fn fastest(ranks: usize) -> Formation {
    let goal = Goal { aim: Aim::Latency, context: 128, stages_max: 1 };
    let link = Some(Link::preset("nvlink"));
    let planning = Planning::Fastest { goal, within: link, between: link };
    Formation { ranks, plan: None, planning, ..formation() }
}

/// Anything fits on it.
fn hello_of(name: &str, backend: BackendKind, bandwidth: f64) -> Hello {
    let mut hello = hello();
    hello.inventory.name = name.into();
    (hello.inventory.backend, hello.inventory.memory_bytes) = (backend, 1 << 40);
    hello.inventory.bandwidth = bandwidth;
    hello
}

/// Workers of these names; a card is ten times as fast as a processor.
async fn workers(fleet: &Fleet, named: &[(&str, BackendKind)]) -> Vec<Joined> {
    let mut joined = Vec::new();
    for (name, backend) in named {
        let bandwidth = if *backend == Cuda { 1e12 } else { 1e11 };
        let hello = hello_of(name, *backend, bandwidth);
        joined.push(worker_as(fleet, hello, |_| Err("it has no links".into()), sampled).await);
    }
    joined
}

#[tokio::test]
async fn a_group_is_chosen_from_as_many_of_each_kind_as_are_wanted() {
    let named = [("a", Cpu), ("b", Cpu), ("c1", Cuda), ("c2", Cuda), ("c3", Cuda), ("c4", Cuda)];
    for after in [After::Nothing, After::Loss] {
        let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
        let _workers = workers(&fleet, &named).await;
        let (progress, wanted) = (watch::Sender::new(Progress::Ready), fastest(4));
        let group = fleet.form(Epoch(1), &wanted, after, &progress).await.unwrap();
        let mut names = group.names();
        names.sort_unstable();
        assert_eq!((names, group.considered()), (vec!["c1", "c2", "c3", "c4"], 4), "after {after:?}");
        // The others wait for whoever needs them.
        assert_eq!(fleet.pool().count(), 2);
    }
}

/// It was chosen from two of four, though four were there.
#[tokio::test]
async fn a_group_of_one_kind_that_lacks_some_of_it_grows() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let _workers = workers(&fleet, &[("a", Cpu), ("b", Cpu), ("c1", Cuda), ("c2", Cuda)]).await;
    let (progress, wanted) = (watch::Sender::new(Progress::Ready), fastest(4));
    let group = fleet.form(Epoch(1), &wanted, After::Nothing, &progress).await.unwrap();
    assert_eq!((group.names().len(), group.considered()), (2, 2));
    let considered = watch::Sender::new(group.considered());
    let members = group.members();
    let grown = fleet.grown(&wanted, &members, &considered);
    let more = async {
        let joined = workers(&fleet, &[("c3", Cuda), ("c4", Cuda)]).await;
        std::future::pending::<()>().await;
        drop(joined);
    };
    tokio::select! {
        grown = timeout(Duration::from_secs(60), grown) => drop(grown.expect("two more cards are of use")),
        () = more => {}
    }
}

/// Whoever is of no use is looked at once, and keeps nobody away; as long as nobody else comes, another replica may be made.
#[tokio::test]
async fn a_newcomer_that_is_of_no_use_ends_no_growing() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let (progress, wanted) = (watch::Sender::new(Progress::Ready), fastest(3));
    let _members = workers(&fleet, &[("a", Cpu), ("b", Cpu)]).await;
    let two = Formation { ranks: 2, ..wanted.clone() };
    let group = fleet.form(Epoch(1), &two, After::Nothing, &progress).await.unwrap();
    let (members, considered) = (group.members(), watch::Sender::new(group.considered()));
    let mut looks = considered.subscribe();
    let mut grown = Box::pin(fleet.grown(&wanted, &members, &considered));
    let slow = hello_of("a card", Cuda, 1e9);
    let _card = worker_as(&fleet, slow, |_| Err("it has no links".into()), sampled).await;
    tokio::select! {
        _ = &mut grown => panic!("it ends for a card"),
        looked_at = looks.wait_for(|considered| *considered == 3) => drop(looked_at.unwrap()),
    }
    let _processor = workers(&fleet, &[("c", Cpu)]).await;
    drop(timeout(Duration::from_secs(60), grown).await.expect("it is one more of its kind"));
}
