//! Stopping in order: a server that finishes what is under way and tells others that it stops, and a worker whose
//! group goes on without it at once.

use crate::support::checkpoint::endless;
use crate::support::client::{COMPLETIONS, Client, greedy, greedy_text};
use crate::support::program::run;
use crate::support::server::{Coordinator, send_signal};
use std::time::Duration;
use tokio::time::timeout;

const PROMPT: &str = "Once upon a time";
const TOKENS: usize = 900;

#[tokio::test]
async fn a_server_told_to_stop_finishes_its_streams_and_refuses_what_is_new() {
    let model = endless().await;
    let mut coordinator = Coordinator::start(model.path(), 1, &["--drain-timeout", "120"]).await;
    let _worker = coordinator.worker("a");
    let client = Client::new(&coordinator.url);
    client.health(200).await;
    let undisturbed = greedy_text(&client, PROMPT, TOKENS).await;
    let mut stream = client.stream(COMPLETIONS, greedy(PROMPT, TOKENS)).await;
    let begun = stream.text_of(20).await;
    send_signal("TERM", coordinator.process.id().into());
    let body = client.health(503).await;
    assert_eq!(body["error"]["code"], "draining");
    for path in ["/ready", "/v1/models"] {
        let (status, body) = client.get(path).await;
        assert_eq!((status, &body["error"]["code"]), (503, &"draining".into()), "{path}");
    }
    let (status, refused) = client.post(COMPLETIONS, &greedy(PROMPT, 5)).await;
    assert_eq!((status, &refused["error"]["code"]), (503, &"draining".into()), "{refused}");
    let rest = timeout(Duration::from_secs(60), stream.rest()).await.expect("the stream ends");
    assert_eq!((rest.error, rest.finish_reason.as_deref()), (None, Some("length")));
    assert_eq!(begun + &rest.text, undisturbed);
    assert_eq!(coordinator.process.ended().await.code(), Some(0));
    let said = coordinator.process.said();
    let drains: Vec<&str> = said.lines().filter(|line| line.contains("act=\"drain\"")).collect();
    assert!(drains.len() == 2 && drains[0].contains("1 requests are under way, for 120s"), "{said}");
    assert!(drains[1].contains("outcome=\"done\""), "{said}");
}

#[tokio::test]
async fn a_stream_that_takes_longer_than_the_drain_ends_with_an_error() {
    let model = endless().await;
    let mut coordinator = Coordinator::start(model.path(), 1, &["--drain-timeout", "0"]).await;
    let _worker = coordinator.worker("a");
    let client = Client::new(&coordinator.url);
    client.health(200).await;
    let mut stream = client.stream(COMPLETIONS, greedy(PROMPT, 3000)).await;
    stream.text_of(20).await;
    send_signal("TERM", coordinator.process.id().into());
    assert_eq!(coordinator.process.ended().await.code(), Some(0));
    let rest = timeout(Duration::from_secs(60), stream.rest()).await.expect("the stream ends");
    assert_eq!(rest.error.expect("an error event")["message"], "the server is stopping");
    let said = coordinator.process.said();
    assert!(said.contains("1 answers were ended by an error to stop in time"), "{said}");
    assert!(said.contains("outcome=\"interrupted\""), "{said}");
}

#[tokio::test]
async fn a_worker_told_to_stop_says_so_and_its_group_goes_on_without_it() {
    let model = endless().await;
    let mut coordinator = Coordinator::start(model.path(), 2, &["--regroup-grace", "0"]).await;
    let mut workers = ["a", "b"].map(|name| coordinator.worker(name));
    let client = Client::new(&coordinator.url);
    client.health(200).await;
    let undisturbed = greedy_text(&client, PROMPT, TOKENS).await;
    let mut stream = client.stream(COMPLETIONS, greedy(PROMPT, TOKENS)).await;
    let begun = stream.text_of(20).await;
    send_signal("TERM", workers[0].id().into());
    assert_eq!(workers[0].ended().await.code(), Some(0), "{}", workers[0].said());
    let rest = timeout(Duration::from_secs(60), stream.rest()).await.expect("the stream ends");
    assert_eq!((rest.error, rest.finish_reason.as_deref()), (None, Some("length")));
    assert_eq!(begun + &rest.text, undisturbed);
    coordinator.process.hear("it leaves: it was told to stop").await;
    assert!(!workers[1].has_ended(), "{}", workers[1].said());
}

/// One that waits for a group, and one that still looks for its coordinator.
#[tokio::test]
async fn a_worker_without_a_group_stops_at_once() {
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 2, &[]).await;
    let mut waiting = coordinator.worker("a");
    waiting.hear("joined the coordinator").await;
    send_signal("TERM", waiting.id().into());
    assert_eq!(waiting.ended().await.code(), Some(0));
    let address = coordinator.workers_at.clone();
    drop(coordinator);
    let args = ["worker", "--coordinator", &address, "--join-token", "x", "--join-timeout", "100"];
    let mut lonely = crate::support::server::Running::start(&args);
    lonely.hear("not reachable yet").await;
    send_signal("TERM", lonely.id().into());
    assert_eq!(lonely.ended().await.code(), Some(0));
    run(["up", "--drain-timeout", "x"]).await.expect_refusal(2, &["--drain-timeout"]);
}
