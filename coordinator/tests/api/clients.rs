//! Many clients at once, clients that leave, and clients that come when there is no room.

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;

use crate::server::{Server, Setup, error_of, joined, thinks_and_says, until, user};

const CHAT: &str = "/v1/chat/completions";

fn endless() -> serde_json::Value {
    let mut body = user("<|channel|>final<|message|>on and on");
    body["stream"] = json!(true);
    body
}

#[tokio::test]
async fn sixty_four_streams_do_not_mix() {
    let server = Server::start().await;
    let one = async |index: usize| {
        let said = format!("I am {index}: {}", "🎉 ab ".repeat(index % 7));
        let body = user(&thinks_and_says(&format!("thought {index}"), &said));
        let chunks = server.stream(CHAT, &body).await;
        assert_eq!(joined(&chunks, "/delta/content"), said);
        assert_eq!(joined(&chunks, "/delta/reasoning"), format!("thought {index}"));
    };
    join_all((0..64).map(one)).await;
    assert_eq!(server.seen.admitted(), 64);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place_and_disturbs_nobody() {
    let server = Server::start().await;
    let mut leaver = server.open(CHAT, &endless()).await;
    let mut other = server.open(CHAT, &endless()).await;
    for _ in 0..3 {
        leaver.next().await.unwrap();
        other.next().await.unwrap();
    }
    assert_eq!(server.seen.released(), 0);
    drop(leaver);
    until(async || server.seen.released() == 1).await;
    for _ in 0..20 {
        assert!(other.next().await.unwrap().contains("chat.completion.chunk"));
    }
    assert_eq!(server.seen.released(), 1, "the other is still at work");
    drop(other);
    // Workers hear of it with the next step.
    server.chat(&user(&thinks_and_says("", "Next."))).await;
    until(async || server.seen.released() >= 2).await;
}

#[tokio::test]
async fn a_client_that_leaves_without_a_stream_frees_its_place_too() {
    let server = Server::start().await;
    let mut body = endless();
    body["stream"] = json!(false);
    let request = server.client.post(format!("{}{CHAT}", server.url)).body(body.to_string());
    let waiting = tokio::spawn(request.send());
    until(async || server.seen.admitted() == 1).await;
    waiting.abort();
    // Or it would go on to the end of the context.
    let mut other = server.open(CHAT, &endless()).await;
    until(async || server.seen.released() >= 1).await;
    other.next().await.unwrap();
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let scheduler = flotilla_scheduler::Settings {
        sequences_max: 1,
        waiting_max: 1,
        context_max: crate::server::CONTEXT,
        ..Default::default()
    };
    let server = Server::start_with(Setup { scheduler, ..Setup::default() }).await;
    let mut running = server.open(CHAT, &endless()).await;
    running.next().await.unwrap();
    let waiting = server.open(CHAT, &endless()).await;
    let response = server.post(CHAT, &user("x")).await;
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, error) = error_of(response).await;
    assert_eq!((status, &error["code"]), (429, &json!("queue_full")));
    assert!(error["message"].as_str().unwrap().contains("the queue, of 1 requests, has no room"), "{error}");

    // Two choices need two places: none is taken.
    drop(waiting);
    let mut two = user(&thinks_and_says("", "Yes."));
    two["n"] = json!(3);
    assert_eq!(server.refused(CHAT, &two).await.0, 429);
    drop(running);
    two["n"] = json!(1);
    until(async || server.post(CHAT, &two).await.status() == 200).await;
}

#[tokio::test]
async fn silent_streams_are_kept_alive() {
    let scheduler = flotilla_scheduler::Settings {
        sequences_max: 1,
        context_max: crate::server::CONTEXT,
        ..Default::default()
    };
    let keep_alive = Duration::from_millis(20);
    let server = Server::start_with(Setup { scheduler, keep_alive, ..Setup::default() }).await;
    let mut running = server.open(CHAT, &endless()).await;
    running.next().await.unwrap();
    let mut waiting = server.open(CHAT, &endless()).await;
    assert_eq!(waiting.next_raw().await.unwrap(), ":");
}
