//! Workers measure themselves, and plans are made of what they found.

use crate::support::checkpoint::endless;
use crate::support::client::{Client, greedy_text};
use crate::support::relay::{Relay, Weather};
use crate::support::server::{Coordinator, Running, TOKEN, free_port};
use std::net::SocketAddr;
use std::time::Duration;

/// As a user starts one.
fn plain_worker(coordinator: &Coordinator, name: &str) -> Running {
    let at = ["worker", "--coordinator", &coordinator.workers_at, "--join-token", TOKEN];
    Running::start(&[&at[..], &["--name", name, "--threads", "1"]].concat())
}

#[tokio::test]
async fn workers_that_measure_about_the_same_have_equal_shares() {
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 2, &[]).await;
    let mut workers = ["a", "b"].map(|name| plain_worker(&coordinator, name));
    let client = Client::new(&coordinator.url);
    client.health(200).await;
    for worker in &mut workers {
        let bandwidth: f64 = worker.hear("measured bandwidth=").await.parse().expect("a number");
        assert!(bandwidth > 0.1, "{bandwidth} GB/s");
    }
    let (_, cluster) = client.get("/v1/cluster").await;
    assert_eq!(cluster["workers"][0]["vocab"][1], cluster["workers"][1]["vocab"][0]);
    greedy_text(&client, "Once", 20).await;
}

/// A worker whom others reach through a relay.
async fn behind(coordinator: &Coordinator, name: &str, weather: Weather) -> (Relay, Running) {
    let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let relay = Relay::to(listen).await;
    relay.set(weather);
    let (listen, found) = (listen.to_string(), relay.address.to_string());
    let worker =
        coordinator.worker_with(name, TOKEN, &["--collective-listen", &listen, "--advertise-host", &found]);
    (relay, worker)
}

/// Nobody gets through to `b`, which itself reaches `a`: they are no group, and `/v1/cluster` says so.
#[tokio::test]
async fn who_cannot_be_reached_is_left_out() {
    let model = endless().await;
    let more = ["--plan", "auto", "--goal", "latency", "--collective", "tcp", "--regroup-grace", "0.2"];
    let coordinator = Coordinator::start(model.path(), 2, &more).await;
    let (_open, _a) = behind(&coordinator, "a", Weather::Fair).await;
    let (_closed, _b) = behind(&coordinator, "b", Weather::Cut).await;
    let client = Client::new(&coordinator.url);
    client.health(200).await;
    let (_, cluster) = client.get("/v1/cluster").await;
    assert_eq!(cluster["workers"].as_array().expect("a list").len(), 1, "{cluster}");
    let (used, left_out) = (&cluster["workers"][0]["name"], &cluster["left_out"][0]);
    let reason = format!("it does not reach {}", used.as_str().expect("a name"));
    assert_eq!(left_out["reason"], reason.as_str(), "{cluster}");
    assert_ne!(&left_out["name"], used);
    greedy_text(&client, "Once", 20).await;
}

/// A link that is told nothing of is measured: here one that lets everything wait for 10 ms, over which sums cannot be worth it.
#[tokio::test]
async fn links_are_measured_before_a_plan_is_made() {
    let model = endless().await;
    let more = ["--plan", "auto", "--goal", "latency", "--collective", "tcp", "--regroup-grace", "0.2"];
    let coordinator = Coordinator::start(model.path(), 2, &more).await;
    // Either may be the one that dials.
    let (_a, mut a) = behind(&coordinator, "a", Weather::Slow(Duration::from_millis(10))).await;
    let (_b, mut b) = behind(&coordinator, "b", Weather::Slow(Duration::from_millis(10))).await;
    let client = Client::new(&coordinator.url);
    client.health(200).await;
    for worker in [&mut a, &mut b] {
        let latency_us: f64 = worker.hear("link measured latency_us=").await.parse().expect("a number");
        assert!(latency_us > 10_000.0, "{latency_us}");
    }
    let (_, cluster) = client.get("/v1/cluster").await;
    assert_eq!(cluster["workers"].as_array().expect("a list").len(), 1, "{cluster}");
    greedy_text(&client, "Once", 20).await;
}

/// Over a slow link a model this small is fastest on one of them; the other waits, and takes its place.
#[tokio::test]
async fn the_fastest_plan_may_leave_workers_out() {
    let model = endless().await;
    let more = ["--plan", "auto", "--goal", "latency", "--link-within", "1gbe", "--regroup-grace", "0.2"];
    let coordinator = Coordinator::start(model.path(), 2, &more).await;
    let mut workers = ["a", "b"].map(|name| coordinator.worker(name));
    let client = Client::new(&coordinator.url);
    client.health(200).await;
    let (_, cluster) = client.get("/v1/cluster").await;
    let ranks = cluster["workers"].as_array().expect("a list");
    assert_eq!(ranks.len(), 1, "{cluster}");
    assert_eq!(cluster["left_out"][0]["reason"], "it would not make the plan faster", "{cluster}");
    let used = usize::from(ranks[0]["name"] == "b");
    let text = greedy_text(&client, "Once", 20).await;
    workers[used].kill().await;
    assert_eq!(client.group_of(2).await, 2);
    assert_eq!(greedy_text(&client, "Once", 20).await, text);
}
