//! When ranks are told to meet: not before all have their weights.

use crate::faked::{TOKEN, formation, hello, join, outcome};
use flotilla_coordinator::fleet::{After, Fleet, FormError, Formation, Progress, RemoteGroup};
use flotilla_proto::wire::{self, FromWorker, ToWorker, from_worker, to_worker};
use flotilla_proto::{Hello, measured};
use flotilla_shared::{Epoch, Loading, ModelSpec, Plan};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tonic::Streaming;

/// A worker that says what a test has it say.
struct Puppet {
    says: UnboundedSender<FromWorker>,
    hears: Streaming<ToWorker>,
}

impl Puppet {
    async fn join(fleet: &Fleet, name: &str) -> Puppet {
        let mut hello: Hello = hello();
        (hello.inventory.name, hello.inventory.memory_bytes) = (name.into(), 1 << 40);
        let (says, hears) = join(fleet, &hello).await;
        Puppet { says, hears }
    }

    fn say(&self, message: from_worker::Message) {
        self.says.send(FromWorker { message: Some(message) }).unwrap();
    }

    /// The next order, but for a link's measurement.
    async fn order(&mut self) -> to_worker::Message {
        loop {
            match self.hears.message().await.unwrap().expect("it is not sent away").message.unwrap() {
                to_worker::Message::Measure(test) => {
                    let found = Err("it has no links".into());
                    self.say(from_worker::Message::Measured(measured(Epoch(test.epoch), found)));
                }
                order => return order,
            }
        }
    }

    async fn expect_assignment(&mut self) {
        let order = self.order().await;
        assert!(matches!(order, to_worker::Message::Assignment(_)), "{order:?}");
    }

    async fn hears_nothing(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(300), self.order()).await.is_err()
    }
}

fn loaded() -> from_worker::Message {
    from_worker::Message::Loaded(wire::Loaded { epoch: 1 })
}

/// What comes of a group of two that do as `plays` says, once they are assigned.
async fn form(plays: impl AsyncFnOnce(&mut [Puppet; 2])) -> Result<RemoteGroup, FormError> {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let mut two = [Puppet::join(&fleet, "a").await, Puppet::join(&fleet, "b").await];
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let wanted = Formation { ranks: 2, plan: Some(Plan::even(&spec, 2, 1)), ..formation() };
    let progress = watch::Sender::new(Progress::Ready);
    let play = async {
        for puppet in &mut two {
            puppet.expect_assignment().await;
        }
        plays(&mut two).await;
    };
    let form = fleet.form(Epoch(1), &wanted, After::Nothing, &progress);
    let both = async { tokio::join!(form, play).0 };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("it comes to an end")
}

#[tokio::test]
async fn all_are_told_to_meet_once_the_last_has_its_weights() {
    let group = form(async |[a, b]| {
        a.say(loaded());
        let loading = Loading { bytes_done: 7, bytes_total: 7, ..Loading::default() };
        b.say(from_worker::Message::Loading(loading.into()));
        assert!(a.hears_nothing().await && b.hears_nothing().await, "one has not said that it has all");
        b.say(loaded());
        for puppet in [&mut *a, &mut *b] {
            assert_eq!(puppet.order().await, to_worker::Message::Meet(wire::Meet { epoch: 1 }));
            puppet.say(from_worker::Message::Ready(wire::Ready { epoch: 1, ..Default::default() }));
        }
        for puppet in [a, b] {
            let order = puppet.order().await;
            let to_worker::Message::Step(step) = order else { panic!("not a step: {order:?}") };
            puppet.say(from_worker::Message::Outcome(outcome(step)));
        }
    })
    .await;
    assert_eq!(group.expect("it stands").names(), ["a", "b"]);
}

/// What one of two does instead of loading.
type End = fn(&Puppet);

/// Whoever has loaded is let go, and is not told to meet those that never come.
#[tokio::test]
async fn a_load_that_fails_ends_the_wait_of_the_others() {
    let ends: [(&str, End); 3] = [
        ("its disk is full", |b| {
            let reason = "its disk is full".into();
            b.say(from_worker::Message::Failed(wire::Failed { reason, epoch: 1, blames_another: false }));
        }),
        ("something else than Loading or Loaded", |b| {
            b.say(from_worker::Message::Loaded(wire::Loaded { epoch: 2 }));
        }),
        ("something else than Loading or Loaded", |b| {
            b.say(from_worker::Message::Ready(wire::Ready { epoch: 1, ..Default::default() }));
        }),
    ];
    for (words, end) in ends {
        let formed = form(async |[a, b]| {
            a.say(loaded());
            end(b);
            assert_eq!(a.order().await, to_worker::Message::Dissolve(wire::Dissolve { epoch: 1 }));
        })
        .await;
        let error = formed.err().expect("a load failed").to_string();
        assert!(error.contains("(b)") && error.contains(words), "{error}");
    }
}
