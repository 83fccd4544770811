//! Groups that are not there yet, are lost, or come back; and a server that is told to stop.

use std::sync::atomic::Ordering;
use std::time::Duration;

use flotilla_coordinator::driver;
use flotilla_coordinator::group::GroupError;
use flotilla_shared::{Epoch, Rank};
use serde_json::{Value, json};

use crate::server::{Events, Server, Setup, error_of, thinks_and_says, until, user};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn until_workers_are_there_health_says_what_is_missing() {
    let server = Server::start_with(Setup { ready: false, ..Setup::default() }).await;
    let (status, error) = error_of(server.get("/health").await).await;
    assert_eq!((status, &error["code"]), (503, &json!("not_ready")));
    server.fleet.loading("2 of 4 workers have joined");
    let words = "the model is loading: 2 of 4 workers have joined";
    until(async || error_of(server.get("/health").await).await.1["message"] == words).await;
    let response = server.post(CHAT, &user("x")).await;
    assert_eq!(response.headers()["retry-after"], "5");
    let (status, error) = error_of(response).await;
    assert_eq!((status, &error["message"]), (503, &json!(words)));

    server.form_group(1);
    until(async || server.get("/health").await.status() == 200).await;
    server.chat(&user(&thinks_and_says("", "Yes."))).await;
}

fn endless() -> Value {
    let mut body = user("<|channel|>final<|message|>on and on");
    body["stream"] = json!(true);
    body
}

/// The events up to the last, which is `[DONE]`.
async fn rest(mut events: Events) -> Vec<Value> {
    let mut rest = Vec::new();
    while let Some(event) = events.next().await.filter(|event| event != "[DONE]") {
        rest.push(serde_json::from_str(&event).unwrap());
    }
    rest
}

#[tokio::test]
async fn a_lost_group_ends_its_streams_with_an_error() {
    let server = Server::start().await;
    let mut stream = server.open(CHAT, &endless()).await;
    stream.next().await.unwrap();
    server.seen.die.store(true, Ordering::SeqCst);
    let rest = rest(stream).await;
    let error = &rest.last().unwrap()["error"];
    assert_eq!(error["code"], "interrupted");
    let words = "the workers of the model were lost: worker of rank 2 is lost: its power was cut";
    assert_eq!(error["message"], words);
    let (status, error) = error_of(server.get("/health").await).await;
    assert_eq!((status, &error["message"]), (503, &json!(words)));
    assert_eq!(server.refused(CHAT, &user("x")).await.0, 503);

    server.form_group(2);
    until(async || server.get("/health").await.status() == 200).await;
    server.chat(&user(&thinks_and_says("", "Yes."))).await;
}

#[tokio::test]
async fn a_group_can_be_lost_while_it_rests() {
    let server = Server::start().await;
    let error = || GroupError::Lost { rank: Rank(0), reason: "no heartbeat".to_owned() };
    server.fleet.lost(Epoch(1), error());
    until(async || server.get("/health").await.status() == 503).await;
    server.form_group(2);
    // News of the group before say nothing of this one.
    server.fleet.lost(Epoch(1), error());
    until(async || server.get("/health").await.status() == 200).await;
    server.chat(&user(&thinks_and_says("", "Yes."))).await;
}

#[tokio::test]
async fn with_patience_a_stream_goes_on_in_the_next_group() {
    let driver = driver::Settings { regroup_wait: Duration::from_secs(600), ..Default::default() };
    let server = Server::start_with(Setup { driver, ..Setup::default() }).await;
    let said: String = (0..200).map(|number| format!(" {number}")).collect();
    let mut body = user(&thinks_and_says("Count.", &said));
    body["stream"] = json!(true);
    let mut stream = server.open(CHAT, &body).await;
    let mut content = String::new();
    let mut read = |event: &Value| {
        content.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
    };
    for _ in 0..10 {
        read(&serde_json::from_str(&stream.next().await.unwrap()).unwrap());
    }
    server.seen.die.store(true, Ordering::SeqCst);
    until(async || server.get("/health").await.status() == 503).await;
    server.form_group(2);
    rest(stream).await.iter().for_each(&mut read);
    assert_eq!(content, said, "nothing lost, nothing twice");
}

#[tokio::test]
async fn answers_under_way_are_finished_before_the_server_stops() {
    let mut server = Server::start().await;
    let said = "word ".repeat(100);
    let mut body = user(&thinks_and_says("", &said));
    body["stream"] = json!(true);
    let mut stream = server.open(CHAT, &body).await;
    stream.next().await.unwrap();
    drop(server.stop.take());
    let rest = rest(stream).await;
    assert_eq!(rest.last().unwrap()["choices"][0]["finish_reason"], "stop");
    until(async || server.client.get(format!("{}/health", server.url)).send().await.is_err()).await;
}

#[tokio::test]
async fn a_request_that_makes_every_step_fail_is_told_so() {
    let driver = driver::Settings { regroup_wait: Duration::from_secs(600), ..Default::default() };
    let server = Server::start_with(Setup { driver, ..Setup::default() }).await;
    server.seen.refuse.store(true, Ordering::SeqCst);
    let form_again = async {
        for epoch in 2.. {
            until(async || server.get("/health").await.status() == 503).await;
            server.form_group(epoch);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let body = user("x");
    let refused = tokio::select! {
        refused = server.post(CHAT, &body) => refused,
        () = form_again => unreachable!("it never ends"),
    };
    assert!(refused.headers().get("retry-after").is_none());
    assert_eq!(refused.headers()["x-should-retry"], "false", "clients try 500 again by themselves");
    let (status, error) = error_of(refused).await;
    assert_eq!((status, &error["type"], &error["code"]), (500, &json!("server_error"), &json!("steps_fail")));
    let words = error["message"].as_str().unwrap();
    assert!(
        words.contains("in every step that this request is part of") && words.contains("hint"),
        "{words}"
    );
}
