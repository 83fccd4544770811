//! Tools of other kinds than functions.

use serde_json::{Value, json};

use super::{CALLS, RESPONSES, input, respond, tools};
use crate::server::{Server, calls_and_goes_on, thinks_and_says};

/// As Codex sends it with every request.
fn web_search() -> Value {
    json!({"type": "web_search", "external_web_access": false, "search_content_types": ["text"]})
}

#[tokio::test]
async fn tools_that_openai_runs_are_left_out() {
    let server = Server::start().await;
    let mut body = input(CALLS);
    body["tools"] = json!([web_search(), tools()[0], {"type": "image_generation", "output_format": "png"}]);
    let answer = respond(&server, &body).await;
    assert_eq!(answer["tools"], tools());
    assert_eq!(answer["output"][1]["name"], "get_weather");
    assert!(!server.seen.prompt.lock().unwrap().contains("web_search"));

    body = input(thinks_and_says("", "Yes."));
    body["tools"] = json!([web_search()]);
    assert_eq!(respond(&server, &body).await["tools"], json!([]));
    for choice in [json!({"type": "web_search"}), json!("required")] {
        body["tool_choice"] = choice;
        let (status, error) = server.refused(RESPONSES, &body).await;
        assert_eq!(status, 400, "{error}");
        assert!(error["param"].as_str().unwrap().starts_with("tool_choice"), "{error}");
    }
}

#[tokio::test]
async fn only_allowed_tools_are_called() {
    let server = Server::start().await;
    let mut body = input(calls_and_goes_on(CALLS));
    let other = json!({"type": "function", "name": "get_time", "strict": false, "description": "", "parameters": null});
    body["tools"] = json!([tools()[0], other]);
    let allow = |name: &str, mode: &str| json!({"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": name}]});
    body["tool_choice"] = allow("get_time", "required");
    let answer = respond(&server, &body).await;
    assert_eq!((&answer["tool_choice"], &answer["tools"]), (&body["tool_choice"], &body["tools"]));
    assert_eq!(answer["output"].as_array().unwrap().last().unwrap()["name"], "get_time", "{answer}");
    body["tool_choice"] = allow("get_weather", "auto");
    assert_eq!(respond(&server, &body).await["output"][1]["name"], "get_weather");
    body["tool_choice"] = json!({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]});
    let answer = respond(&server, &body).await;
    assert_eq!(answer["output"].as_array().unwrap().last().unwrap()["type"], "message", "{answer}");
    assert!(server.seen.prompt.lock().unwrap().contains("type get_weather"));
}
