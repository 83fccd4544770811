//! A group that grows again: the newcomer loads while the group serves, from its workers, and disturbs nothing if it fails.

use crate::handing::{loaded, sent};
use crate::support::checkpoint::endless;
use crate::support::client::{COMPLETIONS, Client, greedy, greedy_text};
use crate::support::server::{Coordinator, PATIENCE, Running, TOKEN};
use serde_json::Value;
use std::time::Duration;
use tokio::time::{sleep, timeout};

const PROMPT: &str = "Once upon a time";
const TOKENS: usize = 300;
/// A third of the weights, which is some 170 KB, takes seconds at this rate.
const SLOW: [&str; 2] = ["--weight-rate", "0.03MB/s"];
const ASSIGNED: &str = "only_prepares=true";
const PREPARED: &str = "prepared for a group to come";

/// Of three workers two are left, and serve; they hand on slowly.
async fn two_of_three(coordinator: &Coordinator) -> ([Running; 2], Client) {
    let [left, mut lost, right] = ["a", "b", "c"].map(|name| coordinator.worker_with(name, TOKEN, &SLOW));
    let client = Client::new(&coordinator.url);
    client.health(200).await;
    lost.kill().await;
    until(&client, |cluster| ranks(cluster) == 2 && cluster["status"] == "ready").await;
    ([left, right], client)
}

/// Looks at the cluster until it is so.
async fn until(client: &Client, is_so: impl Fn(&Value) -> bool) -> Value {
    let look = async {
        loop {
            let (_, cluster) = client.get("/v1/cluster").await;
            if is_so(&cluster) {
                return cluster;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, look).await.expect("it comes to that")
}

fn ranks(cluster: &Value) -> usize {
    cluster["workers"].as_array().map_or(0, Vec::len)
}

async fn losses(client: &Client) -> Vec<String> {
    let text = client.text("/metrics").await;
    let losses = text.lines().filter(|line| line.starts_with("flotilla_group_losses_total"));
    losses.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_newcomer_loads_from_the_group_that_serves_meanwhile() {
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 3, &["--regroup-grace", "0.2"]).await;
    let (mut workers, client) = two_of_three(&coordinator).await;
    let undisturbed = greedy_text(&client, PROMPT, TOKENS).await;
    let (before, from_peers) = (sent(&client).await, loaded(&client, "peer").await);
    let mut newcomer = coordinator.worker("d");
    newcomer.hear(ASSIGNED).await;
    // One answer after the other, while it loads.
    let mut answers = 0;
    while !newcomer.said().contains(PREPARED) {
        assert!(undisturbed.starts_with(&greedy_text(&client, PROMPT, 8).await));
        answers += usize::from(!newcomer.said().contains(PREPARED));
    }
    assert!(answers > 0, "{}", newcomer.said());
    let mut stream = client.stream(COMPLETIONS, greedy(PROMPT, TOKENS)).await;
    let begun = stream.text_of(1).await;
    until(&client, |cluster| ranks(cluster) == 3 && cluster["status"] == "ready").await;
    let rest = timeout(PATIENCE, stream.rest()).await.expect("the stream ends");
    assert_eq!(begun + &rest.text, undisturbed);
    newcomer.hear("weights are here still").await;
    // Nothing left the coordinator, for it or for those that gave it their parts and took others.
    let bytes: u64 = newcomer.hear("weights are here bytes=").await.parse().expect("a number");
    assert!(loaded(&client, "peer").await - from_peers >= bytes);
    assert_eq!(sent(&client).await, before);
    assert!(workers.iter_mut().all(|worker| !worker.has_ended()));
}

#[tokio::test]
async fn a_newcomer_that_dies_while_it_loads_disturbs_nobody() {
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 3, &["--regroup-grace", "0.2"]).await;
    let (_workers, client) = two_of_three(&coordinator).await;
    let losses_before = losses(&client).await;
    let (_, before) = client.get("/v1/cluster").await;
    let mut newcomer = coordinator.worker("d");
    newcomer.hear(ASSIGNED).await;
    newcomer.kill().await;
    // Whoever comes after it is taken in.
    let mut other = coordinator.worker("e");
    other.hear(ASSIGNED).await;
    let (_, now) = client.get("/v1/cluster").await;
    assert_eq!(now["epoch"], before["epoch"]);
    assert_eq!(losses(&client).await, losses_before);
    until(&client, |cluster| ranks(cluster) == 3 && cluster["status"] == "ready").await;
}

/// The newcomer goes with what it has so far to where there is a group no more.
#[tokio::test]
async fn a_loss_takes_the_newcomer_from_its_load() {
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 3, &["--regroup-grace", "20"]).await;
    let client = Client::new(&coordinator.url);
    let [mut left, mut lost, _right] =
        ["a", "b", "c"].map(|name| coordinator.worker_with(name, TOKEN, &SLOW));
    client.health(200).await;
    let undisturbed = greedy_text(&client, PROMPT, 60).await;
    lost.kill().await;
    until(&client, |cluster| ranks(cluster) == 2 && cluster["status"] == "ready").await;
    let mut newcomer = coordinator.worker("d");
    newcomer.hear(ASSIGNED).await;
    let _another = coordinator.worker("e");
    left.kill().await;
    // Three again, without the pause after which two would do.
    let cluster = until(&client, |cluster| ranks(cluster) == 3 && cluster["status"] == "ready").await;
    assert!(!newcomer.said().contains(PREPARED), "{cluster}: {}", newcomer.said());
    assert_eq!(greedy_text(&client, PROMPT, 60).await, undisturbed);
}
