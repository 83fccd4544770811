//! How a cluster ends: by order, by Ctrl-C in a terminal, by force.

use crate::support::checkpoint::endless;
use crate::support::client::{COMPLETIONS, Client, greedy, greedy_text};
use crate::support::server::{Coordinator, TOKEN, Up, expect_gone, is_alive, send_signal};
use std::time::Duration;

#[tokio::test]
async fn sigterm_ends_up_and_its_workers() {
    let model = endless().await;
    let mut up = Up::start(model.path(), &["--workers", "3"]).await;
    assert!(up.workers.len() == 3 && up.workers.iter().all(|id| is_alive(*id)), "{:?}", up.workers);
    send_signal("TERM", up.process.id().into());
    assert_eq!(up.process.ended().await.code(), Some(0), "{}", up.process.said());
    expect_gone(&up.workers).await;
}

/// A terminal sends Ctrl-C to every process of the group; the answer under way is finished all the same.
#[tokio::test]
async fn ctrl_c_finishes_the_answers_under_way() {
    let model = endless().await;
    let mut up = Up::start(model.path(), &[]).await;
    let client = Client::new(&up.url);
    let undisturbed = greedy_text(&client, "Once upon a time", 500).await;
    let mut stream = client.stream(COMPLETIONS, greedy("Once upon a time", 500)).await;
    let mut text = stream.text_of(20).await;
    send_signal("INT", -i64::from(up.process.id()));
    let rest = stream.rest().await;
    text.push_str(&rest.text);
    assert_eq!((rest.error, rest.finish_reason.as_deref()), (None, Some("length")));
    assert_eq!(text, undisturbed);
    assert_eq!(up.process.ended().await.code(), Some(0), "{}", up.process.said());
    expect_gone(&up.workers).await;
}

/// Nobody is left to end the workers, so they must end by themselves.
#[tokio::test]
async fn workers_end_when_up_is_killed() {
    let model = endless().await;
    let mut up = Up::start(model.path(), &[]).await;
    up.process.kill().await;
    expect_gone(&up.workers).await;
}

/// Those that are not to wait for another one.
#[tokio::test]
async fn workers_end_with_their_coordinator_if_they_are_told() {
    let model = endless().await;
    let mut coordinator = Coordinator::start(model.path(), 2, &[]).await;
    let mut workers = ["a", "b"].map(|name| coordinator.worker_with(name, TOKEN, &["--rejoin-timeout", "0"]));
    Client::new(&coordinator.url).health(200).await;
    send_signal("TERM", coordinator.process.id().into());
    let ended = tokio::time::timeout(Duration::from_secs(20), coordinator.process.ended()).await;
    assert_eq!(ended.expect("nothing is under way").code(), Some(0), "{}", coordinator.process.said());
    for worker in &mut workers {
        worker.ended().await;
        assert!(!worker.said().contains("panicked"), "{}", worker.said());
    }
}
