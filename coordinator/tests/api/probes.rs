//! What supervisors and load balancers ask.

use serde_json::{Value, json};

use crate::server::{Server, Setup, error_of, until, user};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn ready_means_that_a_group_serves() {
    let server = Server::start_with(Setup { ready: false, ..Setup::default() }).await;
    let response = server.get("/ready").await;
    assert_eq!(response.headers()["retry-after"], "5");
    assert_eq!(error_of(response).await.0, 503);
    server.form_group(1);
    until(async || server.get("/ready").await.status() == 200).await;
}

/// A balancer or a kubelet that takes the only replica out for its load would make of a busy service none.
#[tokio::test]
async fn a_full_queue_is_ready_and_refuses_by_itself() {
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
    let waiting = server.open(CHAT, &body).await;
    let refused = server.post(CHAT, &body).await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    for path in ["/ready", "/health"] {
        assert_eq!(server.get(path).await.status(), 200, "{path}");
    }
    let metrics = server.get("/metrics").await.text().await.unwrap();
    for name in ["num_requests_waiting", "queue_limit", "ready"] {
        let begin = format!("flotilla_{name}{{");
        let line = metrics.lines().find(|line| line.starts_with(&begin)).unwrap_or_default();
        assert!(line.ends_with(" 1.0"), "{name}: {line}");
    }
    drop((running, waiting));
}

#[tokio::test]
async fn the_version_is_told() {
    let server = Server::start().await;
    let version: Value = server.get("/version").await.json().await.unwrap();
    assert_eq!(version, json!({"version": env!("CARGO_PKG_VERSION")}));
}
