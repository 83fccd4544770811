//! What is counted of requests, as Prometheus reads it.

use serde_json::json;

use crate::server::{Server, thinks_and_says, until, user};

const CHAT: &str = "/v1/chat/completions";

/// The value of the series of this name that has these labels.
async fn value(server: &Server, name: &str, labels: &[&str]) -> Option<f64> {
    let text = server.get("/metrics").await.text().await.unwrap();
    let line = text.lines().find(|line| {
        let named = line.strip_prefix("flotilla_").and_then(|line| line.strip_prefix(name));
        named.is_some_and(|rest| rest.starts_with('{') && labels.iter().all(|label| rest.contains(label)))
    })?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn requests_and_tokens_are_counted() {
    let server = Server::start().await;
    let usage = server.chat(&user(&thinks_and_says("hm", "Yes."))).await["usage"].take();
    server.refused(CHAT, &json!({})).await;
    let tokens = |name: &str| usage[name].as_f64();
    // The request is over a moment after its answer is read.
    until(async || value(&server, "e2e_request_latency_seconds_count", &[]).await == Some(1.0)).await;
    let model = "model_name=\"openai/gpt-oss-test\"";
    for (name, labels, expected) in [
        ("request_success_total", vec!["finished_reason=\"stop\"", model], Some(1.0)),
        ("prompt_tokens_total", vec![model], tokens("prompt_tokens")),
        ("generation_tokens_total", vec![], tokens("completion_tokens")),
        ("time_to_first_token_seconds_count", vec![], Some(1.0)),
        ("inter_token_latency_seconds_count", vec![], tokens("completion_tokens").map(|count| count - 1.0)),
        ("request_queue_time_seconds_count", vec![], Some(1.0)),
        ("request_prompt_tokens_sum", vec![], tokens("prompt_tokens")),
        ("request_generation_tokens_sum", vec![], tokens("completion_tokens")),
        ("http_requests_total", vec!["handler=\"/v1/chat/completions\"", "status=\"200\""], Some(1.0)),
        ("http_requests_total", vec!["handler=\"/v1/chat/completions\"", "status=\"400\""], Some(1.0)),
        ("num_requests_running", vec![], Some(0.0)),
        ("num_requests_waiting", vec![], Some(0.0)),
        ("kv_cache_usage_perc", vec![], Some(0.0)),
    ] {
        assert_eq!(value(&server, name, &labels).await, expected, "{name} {labels:?}");
    }
}

#[tokio::test]
async fn the_text_is_openmetrics() {
    let server = Server::start().await;
    let response = server.get("/metrics").await;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(response.headers()["content-type"], kind);
    let text = response.text().await.unwrap();
    assert!(text.ends_with("# EOF\n"));
    for (name, kind) in [
        ("num_preemptions", "counter"),
        ("prefix_cache_queries", "counter"),
        ("prefix_cache_hits", "counter"),
        ("spec_decode_num_draft_tokens", "counter"),
        ("spec_decode_num_accepted_tokens", "counter"),
        ("num_requests_running", "gauge"),
        ("inter_token_latency_seconds", "histogram"),
    ] {
        assert!(text.contains(&format!("# TYPE flotilla_{name} {kind}\n")), "{name} in {text}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_counted_as_such_and_invents_no_series() {
    let server = Server::start().await;
    let mut body = user("<|channel|>final<|message|>on and on");
    body["stream"] = json!(true);
    let mut leaver = server.open(CHAT, &body).await;
    leaver.next().await.unwrap();
    assert_eq!(value(&server, "num_requests_running", &[]).await, Some(1.0));
    drop(leaver);
    let left = &["finished_reason=\"abort\""];
    until(async || value(&server, "request_success_total", left).await == Some(1.0)).await;
    server.get("/a/path/that/a/client/made/up").await;
    let text = server.get("/metrics").await.text().await.unwrap();
    assert!(!text.contains("made/up"));
}
