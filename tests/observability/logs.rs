//! What is logged of requests, and what never is.

use super::support::client::{CHAT, COMPLETIONS};
use super::support::server::{Running, Up};
use super::{demo, http, up};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Stands in prompts, and nowhere else.
const CANARY: &str = "zyxcanaryword";
/// What the canary's neighbours are; an answer may hold them.
const WORDS: &str = "Please repeat zyxcanaryword for me.";

async fn post(url: &str, path: &str, id: &str, body: &Value) -> (u16, String) {
    let request = http([]).post(format!("{url}{path}")).header("x-request-id", id).json(body);
    let answer = request.send().await.unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let status = answer.status().as_u16();
    answer.bytes().await.unwrap();
    (status, id)
}

/// Of all kinds of requests, good and bad, with the canary in every place that is text.
async fn ask_all(url: &str) {
    let user = json!([{"role": "user", "content": WORDS}]);
    let schema = json!({"type": "object", "properties": {CANARY: {"const": CANARY}}, "required": [CANARY]});
    let tool = json!({"type": "function", "function": {"name": CANARY, "description": WORDS}});
    let bodies = [
        (CHAT, json!({"messages": user, "max_tokens": 8})),
        (CHAT, json!({"messages": user, "max_tokens": 8, "stream": true, "user": CANARY})),
        (CHAT, json!({"messages": user, "max_tokens": 40, "tools": [tool], "stop": [CANARY]})),
        (
            CHAT,
            json!({"messages": user, "max_tokens": 60, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}),
        ),
        (CHAT, json!({"messages": user, CANARY: 1})),
        (CHAT, json!({"messages": WORDS})),
        (COMPLETIONS, json!({"prompt": WORDS, "max_tokens": 8, "logprobs": 2})),
        ("/v1/responses", json!({"input": WORDS, "max_output_tokens": 8})),
        ("/v1/responses", json!({"input": WORDS, "max_output_tokens": 8, "stream": true})),
        ("/tokenize", json!({"prompt": WORDS})),
    ];
    for (path, body) in bodies {
        post(url, path, "a-name-of-mine", &body).await;
    }
    let torn = http([]);
    torn.post(format!("{url}{CHAT}")).body(format!("{{\"messages\": \"{CANARY}")).send().await.unwrap();
}

/// At this level (as if none was given, where it is empty), in this form.
async fn up_logging(level: &str, more: &[&str]) -> Up {
    let model = demo();
    let args = [
        "up",
        "--model",
        model.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--threads",
        "1",
        "--workers",
        "2",
    ];
    let mut process =
        Running::start_with(&[&args[..], more].concat(), &[("FLOTILLA_LOG", PathBuf::from(level))]);
    let url = process.hear("is served on ").await;
    Up { process, url, workers: Vec::new() }
}

#[tokio::test]
async fn no_word_of_a_prompt_is_logged_at_any_level() {
    for more in [&["--log-format", "text"][..], &["--log-format", "json"]] {
        let mut up = up_logging("trace", more).await;
        ask_all(&up.url).await;
        up.process.hear("a-name-of-mine").await;
        let said = up.process.said();
        assert!(said.len() > 10_000, "nothing is traced: {said}");
        let line = said.lines().find(|line| line.contains(CANARY));
        assert_eq!(line, None, "with {more:?}");
    }
}

#[tokio::test]
async fn prompts_are_shown_where_it_is_asked_for_and_only_their_beginnings() {
    let mut up = up(&["--log-prompts", "--log-format", "json"]).await;
    let prompt = format!("{WORDS} {} the-end-of-it", "word ".repeat(300));
    post(&up.url, COMPLETIONS, "long", &json!({"prompt": prompt, "max_tokens": 2})).await;
    up.process.hear("\"prompt_tokens\"").await;
    let said = up.process.said();
    let shown = lines(&said).find(|line| line["message"] == "prompt").unwrap_or_else(|| panic!("{said}"));
    assert_eq!(shown["request_id"], "long");
    assert!(shown["beginning"].as_str().unwrap().starts_with("Please repeat zyxcanary"), "{shown}");
    assert!(shown["beginning"].as_str().unwrap().chars().count() <= 500 && !said.contains("the-end-of-it"));
}

/// `up` says only what is wrong, and so did not say what was asked for.
#[tokio::test]
async fn up_shows_prompts_where_nothing_else_says_what_is_logged() {
    let mut up = up_logging("", &["--log-prompts", "--log-format", "json"]).await;
    post(&up.url, COMPLETIONS, "mine", &json!({"prompt": WORDS, "max_tokens": 2})).await;
    up.process.hear("\"prompt_tokens\"").await;
    let said = up.process.said();
    let of_mine: Vec<Value> = lines(&said).filter(|line| line["request_id"] == "mine").collect();
    let messages: Vec<&Value> = of_mine.iter().map(|line| &line["message"]).collect();
    assert_eq!(messages, ["prompt", "request"], "{said}");
    assert_eq!(of_mine[0]["beginning"], WORDS, "{said}");
    assert!(!said.contains("joined the coordinator"), "it says all that servers say: {said}");
}

#[tokio::test]
async fn json_lines_name_the_request_that_they_are_about() {
    let mut up = up(&["--log-format", "json"]).await;
    let body = json!({"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4});
    assert_eq!(post(&up.url, CHAT, "mine-1", &body).await, (200, "mine-1".into()));
    let (_, made) = post(&up.url, CHAT, "not well formed", &body).await;
    assert!(made.starts_with("req_"), "{made}");
    up.process.hear(&made).await;
    let said = up.process.said();
    let of_request =
        |id: &str| lines(&said).find(|line| line["request_id"] == id && line["message"] == "request");
    for id in ["mine-1", made.as_str()] {
        let line = of_request(id).unwrap_or_else(|| panic!("no line of {id}: {said}"));
        assert_eq!(
            (&line["status"], &line["level"], &line["completion_tokens"]),
            (&json!(200), &json!("INFO"), &json!(4))
        );
        assert!(line["timestamp"].is_string() && line["total_ms"].is_u64(), "{line}");
    }
    // The workers' lines as well, and what is said in any case.
    let workers = lines(&said).filter(|line| line["message"] == "joined the coordinator").count();
    assert_eq!(workers, 2, "{said}");
    assert!(
        lines(&said).any(|line| line["message"].as_str().is_some_and(|words| words.contains("2 workers of")))
    );
}

/// Nobody needs a key to send a method, and any word is one.
#[tokio::test]
async fn a_method_that_a_client_makes_up_is_not_logged() {
    let mut up = up(&["--log-format", "json"]).await;
    for (id, method) in [("known", "PUT"), ("made-up", "ZYXCANARY")] {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = http([]).request(method, format!("{}{CHAT}", up.url)).header("x-request-id", id);
        assert_eq!(request.send().await.unwrap().status(), 405);
    }
    up.process.hear("made-up").await;
    let said = up.process.said();
    let methods: Vec<Value> =
        lines(&said).map(|line| line["method"].clone()).filter(Value::is_string).collect();
    assert_eq!(methods, ["PUT", "_OTHER"], "{said}");
    assert!(!said.contains("ZYXCANARY"), "{said}");
}

#[tokio::test]
async fn an_error_is_a_line_of_json_too() {
    let mut failed = Running::start(&["up", "--model", "/nowhere", "--log-format", "json"]);
    failed.ended().await;
    let said = failed.said();
    let errors: Vec<Value> = lines(&said).filter(|line| line["level"] == "ERROR").collect();
    assert!(errors.len() == 1 && errors[0]["message"].as_str().unwrap().contains("/nowhere"), "{said}");
}

fn lines(said: &str) -> impl Iterator<Item = Value> {
    said.lines().filter_map(|line| serde_json::from_str(line).ok())
}
