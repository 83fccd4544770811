//! What is counted of requests, as Prometheus reads it.

use flotilla_coordinator::board::Board;
use flotilla_coordinator::driver;
use flotilla_coordinator::group::GroupError;
use flotilla_coordinator::service::Settings;
use flotilla_scheduler::Scheduler;
use flotilla_shared::plan::Demand;
use flotilla_shared::{Epoch, KvBlocks, Loading, ModelSpec, Plan, Rank, StepId};
use serde_json::json;

use crate::cluster::worker;
use crate::parrot::Parrot;
use crate::server::{CONTEXT, Events, Server, Setup, thinks_and_says, until, user};

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

/// One place to run in, one to wait in.
async fn narrow(ready: bool) -> Server {
    let scheduler = flotilla_scheduler::Settings {
        sequences_max: 1,
        waiting_max: 1,
        context_max: CONTEXT,
        ..Default::default()
    };
    Server::start_with(Setup { scheduler, ready, ..Setup::default() }).await
}

async fn endless(server: &Server) -> Events {
    let mut body = user("<|channel|>final<|message|>on and on");
    body["stream"] = json!(true);
    server.open(CHAT, &body).await
}

/// They took no time, and generated nothing: with them a server looks the faster the more it refuses.
#[tokio::test]
async fn who_is_refused_is_no_request_that_generated() {
    let server = narrow(false).await;
    let yes = user(&thinks_and_says("", "Yes."));
    assert_eq!(server.post(CHAT, &yes).await.status(), 503);
    server.form_group(1);
    until(async || value(&server, "ready", &[]).await == Some(1.0)).await;
    let mut running = endless(&server).await;
    running.next().await.unwrap();
    let waiting = endless(&server).await;
    for _ in 0..3 {
        assert_eq!(server.post(CHAT, &yes).await.status(), 429);
    }
    drop((running, waiting));
    until(async || value(&server, "request_success_total", &["\"abort\""]).await == Some(2.0)).await;
    until(async || server.post(CHAT, &yes).await.status() == 200).await;
    let requests = async || value(&server, "e2e_request_latency_seconds_count", &[]).await;
    until(async || requests().await >= Some(3.0)).await;
    assert_eq!(requests().await, Some(3.0));
    assert_eq!(value(&server, "request_generation_tokens_count", &[]).await, Some(3.0));
}

/// Whoever gives up in the queue has waited longest.
#[tokio::test]
async fn waiting_is_told_of_those_too_that_do_not_come_to_their_end() {
    let server = narrow(true).await;
    let waits = async || value(&server, "request_queue_time_seconds_count", &[]).await;
    let mut running = endless(&server).await;
    running.next().await.unwrap();
    assert_eq!(waits().await, Some(1.0), "with the first token");
    let waiting = endless(&server).await;
    let waited = std::time::Duration::from_millis(20);
    tokio::time::sleep(waited).await;
    drop(waiting);
    until(async || waits().await == Some(2.0)).await;
    let sum = value(&server, "request_queue_time_seconds_sum", &[]).await;
    assert!(sum >= Some(waited.as_secs_f64()), "{sum:?}");
    drop(running);
    let mut stops = user("<|channel|>final<|message|>one two three");
    stops["stop"] = json!("two");
    until(async || server.post(CHAT, &stops).await.status() == 200).await;
    assert_eq!(waits().await, Some(3.0), "the answer ended before the scheduler's last word");
}

/// One runs, and the others' time is over while they wait: there is no group any more when it is.
#[tokio::test]
async fn waiting_in_vain_is_told_once() {
    let adjust = |settings: &mut Settings| {
        settings.limits.request_timeout = Some(std::time::Duration::from_millis(500));
    };
    let scheduler =
        flotilla_scheduler::Settings { sequences_max: 1, context_max: CONTEXT, ..Default::default() };
    let driver = driver::Settings { regroup_wait: std::time::Duration::from_secs(60), ..Default::default() };
    let server =
        Server::start_with(Setup { scheduler, driver, adjust: Box::new(adjust), ..Setup::default() }).await;
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(endless(&server).await);
    }
    server.fleet.lost(Epoch(1), GroupError::Outgrown);
    for mut events in all {
        while events.next().await.is_some() {}
    }
    assert_eq!(value(&server, "request_success_total", &["\"deadline\""]).await, Some(4.0));
    assert_eq!(value(&server, "request_queue_time_seconds_count", &[]).await, Some(4.0));
}

/// Each has one of its own, and what waits is counted over all.
#[tokio::test]
async fn the_limit_of_the_queue_is_that_of_all_replicas() {
    let replica = || driver::start::<Parrot>(Scheduler::new(Default::default()).unwrap(), Default::default());
    let (others, _fleets): (Vec<_>, Vec<_>) = [replica(), replica()].into_iter().unzip();
    let adjust = Box::new(|settings: &mut Settings| settings.waiting_max = 20);
    let server = Server::start_with(Setup { others, adjust, ..Setup::default() }).await;
    assert_eq!(value(&server, "queue_limit", &[]).await, Some(60.0));
}

/// Nothing that begins at its first count shows a rise.
#[tokio::test]
async fn what_alarms_look_at_is_told_from_the_start() {
    let server = Server::start().await;
    for reason in ["stop", "length", "abort", "deadline", "error"] {
        let label = format!("finished_reason=\"{reason}\"");
        assert_eq!(value(&server, "request_success_total", &[&label]).await, Some(0.0), "{reason}");
    }
    for status in ["429", "500", "503"] {
        let labels = [format!("handler=\"{CHAT}\""), format!("status=\"{status}\"")];
        let labels = [labels[0].as_str(), labels[1].as_str()];
        assert_eq!(value(&server, "http_requests_total", &labels).await, Some(0.0), "{status}");
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

#[tokio::test]
async fn replicas_and_their_steps_are_told_from_the_start() {
    let server = Server::start_with(Setup { ready: false, ..Setup::default() }).await;
    let replica = "replica=\"0\"";
    for (name, labels, expected) in [
        ("ready", vec![], Some(0.0)),
        ("replica_serving", vec![replica], Some(0.0)),
        ("groups_formed_total", vec![replica], Some(0.0)),
        ("epoch", vec![replica], None),
        ("group_losses_total", vec![replica, "reason=\"worker_lost\""], Some(0.0)),
        ("workers", vec!["state=\"waiting\""], Some(0.0)),
        ("step_phase_seconds_count", vec![replica, "phase=\"wait\""], Some(0.0)),
        ("form_failures_total", vec!["reason=\"worker_gone\""], Some(0.0)),
    ] {
        assert_eq!(value(&server, name, &labels).await, expected, "{name} {labels:?}");
    }
    assert!(value(&server, "without_group_seconds_total", &[replica]).await.unwrap() > 0.0);

    server.form_group(7);
    until(async || value(&server, "ready", &[]).await == Some(1.0)).await;
    server.chat(&user(&thinks_and_says("hm", "Yes."))).await;
    let without = value(&server, "without_group_seconds_total", &[replica]).await;
    for phase in ["schedule", "send", "wait", "compute"] {
        let label = format!("phase=\"{phase}\"");
        let of = async |part: &str, le: &str| {
            value(&server, &format!("step_phase_seconds_{part}"), &[replica, &label, le]).await
        };
        // A step that ran ahead comes back after the answer.
        until(async || {
            let steps = value(&server, "replica_steps_total", &[replica]).await;
            steps > Some(1.0) && of("count", "").await == steps
        })
        .await;
        assert_eq!(of("bucket", "le=\"+Inf\"").await, of("count", "").await, "{phase}");
        let [shortest, longest] = ["0.00005", "1.0"].map(|bound| format!("le=\"{bound}\""));
        assert!(of("bucket", &shortest).await.unwrap() <= of("bucket", &longest).await.unwrap(), "{phase}");
        assert!(phase == "compute" || of("sum", "").await > Some(0.0), "{phase}");
    }
    assert_eq!(value(&server, "epoch", &[replica]).await, Some(7.0));
    assert!(value(&server, "replica_steps_total", &[replica]).await.unwrap() > 1.0);
    let blocks = |state: &'static str| {
        let server = &server;
        async move { value(server, "kv_blocks", &[replica, "pool=\"full\"", state]).await.unwrap() }
    };
    assert_eq!(blocks("state=\"held\"").await, 0.0);
    assert!(blocks("state=\"cached\"").await + blocks("state=\"empty\"").await > 0.0);

    let error = GroupError::Refused { rank: Rank(0), step: StepId(3), reason: "a secret".into() };
    server.fleet.lost(Epoch(7), error);
    let lost = &[replica, "reason=\"step_refused\""];
    until(async || value(&server, "group_losses_total", lost).await == Some(1.0)).await;
    assert_eq!(value(&server, "ready", &[]).await, Some(0.0));
    until(async || value(&server, "without_group_seconds_total", &[replica]).await > without).await;
    let text = server.get("/metrics").await.text().await.unwrap();
    assert!(!text.contains("a secret"), "reasons are of a fixed set");
}

#[tokio::test]
async fn each_worker_is_told_with_what_it_holds() {
    let board = Board::default();
    let shown = board.clone();
    let server =
        Server::start_with(Setup { adjust: Box::new(|settings| settings.board = shown), ..Setup::default() })
            .await;
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let workers = [worker("a"), worker("b \"quoted\"")];
    let demand = Demand { kv_blocks: KvBlocks::plain(64), step_tokens_max: 64, logit_rows_max: 64 };
    let plan = Plan::tensor_parallel(&spec, &workers, demand).unwrap();
    board.planned(Epoch(1), &spec, &plan, &workers, demand);
    board.loading(&[Loading { bytes_done: 5, bytes_total: 10, ..Loading::default() }, Loading::default()]);
    let of_b = ["replica=\"0\"", "rank=\"1\"", "worker=\"b \\\"quoted\\\"\""];
    let weights = plan.bytes(&spec, Rank(1)).weights() as f64;
    let kind = [&of_b[..], &["kind=\"weights\""]].concat();
    assert_eq!(value(&server, "worker_memory_bytes", &kind).await, Some(weights));
    assert_eq!(value(&server, "worker_memory_limit_bytes", &of_b).await, Some((32u64 << 30) as f64));
    assert_eq!(value(&server, "worker_load_done_bytes", &["worker=\"a\""]).await, Some(5.0));
    assert_eq!(value(&server, "worker_load_goal_bytes", &["worker=\"a\""]).await, Some(10.0));
    let described = ["worker=\"a\"", "device=\"cpu avx2\"", "backend=\"cpu\""];
    assert_eq!(value(&server, "worker_info", &described).await, Some(1.0));
    assert_eq!(value(&server, "workers", &["state=\"serving\""]).await, Some(2.0));
}
