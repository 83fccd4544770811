//! What is refused, with the name of what it is about.

use reqwest::Method;
use serde_json::{Value, json};

use super::{RESPONSES, input, respond};
use crate::server::{MODEL, Server, error_of, thinks_and_says};

#[tokio::test]
async fn every_parameter_is_honoured_or_refused_by_name() {
    let server = Server::start().await;
    let function = |more: Value| {
        let mut tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
        tool.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([tool])
    };
    let cases: Vec<(&str, Value, &str, &str)> = vec![
        ("access_programs", json!({"cyber": "standard"}), "access_programs", "unsupported_value"),
        ("background", json!(true), "background", "unsupported_value"),
        ("context_management", json!([{"type": "compaction"}]), "context_management", "unsupported_value"),
        ("conversation", json!("conv_1"), "conversation", "unsupported_value"),
        ("image", json!({"context_compression": "auto"}), "image", "unsupported_value"),
        ("include", json!(["file_search_call.results"]), "include[0]", "unsupported_value"),
        ("include", json!(["everything"]), "include[0]", "invalid_value"),
        ("instructions", json!(7), "instructions", "invalid_value"),
        ("max_output_tokens", json!(0), "max_output_tokens", "invalid_value"),
        ("max_tokens", json!(5), "max_tokens", "invalid_value"),
        ("metadata", json!({"a": 7}), "metadata", "invalid_value"),
        ("moderation", json!({"model": "m"}), "moderation", "unsupported_value"),
        ("n", json!(2), "n", "unsupported_value"),
        ("previous_response_id", json!(7), "previous_response_id", "invalid_value"),
        ("prompt", json!({"id": "pmpt_1"}), "prompt", "unsupported_value"),
        ("prompt_cache_options", json!({"prewarm": true}), "prompt_cache_options", "unsupported_value"),
        ("reasoning", json!({"effort": "much"}), "reasoning.effort", "invalid_value"),
        ("reasoning", json!({"summary": "long"}), "reasoning.summary", "invalid_value"),
        ("reasoning", json!({"context": "all_turns"}), "reasoning.context", "unsupported_value"),
        ("reasoning", json!({"mode": "pro"}), "reasoning.mode", "unsupported_value"),
        ("service_tier", json!("priority"), "service_tier", "unsupported_value"),
        ("store", json!("yes"), "store", "invalid_value"),
        ("stream_options", json!({"include_obfuscation": false}), "stream_options", "invalid_value"),
        ("temperature", json!(3), "temperature", "invalid_value"),
        ("text", json!({"verbosity": "low"}), "text.verbosity", "unsupported_value"),
        ("tools", json!([{"type": "custom"}]), "tools[0].type", "unsupported_value"),
        ("tool_choice", json!({"type": "web_search"}), "tool_choice.type", "unsupported_value"),
        ("tools", json!([{"type": "oven"}]), "tools[0].type", "invalid_value"),
        ("tools", function(json!({"defer_loading": "yes"})), "tools[0].defer_loading", "invalid_value"),
        ("tools", function(json!({"name": "no blanks"})), "tools[0].name", "invalid_value"),
        ("tools", function(json!({"nmae": "f"})), "tools[0].nmae", "unknown_parameter"),
        ("top_logprobs", json!(5), "top_logprobs", "invalid_value"),
        ("truncation", json!("auto"), "truncation", "unsupported_value"),
        ("messages", json!([]), "messages", "unknown_parameter"),
    ];
    for (name, value, param, code) in cases {
        let mut body = input("x");
        body[name] = value;
        let (status, error) = server.refused(RESPONSES, &body).await;
        assert_eq!((status, &error["param"], &error["code"]), (400, &json!(param), &json!(code)), "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    assert_eq!(server.seen.admitted(), 0, "no worker has heard of any of this");
}

#[tokio::test]
async fn input_that_cannot_be_told_is_refused_where_it_stands() {
    let server = Server::start().await;
    let image = json!({"type": "input_image", "image_url": "data:"});
    let cases: Vec<(Value, &str, &str)> = vec![
        (json!(7), "input", "expected a string or an array of items, found the number 7"),
        (json!([]), "input", "required, but missing"),
        (json!([{"role": "boss", "content": "x"}]), "input[0].role", "the string \"boss\""),
        (json!([{"role": "user"}]), "input[0].content", "required, but missing"),
        // What is not supported is not among what is expected.
        (
            json!([{"role": "user", "content": [{"type": "txt"}]}]),
            "input[0].content[0].type",
            "expected \"input_text\", found the string \"txt\"",
        ),
        (
            json!([{"role": "user", "content": [image]}]),
            "input[0].content[0].type",
            "accepted is \"input_text\"",
        ),
        (
            json!([{"role": "user", "content": "x", "cntnt": 1}]),
            "input[0].cntnt",
            "no parameter of this name",
        ),
        (json!([{"type": "web_search_call", "id": "ws_1"}]), "input[0].type", "not supported yet"),
        (
            json!([{"type": "function_call_output", "call_id": "c1", "output": "x"}]),
            "input[0].call_id",
            "\"c1\" names no earlier function_call",
        ),
        (
            json!([{"type": "function_call", "call_id": "c1", "name": "a b", "arguments": "{}"}]),
            "input[0].name",
            "\"a b\" is no function name",
        ),
        (
            json!([{"type": "function_call", "call_id": "c1", "name": "f"}]),
            "input[0].arguments",
            "required, but missing",
        ),
        (
            json!([{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}]),
            "input[0].encrypted_content",
            "not supported yet",
        ),
        (
            json!([{"role": "assistant", "content": "Hm", "phase": "commentary"}, {"role": "user", "content": "x"}]),
            "input[0].phase",
            "before a function_call",
        ),
    ];
    for (value, param, words) in cases {
        let (status, error) = server.refused(RESPONSES, &input(value)).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{words:?} is missing in {error}");
    }
    let many: Vec<Value> = (0..4097).map(|_| json!({"role": "user", "content": ""})).collect();
    let (_, error) = server.refused(RESPONSES, &input(many)).await;
    assert_eq!(error["message"], "input: at most 4096 items, found 4097");
    assert_eq!(server.refused(RESPONSES, &json!({"model": MODEL})).await.1["param"], "input");
    assert_eq!(server.seen.admitted(), 0);
}

#[tokio::test]
async fn harmless_parameters_are_taken() {
    let server = Server::start().await;
    let mut body = input(thinks_and_says("", "Yes."));
    let harmless = json!({
        "background": false, "conversation": null, "include": ["reasoning.encrypted_content"],
        "max_tool_calls": 3, "metadata": {}, "parallel_tool_calls": true, "prompt": null,
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "safety_identifier": "s",
        "service_tier": "auto", "store": true, "stream": false, "text": {"format": {"type": "text"}},
        "tool_choice": "auto", "tools": [], "top_logprobs": 0, "top_p": 0.9, "truncation": "disabled",
        "user": "u", "reasoning": {"summary": "detailed", "effort": null},
        "client_metadata": {"x-codex-installation-id": "1"},
    });
    body.as_object_mut().unwrap().extend(harmless.as_object().unwrap().clone());
    let answer = respond(&server, &body).await;
    assert_eq!(answer["output"][0]["content"][0]["text"], "Yes.");
    for name in ["max_tool_calls", "prompt_cache_key", "safety_identifier", "top_p", "user"] {
        assert_eq!(answer[name], body[name], "{name}");
    }
}

#[tokio::test]
async fn only_background_responses_could_be_cancelled() {
    let server = Server::start().await;
    let done = respond(&server, &input(thinks_and_says("", "x"))).await;
    let path = format!("{RESPONSES}/{}", done["id"].as_str().unwrap());
    let (status, error) = error_of(server.send(Method::POST, &format!("{path}/cancel"), "").await).await;
    assert_eq!((status, &error["param"]), (400, &json!("response_id")));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("background") && message.contains("close its connection"), "{message}");

    let unknown = format!("{RESPONSES}/resp_1");
    for (method, path) in [
        (Method::POST, format!("{unknown}/cancel")),
        (Method::GET, format!("{unknown}/input_items")),
        (Method::GET, unknown),
    ] {
        let (status, error) = error_of(server.send(method, &path, "").await).await;
        assert_eq!((status, &error["code"]), (404, &json!("response_not_found")), "{path}");
    }
    for (query, param) in [
        ("?stream=true", "stream"),
        ("?starting_after=3", "starting_after"),
        ("/input_items?limit=0", "limit"),
        ("/input_items?limit=many", "limit"),
        ("/input_items?order=random", "order"),
        ("/input_items?after=msg_1", "after"),
        ("/input_items?page=2", "page"),
        ("/input_items?include=everything", "include"),
        ("?include[]=reasoning.encrypted_content&include[]=message.output_text.logprobs", "include"),
    ] {
        let (status, error) = error_of(server.get(&format!("{path}{query}")).await).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{query}");
    }
    let (status, error) = error_of(server.get(RESPONSES).await).await;
    assert_eq!((status, &error["code"]), (405, &json!("method_not_allowed")));
}
