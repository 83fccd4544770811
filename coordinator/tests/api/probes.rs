//! What supervisors and load balancers ask.

use serde_json::{Value, json};

use crate::server::{Server, Setup, error_of, until, user};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn ready_means_that_one_more_request_would_be_taken_in() {
    let server = Server::start_with(Setup { ready: false, ..Setup::default() }).await;
    let response = server.get("/ready").await;
    assert_eq!(response.headers()["retry-after"], "5");
    assert_eq!(error_of(response).await.0, 503);
    server.form_group(1);
    until(async || server.get("/ready").await.status() == 200).await;
}

#[tokio::test]
async fn a_full_queue_is_not_ready_and_yet_healthy() {
    let scheduler = flotilla_scheduler::Settings {
        sequences_max: 1,
        waiting_max: 1,
        context_max: crate::server::CONTEXT,
        ..Default::default()
    };
    let adjust = Box::new(|settings: &mut flotilla_coordinator::service::Settings| settings.waiting_max = 1);
    let server = Server::start_with(Setup { scheduler, adjust, ..Setup::default() }).await;
    let mut body = user("<|channel|>final<|message|>on and on");
    body["stream"] = json!(true);
    let mut running = server.open(CHAT, &body).await;
    running.next().await.unwrap();
    assert_eq!(server.get("/ready").await.status(), 200);
    let waiting = server.open(CHAT, &body).await;
    until(async || server.get("/ready").await.status() == 503).await;
    let (_, error) = error_of(server.get("/ready").await).await;
    assert_eq!(error["code"], "queue_full");
    assert_eq!(server.get("/health").await.status(), 200);
    drop((running, waiting));
    until(async || server.get("/ready").await.status() == 200).await;
}

#[tokio::test]
async fn the_version_is_told() {
    let server = Server::start().await;
    let version: Value = server.get("/version").await.json().await.unwrap();
    assert_eq!(version, json!({"version": env!("CARGO_PKG_VERSION")}));
}
