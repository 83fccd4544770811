//! A plan is made beside everything else: here it cannot be made before the test lets it.

use crate::faked::{TOKEN, formation, hello, sampled, worker_as};
use flotilla_coordinator::fleet::{After, Fleet, Formation, Members, Progress};
use flotilla_engine::weights::{Synthetic, WeightSource};
use flotilla_shared::{Epoch, ModelSpec};
use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;
use tokio::sync::watch;

/// Runs a test with a fleet of one worker, on a runtime whose one thread for long work is taken until what the test is given
/// is dropped.
fn with_no_thread_to_plan<T: Future<Output = ()>>(test: impl FnOnce(Fleet, Sender<()>) -> T) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
    runtime.unwrap().block_on(async {
        let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
        let mut hello = hello();
        hello.inventory.memory_bytes = 1 << 40;
        let _worker = worker_as(&fleet, hello, |_| Err("it has no links".into()), sampled).await;
        let (release, taken) = channel();
        tokio::task::spawn_blocking(move || taken.recv());
        test(fleet, release).await;
    });
}

/// Polls it until the worker has been taken out of the pool.
async fn until_taken(fleet: &Fleet, mut look: Pin<&mut impl Future>) {
    let taken = async {
        while fleet.pool().count() > 0 {
            tokio::select! {
                biased;
                _ = &mut look => panic!("it waits for no plan"),
                () = tokio::task::yield_now() => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), taken).await.expect("it is taken");
}

#[test]
fn whoever_waits_for_a_plan_holds_up_nobody() {
    with_no_thread_to_plan(|fleet, release| async move {
        let progress = watch::Sender::new(Progress::Ready);
        let formation = formation();
        let mut forming = Box::pin(fleet.form(Epoch(1), &formation, After::Nothing, &progress));
        until_taken(&fleet, forming.as_mut()).await;
        // By then it would load, had it planned where it was asked.
        assert_eq!(*progress.borrow(), Progress::Waiting { joined: 1, wanted: 1 });
        drop(release);
        tokio::time::timeout(Duration::from_secs(60), forming).await.expect("it goes on").unwrap();
    });
}

/// A group that is lost meanwhile ends the look at who could join it, and finds the newcomer where it was.
#[test]
fn a_newcomer_that_is_planned_for_in_vain_waits_on() {
    with_no_thread_to_plan(|fleet, release| async move {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let weights = Synthetic::new(spec, 1).identity().unwrap();
        let mut member = hello();
        member.inventory.name = "member".into();
        let members = Members { weights, hellos: vec![member] };
        let (wanted, considered) = (Formation { ranks: 2, ..formation() }, watch::Sender::new(1));
        let mut growing = Box::pin(fleet.grown(&wanted, &members, &considered));
        until_taken(&fleet, growing.as_mut()).await;
        drop(growing);
        assert_eq!(fleet.pool().count(), 1);
        drop(release);
    });
}
