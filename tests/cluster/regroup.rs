//! After a loss: the group stands again on a spare, on what is left, or under a coordinator that was started anew; who
//! survived keeps its weights, and no stream loses a token.

use crate::support::checkpoint::endless;
use crate::support::client::{COMPLETIONS, Client, Stream, greedy, greedy_text};
use crate::support::server::{Coordinator, EQUAL, Running, TOKEN, send_signal};
use std::time::Duration;
use tokio::time::timeout;

const PROMPT: &str = "Once upon a time";
const TOKENS: usize = 900;

/// The rest of a stream of which `begun` came already must make it what it is undisturbed.
async fn expect_whole(stream: Stream, begun: String, undisturbed: &str) {
    let rest = timeout(Duration::from_secs(60), stream.rest()).await.expect("the stream ends");
    assert_eq!((rest.error, rest.finish_reason.as_deref()), (None, Some("length")));
    assert_eq!(begun + &rest.text, undisturbed);
}

/// A group of two that serves, and a third that waits.
async fn two_and_a_spare(coordinator: &Coordinator) -> ([Running; 2], Running) {
    let workers = ["a", "b"].map(|name| coordinator.worker(name));
    Client::new(&coordinator.url).health(200).await;
    let mut spare = coordinator.worker("c");
    spare.hear("joined the coordinator").await;
    (workers, spare)
}

#[tokio::test]
async fn a_spare_takes_the_place_of_whoever_dies() {
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 2, &[]).await;
    let (mut workers, mut spare) = two_and_a_spare(&coordinator).await;
    let client = Client::new(&coordinator.url);
    let undisturbed = greedy_text(&client, PROMPT, TOKENS).await;
    let mut stream = client.stream(COMPLETIONS, greedy(PROMPT, TOKENS)).await;
    let begun = stream.text_of(100).await;
    // The first by name: the other must not be moved to its rank.
    workers[0].kill().await;
    expect_whole(stream, begun, &undisturbed).await;
    assert_eq!(client.health(200).await["epoch"], 2);
    workers[1].hear("weights are here still").await;
    spare.hear("weights are here ").await;
}

#[tokio::test]
async fn those_that_are_left_go_on_and_take_a_new_one_in() {
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 3, &["--regroup-grace", "0.2"]).await;
    let mut workers = ["a", "b", "c"].map(|name| coordinator.worker(name));
    let client = Client::new(&coordinator.url);
    client.health(200).await;
    let undisturbed = greedy_text(&client, PROMPT, TOKENS).await;
    let mut stream = client.stream(COMPLETIONS, greedy(PROMPT, TOKENS)).await;
    let begun = stream.text_of(100).await;
    workers[1].kill().await;
    expect_whole(stream, begun, &undisturbed).await;
    let (_, cluster) = client.get("/v1/cluster").await;
    assert_eq!((cluster["workers"].as_array().map(Vec::len), &cluster["epoch"]), (Some(2), &2.into()));
    // Of their new shares they fetched only what they lacked.
    for survivor in [0, 2] {
        let kept: u64 = workers[survivor].hear("some weights are here still bytes=").await.parse().unwrap();
        assert!(kept > 0);
    }

    let mut stream = client.stream(COMPLETIONS, greedy(PROMPT, TOKENS)).await;
    let begun = stream.text_of(20).await;
    let _new = coordinator.worker("d");
    expect_whole(stream, begun, &undisturbed).await;
    client.health(200).await;
    let (_, cluster) = client.get("/v1/cluster").await;
    // In one epoch between the newcomer loaded.
    assert_eq!((cluster["workers"].as_array().map(Vec::len), &cluster["epoch"]), (Some(3), &4.into()));
    assert!(!workers[0].has_ended() && !workers[2].has_ended());
}

/// Silence is a loss after 5 s; whoever was silent comes back as one who waits.
#[tokio::test]
async fn a_worker_that_hangs_is_replaced_and_comes_back() {
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 2, &[]).await;
    let (mut workers, mut spare) = two_and_a_spare(&coordinator).await;
    let client = Client::new(&coordinator.url);
    let undisturbed = greedy_text(&client, PROMPT, TOKENS).await;
    let mut stream = client.stream(COMPLETIONS, greedy(PROMPT, TOKENS)).await;
    let begun = stream.text_of(100).await;
    send_signal("STOP", workers[1].id().into());
    expect_whole(stream, begun, &undisturbed).await;
    send_signal("CONT", workers[1].id().into());
    workers[1].hear("the coordinator is lost, trying to join it again").await;
    // It is the spare now.
    spare.kill().await;
    assert_eq!(client.group_of(3).await, 3);
    assert_eq!(greedy_text(&client, PROMPT, TOKENS).await, undisturbed);
    workers[1].hear("weights are here still").await;
}

#[tokio::test]
async fn a_coordinator_that_is_started_anew_finds_its_workers_with_their_weights() {
    let model = endless().await;
    let mut coordinator = Coordinator::start(model.path(), 2, &[]).await;
    let mut workers = ["a", "b"].map(|name| coordinator.worker(name));
    let client = Client::new(&coordinator.url);
    client.health(200).await;
    let undisturbed = greedy_text(&client, PROMPT, 60).await;
    for signal in ["TERM", "KILL"] {
        send_signal(signal, coordinator.process.id().into());
        coordinator.process.ended().await;
        coordinator = coordinator.again(model.path(), 2, &[]).await;
        for worker in &mut workers {
            worker.hear_again("joined the coordinator", 2 + usize::from(signal == "KILL")).await;
        }
        client.health(200).await;
        assert_eq!(greedy_text(&client, PROMPT, 60).await, undisturbed);
    }
    for worker in &mut workers {
        assert!(!worker.has_ended(), "{}", worker.said());
        let kept = worker.said().matches("weights are here still").count();
        assert_eq!(kept, 2, "{}", worker.said());
    }
}

/// The one has its weights still, and the other's come for longer than ranks wait for each other.
#[tokio::test]
async fn a_rank_that_loads_slowly_is_waited_for() {
    const TIMEOUT_S: u64 = 5;
    const RATE: u64 = 20_000;
    let model = endless().await;
    let mut coordinator = Coordinator::start(model.path(), 2, &[]).await;
    let at = coordinator.workers_at.clone();
    let start = |name| {
        let timeout = TIMEOUT_S.to_string();
        let args = ["worker", "--coordinator", &at, "--join-token", TOKEN, "--name", name, "--threads", "1"];
        Running::start(&[&args[..], &["--collective-timeout", &timeout], &EQUAL].concat())
    };
    let (mut a, mut b) = (start("a"), start("b"));
    let client = Client::new(&coordinator.url);
    client.health(200).await;
    let undisturbed = greedy_text(&client, PROMPT, 60).await;
    b.kill().await;
    coordinator.process.kill().await;
    coordinator =
        coordinator.again(model.path(), 2, &["--weight-rate", &format!("{}kB/s", RATE / 1000)]).await;
    a.hear_again("joined the coordinator", 2).await;
    let before = a.said().len();
    let b = start("b");
    assert_eq!(client.health(200).await["epoch"], 1);
    let sent = crate::handing::sent(&client).await;
    assert!(sent > 3 * RATE * TIMEOUT_S, "{sent} bytes take no longer than three meetings");
    for said in [a.said()[before..].to_owned(), b.said()] {
        assert_eq!(said.matches(" assigned rank=").count(), 1, "{said}");
    }
    assert!(!coordinator.process.said().contains("could not form"), "{}", coordinator.process.said());
    assert_eq!(greedy_text(&client, PROMPT, 60).await, undisturbed);
}
