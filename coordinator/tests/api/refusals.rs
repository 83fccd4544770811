//! Every way to be refused, with its words.

use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{CONTEXT, MODEL, Server, Setup, error_of, user};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn wrong_fields_are_named_with_what_was_expected_and_found() {
    let server = Server::start().await;
    let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
    let cases: Vec<(&str, Value, &str, &str)> = vec![
        (
            "temperature",
            json!("hot"),
            "invalid_value",
            "temperature: expected a number from 0 to 2, found the string \"hot\"",
        ),
        ("temperature", json!(2.5), "invalid_value", "expected a number from 0 to 2, found the number 2.5"),
        ("top_p", json!(-1), "invalid_value", "expected a number from 0 to 1"),
        ("n", json!(9), "invalid_value", "expected a whole number from 1 to 8"),
        ("seed", json!(1.5), "invalid_value", "expected a whole number of 64 bits"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "invalid_value", "at most 4 stop strings, found 5"),
        ("stop", json!(""), "invalid_value", "must not be empty"),
        ("max_tokens", json!(0), "invalid_value", "expected a whole number of at least 1"),
        ("stream", json!("yes"), "invalid_value", "expected true or false"),
        ("stream_options", json!({"include_usage": true}), "invalid_value", "only with \"stream\": true"),
        ("reasoning_effort", json!("much"), "invalid_value", "found the string \"much\""),
        ("tool_choice", json!("required"), "invalid_value", "a call is required, but there are no tools"),
        ("tool_choice", json!("any"), "invalid_value", "found the string \"any\""),
        ("parallel_tool_calls", json!("no"), "invalid_value", "expected true or false"),
        ("logit_bias", json!([7]), "invalid_value", "logit_bias: expected an object, found an array"),
        ("logprobs", json!(3), "invalid_value", "logprobs: expected true or false, found the number 3"),
        ("top_logprobs", json!(3), "invalid_value", "only with \"logprobs\": true"),
        ("frequency_penalty", json!(2.5), "invalid_value", "expected a number from -2 to 2"),
        ("presence_penalty", json!("x"), "invalid_value", "expected a number from -2 to 2"),
        ("repetition_penalty", json!(0), "invalid_value", "expected a number from 0.01 to 10"),
        ("min_p", json!(1.5), "invalid_value", "expected a number from 0 to 1"),
        ("priority", json!(0.5), "invalid_value", "expected a whole number of 32 bits"),
        ("cache_salt", json!(""), "invalid_value", "a salt must not be empty"),
        ("stop_token_ids", json!("x"), "invalid_value", "expected an array"),
        ("ignore_eos", json!(1), "invalid_value", "expected true or false"),
        ("service_tier", json!("flex"), "unsupported_value", "accepted is \"auto\" or \"default\""),
        (
            "best_of",
            json!(2),
            "unsupported_value",
            "best_of: the number 2 is not supported yet; accepted is 1",
        ),
        ("min_tokens", json!(-1), "invalid_value", "expected a whole number from 0 to"),
        ("echo", json!(true), "unsupported_value", "accepted is false"),
        ("skip_special_tokens", json!(false), "unsupported_value", "accepted is true"),
        ("store", json!(true), "unsupported_value", "accepted is false"),
        ("prompt_logprobs", json!(1), "unsupported_value", "accepted is null"),
        ("response_format", json!("json"), "invalid_value", "expected an object, found the string"),
        ("guided_decoding_backend", json!("x"), "unsupported_value", "accepted is null"),
        ("modalities", json!(["audio"]), "unsupported_value", "accepted is [\"text\"]"),
        ("functions", json!([{}]), "unsupported_value", "functions"),
        ("top_k", json!(-3), "invalid_value", "expected a whole number of at least 1, or -1 or 0 for all"),
        ("temprature", json!(1), "unknown_parameter", "temprature: no parameter of this name is known"),
        ("messages", json!("hi"), "invalid_value", "messages: expected an array"),
        ("messages", json!([]), "invalid_value", "is empty"),
    ];
    for (param, value, code, words) in cases {
        let mut body = user("x");
        body[param] = value;
        check(&server, &body, param, code, words).await;
    }
    let messages: Vec<(Value, &str, &str, &str)> = vec![
        (
            json!({"role": "user", "content": image}),
            "messages[0].content[0].type",
            "unsupported_value",
            "the string \"image_url\" is not supported yet; accepted is \"text\"",
        ),
        (
            json!({"role": "user"}),
            "messages[0].content",
            "missing_required_parameter",
            "required, but missing",
        ),
        (json!({"content": "x"}), "messages[0].role", "missing_required_parameter", "required, but missing"),
        (
            json!({"role": "boss", "content": "x"}),
            "messages[0].role",
            "invalid_value",
            "found the string \"boss\"",
        ),
        (
            json!({"role": "user", "content": 7}),
            "messages[0].content",
            "invalid_value",
            "expected a string or an array of text parts, found the number 7",
        ),
        (
            json!({"role": "tool", "content": "x", "tool_call_id": "c1"}),
            "messages[0].tool_call_id",
            "invalid_value",
            "names no earlier tool call",
        ),
        (
            json!({"role": "user", "content": "x", "contnt": 1}),
            "messages[0].contnt",
            "unknown_parameter",
            "known",
        ),
        (
            json!({"role": "assistant", "content": "", "tool_calls": [{"id": "a", "function": {"name": "f"}}]}),
            "messages[0].tool_calls[0].function.arguments",
            "missing_required_parameter",
            "missing",
        ),
    ];
    for (message, param, code, words) in messages {
        check(&server, &json!({"model": MODEL, "messages": [message]}), param, code, words).await;
    }
    let mut body = user("x");
    body["tools"] = json!([{"type": "function", "function": {"name": "no blanks"}}]);
    check(&server, &body, "tools[0].function.name", "invalid_value", "is no function name").await;
    check(&server, &json!({"model": MODEL}), "messages", "missing_required_parameter", "missing").await;
    assert_eq!(server.seen.admitted(), 0, "no worker has heard of any of this");
}

async fn check(server: &Server, body: &Value, param: &str, code: &str, words: &str) {
    let (status, error) = server.refused(CHAT, body).await;
    assert_eq!((status, &error["param"], &error["code"]), (400, &json!(param), &json!(code)), "{error}");
    assert_eq!(error["type"], "invalid_request_error");
    assert!(error["message"].as_str().unwrap().contains(words), "{words:?} is missing in {error}");
}

#[tokio::test]
async fn bodies_that_are_no_json_are_told_where() {
    let server = Server::start().await;
    let deep = format!("{{\"messages\": {}{}}}", "[".repeat(200), "]".repeat(200));
    for (body, words) in [
        ("{\"messages\": [\n  {\"role\": }]}", "expected value (line 2, column 12)"),
        ("", "EOF while parsing a value (line 1, column 0)"),
        (&deep, "recursion limit exceeded"),
        ("{} {}", "trailing characters"),
    ] {
        let (status, error) = error_of(server.send(Method::POST, CHAT, body).await).await;
        assert_eq!((status, &error["code"]), (400, &json!("invalid_json")));
        assert!(error["message"].as_str().unwrap().contains(words), "{words:?} is missing in {error}");
    }
    let (status, error) = error_of(server.send(Method::POST, CHAT, "[1]").await).await;
    assert_eq!((status, &error["message"]), (400, &json!("the body: expected an object, found an array")));
}

#[tokio::test]
async fn models_and_routes_that_are_not_there() {
    let server = Server::start().await;
    let mut body = user("x");
    body["model"] = json!("gpt-5");
    let (status, error) = server.refused(CHAT, &body).await;
    assert_eq!((status, &error["code"], &error["param"]), (404, &json!("model_not_found"), &json!("model")));
    assert_eq!(error["message"], "the model \"gpt-5\" is not served here; \"openai/gpt-oss-test\" is");
    let (status, error) = error_of(server.get("/v1/models/gpt-5").await).await;
    assert_eq!((status, &error["code"]), (404, &json!("model_not_found")));

    let (status, error) = error_of(server.get("/v1/engines").await).await;
    assert_eq!((status, &error["message"]), (404, &json!("there is nothing at /v1/engines")));
    let response = server.get(CHAT).await;
    assert_eq!(response.headers()["allow"], "POST");
    let (status, error) = error_of(response).await;
    assert_eq!((status, &error["message"]), (405, &json!("GET is not a method of /v1/chat/completions")));
}

#[tokio::test]
async fn prompts_and_bodies_that_are_too_large() {
    let server = Server::start_with(Setup { body_bytes_max: 64 << 10, ..Setup::default() }).await;
    let (status, error) = server.refused(CHAT, &user(&"word ".repeat(4000))).await;
    assert_eq!((status, &error["code"]), (400, &json!("context_length_exceeded")));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(&CONTEXT.to_string()) && message.contains("the prompt has"), "{message}");

    let (status, error) = server.refused(CHAT, &user(&"word ".repeat(40_000))).await;
    assert_eq!((status, &error["code"]), (413, &json!("body_too_large")));
    assert_eq!(error["message"], "the body is larger than 65536 bytes");
    assert_eq!(server.seen.admitted(), 0);
}

#[tokio::test]
async fn requests_are_named() {
    let server = Server::start().await;
    let own = server.get("/v1/models").await;
    assert!(own.headers()["x-request-id"].to_str().unwrap().starts_with("req_"));
    for (sent, kept) in [("my-request-7", true), ("has blanks in it", false)] {
        let request = server.client.get(format!("{}/v1/models", server.url)).header("x-request-id", sent);
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["x-request-id"] == sent, kept);
    }
}

#[tokio::test]
async fn models_are_listed_as_clients_expect() {
    let server = Server::start().await;
    let list: Value = server.get("/v1/models").await.json().await.unwrap();
    assert_eq!(list["data"][0]["id"], MODEL);
    assert_eq!(list["data"][0]["max_model_len"], CONTEXT);
    let one: Value = server.get(&format!("/v1/models/{MODEL}")).await.json().await.unwrap();
    assert_eq!(one, list["data"][0]);
}
