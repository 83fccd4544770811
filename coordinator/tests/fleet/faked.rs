//! Workers of two hands, and what they are formed into.

use flotilla_coordinator::fleet::{Fleet, Formation, Weights};
use flotilla_proto::wire::fleet_client::FleetClient;
use flotilla_proto::wire::{FromWorker, ToWorker, from_worker, to_worker};
use flotilla_proto::{Hello, PROTOCOL, measured, released, wire};
use flotilla_shared::{
    Assignment, BackendKind, Epoch, Held, Inventory, KvBlocks, KvDtype, LinkRate, ModelSpec, Plan,
};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Request, Streaming};

pub const TOKEN: &str = "a-token";
/// A host of workers that take their time to leave a group.
pub const SLOW: &str = "slow";

pub fn hello() -> Hello {
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

/// A worker of two hands: it joins, says that it is ready for whatever it is assigned, and answers steps by `answer`.
pub async fn ready_worker(fleet: &Fleet, answer: fn(wire::StepPlan) -> Vec<from_worker::Message>) -> Joined {
    worker_on(fleet, "host", Err("it has no links".into()), answer).await
}

/// The same on a host, with what it says of links.
pub async fn worker_on(
    fleet: &Fleet,
    host: &str,
    rate: Result<LinkRate, String>,
    answer: fn(wire::StepPlan) -> Vec<from_worker::Message>,
) -> Joined {
    worker_that(fleet, host, move |_| rate.clone(), answer).await
}

/// The same; `tells` is asked of a pair of hosts, the one that is dialed first.
pub async fn worker_that(
    fleet: &Fleet,
    host: &str,
    tells: impl Fn(&str) -> Result<LinkRate, String> + Send + 'static,
    answer: fn(wire::StepPlan) -> Vec<from_worker::Message>,
) -> Joined {
    let mut hello = hello();
    hello.inventory.memory_bytes = 1 << 40;
    host.clone_into(&mut hello.host);
    host.clone_into(&mut hello.inventory.name);
    hello.collective_address = format!("{host}:1");
    worker_as(fleet, hello, tells, answer).await
}

/// The same, which says this Hello.
pub async fn worker_as(
    fleet: &Fleet,
    hello: Hello,
    tells: impl Fn(&str) -> Result<LinkRate, String> + Send + 'static,
    answer: fn(wire::StepPlan) -> Vec<from_worker::Message>,
) -> Joined {
    let (says, mut hears) = join(fleet, &hello).await;
    let say = move |message| says.send(FromWorker { message: Some(message) }).map_err(drop);
    let (seen, steps) = tokio::sync::mpsc::unbounded_channel();
    let (given, assigned) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut held = None;
        while let Ok(Some(ToWorker { message: Some(message) })) = hears.message().await {
            let said = match message {
                to_worker::Message::Assignment(assignment) => {
                    let epoch = assignment.epoch;
                    let told = Assignment::try_from(assignment.clone()).unwrap();
                    held = Some(Held::of(told.weights_id, &told.plan, told.rank));
                    let _ = given.send(assignment);
                    say(from_worker::Message::Loaded(wire::Loaded { epoch }))
                }
                to_worker::Message::Meet(wire::Meet { epoch }) => {
                    say(from_worker::Message::Ready(wire::Ready { epoch, ..Default::default() }))
                }
                to_worker::Message::Prepare(assignment) => {
                    let (epoch, assignment) = (assignment.epoch, Assignment::try_from(assignment).unwrap());
                    held = Some(Held::of(assignment.weights_id, &assignment.plan, assignment.rank));
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
                    if hello.host == SLOW {
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                    say(from_worker::Message::Released(released(Epoch(dissolve.epoch), held.as_ref())))
                }
            };
            if said.is_err() {
                return;
            }
        }
    });
    Joined { steps, assigned }
}

/// Both directions of a conversation, after Hello.
pub async fn join(fleet: &Fleet, hello: &Hello) -> (UnboundedSender<FromWorker>, Streaming<ToWorker>) {
    let endpoint = Endpoint::from_shared(format!("http://{}", fleet.address())).unwrap();
    let mut client = FleetClient::new(endpoint.connect().await.unwrap());
    let (says, outbox) = tokio::sync::mpsc::unbounded_channel();
    says.send(FromWorker { message: Some(from_worker::Message::Hello(hello.into())) }).unwrap();
    let mut request = Request::new(UnboundedReceiverStream::new(outbox));
    request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    (says, client.join(request).await.unwrap().into_inner())
}

/// What it was told.
pub struct Joined {
    pub steps: UnboundedReceiver<wire::StepPlan>,
    pub assigned: UnboundedReceiver<wire::Assignment>,
}

pub fn formation() -> Formation {
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    Formation {
        weights: Weights::Synthetic { seed: 1 },
        ranks: 1,
        planning: Default::default(),
        plan: Some(Plan::even(&spec, 1, 1)),
        spec,
        kv_blocks: KvBlocks::plain(4),
        step_tokens_max: 16,
        logit_rows_max: 64,
        sampleable: vec![5..100],
        links: Default::default(),
        wire: Default::default(),
        regroup_grace: Duration::ZERO,
        return_grace: None,
        step_timeout: Duration::ZERO,
        board: Default::default(),
    }
}

pub fn sampled(plan: wire::StepPlan) -> Vec<from_worker::Message> {
    vec![from_worker::Message::Outcome(outcome(plan))]
}

pub fn outcome(plan: wire::StepPlan) -> wire::StepOutcome {
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
