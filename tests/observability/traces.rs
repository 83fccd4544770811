//! A request as a collector sees it.

use super::collector::Collector;
use super::support::client::{CHAT, COMPLETIONS, Client, question};
use super::support::program::run;
use super::{http, metrics_of, up};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const WHOLE: &str = "POST /v1/chat/completions";

async fn ask(url: &str, traceparent: &str) {
    let request = http([]).post(format!("{url}{CHAT}")).header("traceparent", traceparent);
    let request = request.header("x-request-id", "mine").header("tracestate", "vendor=1");
    let answer = request.json(&question("A secret: zyxcanaryword", 40)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.bytes().await.unwrap();
}

/// So many are counted as such.
async fn spans(url: &str, outcome: &str) -> f64 {
    let metrics = metrics_of(url).await;
    let label = format!("outcome=\"{outcome}\"");
    let line =
        metrics.lines().find(|line| line.starts_with("flotilla_trace_spans_total") && line.contains(&label));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("it is told")
}

fn attribute(span: &Value, key: &str) -> Value {
    let all = span["attributes"].as_array().unwrap();
    let found = all.iter().find(|attribute| attribute["key"] == key);
    found.map_or(Value::Null, |attribute| attribute["value"].clone())
}

fn time(span: &Value, end: &str) -> u64 {
    span[end].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_request_is_told_from_its_arrival_to_the_steps_of_each_rank() {
    let collector = Collector::start().await;
    let up = up(&["--otlp-endpoint", &collector.url]).await;
    ask(&up.url, &format!("00-{TRACE}-{PARENT}-01")).await;
    let whole = collector.span(WHOLE).await;
    assert_eq!((&whole["traceId"], &whole["parentSpanId"]), (&json!(TRACE), &json!(PARENT)));
    assert_eq!((&whole["kind"], &whole["traceState"]), (&json!(2), &json!("vendor=1")));
    assert_eq!(attribute(&whole, "http.response.status_code"), json!({"intValue": "200"}));
    assert_eq!(attribute(&whole, "flotilla.request_id"), json!({"stringValue": "mine"}));
    assert_eq!(attribute(&whole, "flotilla.outcome"), json!({"stringValue": "complete"}));
    assert_eq!(whole["status"], Value::Null);
    for name in ["queue", "prefill", "decode", "step"] {
        let span = collector.span(name).await;
        assert_eq!((&span["traceId"], &span["parentSpanId"]), (&json!(TRACE), &whole["spanId"]), "{name}");
        let (start, end) = (time(&span, "startTimeUnixNano"), time(&span, "endTimeUnixNano"));
        assert!(time(&whole, "startTimeUnixNano") <= start && start <= end, "{name}: {span}");
    }
    let decode = collector.span("decode").await;
    assert_eq!(decode["events"][0]["name"], "first token");
    assert_eq!(decode["events"][0]["timeUnixNano"], decode["startTimeUnixNano"]);
    assert_eq!(decode["startTimeUnixNano"], collector.span("prefill").await["endTimeUnixNano"]);
    let generated = attribute(&whole, "gen_ai.usage.output_tokens");
    assert_eq!(attribute(&decode, "gen_ai.usage.output_tokens"), generated);
    let step = collector.span("step").await;
    assert_eq!(step["links"][0]["spanId"], whole["spanId"]);
    let ranks: Vec<Value> =
        collector.spans().into_iter().filter(|span| span["parentSpanId"] == step["spanId"]).collect();
    let numbers: BTreeSet<String> = ranks
        .iter()
        .map(|rank| attribute(rank, "flotilla.rank")["intValue"].as_str().unwrap().into())
        .collect();
    assert_eq!(numbers, BTreeSet::from(["0".into(), "1".into()]));
    for rank in &ranks {
        assert_eq!(rank["name"], "compute");
        assert!(attribute(rank, "flotilla.collective_us")["intValue"].is_string(), "{rank}");
        // Of each of 4 layers two sums, one of the embedding, and the choice of tokens.
        assert_ne!(attribute(rank, "flotilla.exchanges"), json!({"intValue": "0"}));
    }
    let (head, body) = &collector.requests()[0];
    assert!(
        head.starts_with("post /v1/traces ") && head.contains("content-type: application/json"),
        "{head}"
    );
    let service = &body["resourceSpans"][0]["resource"]["attributes"][0];
    assert_eq!(service, &json!({"key": "service.name", "value": {"stringValue": "flotilla"}}));
    let told: Vec<String> = collector.requests().iter().map(|(_, body)| body.to_string()).collect();
    assert!(!told.concat().contains("zyxcanaryword"));
    // They are counted a moment after they came.
    while spans(&up.url, "exported").await == 0.0 {}
    assert_eq!(spans(&up.url, "dropped").await, 0.0);
}

/// A prompt of several choices is one prompt, and an answer that a stop string ends has waited too.
#[tokio::test]
async fn a_trace_says_of_a_prompt_what_its_usage_says() {
    let collector = Collector::start().await;
    let up = up(&["--otlp-endpoint", &collector.url]).await;
    let body = json!({"prompt": "one two three ".repeat(20), "n": 3, "max_tokens": 20, "ignore_eos": true, "stop": ["e"]});
    let ask = async |id: &str, flag: &str| {
        let request = http([]).post(format!("{}{COMPLETIONS}", up.url));
        let request = request.header("traceparent", format!("00-{id}-{PARENT}-{flag}")).json(&body);
        request.send().await.unwrap().json::<Value>().await.unwrap()
    };
    ask(TRACE, "00").await;
    let cached = ask(TRACE, "01").await["usage"]["prompt_tokens_details"]["cached_tokens"].take();
    assert!(cached.as_u64() > Some(0), "{cached}");
    let whole = collector.span(&format!("POST {COMPLETIONS}")).await;
    let told = attribute(&whole, "flotilla.cached_tokens");
    assert_eq!(told, json!({"intValue": cached.to_string()}));
    let count = |name: &str| collector.spans().iter().filter(|span| span["name"] == name).count();
    assert_eq!((count("queue"), count("prefill")), (3, 3));
}

#[tokio::test]
async fn who_asks_decides_and_the_ratio_where_nobody_does() {
    let collector = Collector::start().await;
    let up = up(&["--otlp-endpoint", &collector.url, "--trace-ratio", "0"]).await;
    ask(&up.url, &format!("00-{TRACE}-{PARENT}-00")).await;
    ask(&up.url, "nothing that is known").await;
    Client::new(&up.url).expect(CHAT, question("Hello!", 2)).await;
    ask(&up.url, &format!("00-{}-{PARENT}-01", "a".repeat(32))).await;
    collector.span(WHOLE).await;
    let traces: BTreeSet<String> =
        collector.spans().iter().map(|span| span["traceId"].as_str().unwrap().to_owned()).collect();
    assert_eq!(traces, BTreeSet::from(["a".repeat(32)]));
}

#[tokio::test]
async fn a_server_without_a_collector_serves_on() {
    let nobody = Collector::start().await;
    let gone = nobody.url.clone();
    drop(nobody);
    let mut up = up(&["--otlp-endpoint", &gone]).await;
    ask(&up.url, &format!("00-{TRACE}-{PARENT}-01")).await;
    up.process.hear("spans are not taken").await;
    assert!(spans(&up.url, "dropped").await > 0.0);
}

#[tokio::test]
async fn what_is_no_collector_is_refused_before_anybody_works() {
    let refused = run(["up", "--otlp-endpoint", "localhost:4318"]).await;
    refused.expect_refusal(1, &["localhost:4318", "such as http://localhost:4318"]);
    assert!(!refused.stderr.contains("processes"), "{}", refused.stderr);
    run(["up", "--trace-ratio", "2"]).await.expect_refusal(1, &["--trace-ratio is 2", "from 0 to 1"]);
}

#[tokio::test]
async fn the_last_spans_leave_before_the_server_does() {
    let collector = Collector::start().await;
    let mut up = up(&["--otlp-endpoint", &collector.url]).await;
    ask(&up.url, &format!("00-{TRACE}-{PARENT}-01")).await;
    super::support::server::send_signal("TERM", up.process.id().into());
    up.process.ended().await;
    assert!(collector.spans().iter().any(|span| span["name"] == WHOLE), "{:?}", collector.spans());
}
