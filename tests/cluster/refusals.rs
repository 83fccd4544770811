//! What a client is told that asks for what cannot be, through the real server: OpenAI's shape, and the
//! server goes on.

use crate::support::checkpoint::endless;
use crate::support::client::{CHAT, COMPLETIONS, Client, greedy_text, question};
use crate::support::server::Up;
use serde_json::{Value, json};

/// The error has all of OpenAI's fields, this code, and a message for people.
#[track_caller]
fn expect_error((status, body): (u16, Value), wanted: u16, code: &str, words: &str) {
    let error = body["error"].as_object().unwrap_or_else(|| panic!("no error: {body}"));
    let mut fields: Vec<&str> = error.keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["code", "message", "param", "type"], "{body}");
    let message = error["message"].as_str().unwrap();
    assert_eq!((status, error["code"].as_str().unwrap()), (wanted, code), "{body}");
    assert!(message.contains(words), "{words:?} is not in {body}");
    assert_eq!(error["type"], "invalid_request_error", "{body}");
}

#[tokio::test]
async fn wrong_requests_are_refused_and_the_next_one_is_served() {
    let model = endless().await;
    let up = Up::start(model.path(), &["--kv-tokens", "512"]).await;
    let client = Client::new(&up.url);
    let expected = greedy_text(&client, "Once", 20).await;

    for text in ["", "{", "{\"messages\": [}", "\u{fffd}", "{\"a\": 1}}"] {
        expect_error(client.post_text(CHAT, text.into()).await, 400, "invalid_json", "not valid JSON");
    }
    let with = |field: &str, value: Value| {
        let mut body = question("x", 5);
        body[field] = value;
        body
    };
    let cases = [
        ("messages", json!("hi"), 400, "invalid_value", "messages: expected an array"),
        ("messages", json!([{ "role": "user", "content": 7 }]), 400, "invalid_value", "messages[0].content"),
        ("max_tokens", json!("ten"), 400, "invalid_value", "max_tokens"),
        ("temperature", json!([]), 400, "invalid_value", "temperature"),
        ("stream", json!(1), 400, "invalid_value", "stream"),
        ("unheard_of", json!(1), 400, "unknown_parameter", "unheard_of"),
        ("model", json!("gpt-5"), 404, "model_not_found", "\"gpt-5\" is not served here; \"small\" is"),
    ];
    for (field, value, status, code, words) in cases {
        expect_error(client.post(CHAT, &with(field, value)).await, status, code, words);
    }
    for body in [json!([1, 2]), json!("x"), json!(null)] {
        expect_error(client.post(CHAT, &body).await, 400, "invalid_value", "expected");
    }
    let long = json!({ "prompt": "word ".repeat(600), "max_tokens": 5 });
    let words = "maximum context length is 512 tokens";
    expect_error(client.post(COMPLETIONS, &long).await, 400, "context_length_exceeded", words);
    let strange = json!({ "prompt": [5, 2048], "max_tokens": 5 });
    expect_error(client.post(COMPLETIONS, &strange).await, 400, "invalid_value", "2048");
    expect_error(client.get("/v1/nothing").await, 404, "not_found", "/v1/nothing");
    expect_error(client.get(CHAT).await, 405, "method_not_allowed", "GET");

    assert_eq!(greedy_text(&client, "Once", 20).await, expected);
    client.health(200).await;
}
