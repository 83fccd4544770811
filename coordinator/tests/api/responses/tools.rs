//! Tools of other kinds than functions.

use serde_json::{Value, json};

use super::{CALLS, RESPONSES, input, respond, tools};
use crate::server::{MODEL, Server, calls_and_goes_on, thinks_and_says};

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

fn namespace() -> Value {
    json!({"type": "namespace", "name": "multi_agent_v1", "description": "Agents.", "tools": [
        {"type": "function", "name": "spawn_agent", "description": "One more.", "strict": false,
         "parameters": {"type": "object", "properties": {"task": {"type": "string"}}}},
    ]})
}

/// As Codex has its own agents, and the tools of each MCP server. Models leave the first word out at times.
#[tokio::test]
async fn functions_of_a_namespace_are_called_in_two_words() {
    let server = Server::start().await;
    let mut body = input("x");
    body["tools"] = json!([web_search(), tools()[0], namespace()]);
    for recipient in ["functions.multi_agent_v1.spawn_agent", "multi_agent_v1.spawn_agent"] {
        let call = format!(
            "<|channel|>commentary to={recipient} <|constrain|>json<|message|>{{\"task\": \"x\"}}<|call|>"
        );
        body["input"] = json!(call);
        let answer = respond(&server, &body).await;
        assert_eq!(answer["tools"], json!([tools()[0], namespace()]));
        let item = answer["output"][0].clone();
        let said = (&item["type"], &item["namespace"], &item["name"]);
        assert_eq!(
            said,
            (&json!("function_call"), &json!("multi_agent_v1"), &json!("spawn_agent")),
            "{answer}"
        );
        let prompt = server.seen.prompt.lock().unwrap().clone();
        assert!(
            prompt.contains("// One more.\ntype multi_agent_v1.spawn_agent = (_: {\ntask?: string,"),
            "{prompt}"
        );

        let output = json!({"type": "function_call_output", "call_id": item["call_id"],
                            "output": thinks_and_says("", "Spawned.")});
        let back = json!({"model": MODEL, "tools": body["tools"],
                          "input": [{"role": "user", "content": call}, item, output]});
        assert_eq!(respond(&server, &back).await["output"][0]["content"][0]["text"], "Spawned.");
        let prompt = server.seen.prompt.lock().unwrap().clone();
        let called = "<|start|>assistant to=functions.multi_agent_v1.spawn_agent<|channel|>commentary";
        assert!(prompt.contains(called), "{prompt}");
    }
    body["tool_choice"] = json!({"type": "function", "namespace": "multi_agent_v1", "name": "spawn_agent"});
    assert_eq!(respond(&server, &body).await["output"][0]["name"], "spawn_agent");
}

/// In the place that harmony has for what the functions of a namespace are together.
#[tokio::test]
async fn the_model_is_told_what_a_namespace_is() {
    let server = Server::start().await;
    let mut body = input(thinks_and_says("", "Yes."));
    let mut crm = namespace();
    (crm["name"], crm["description"]) = (json!("crm"), json!("Customers.\nTheir orders, too."));
    let mut hidden = namespace();
    (hidden["name"], hidden["tools"]) = (json!("hidden"), json!([web_search()]));
    let mut silent = namespace();
    (silent["name"], silent["description"]) = (json!("silent"), json!(null));
    body["tools"] = json!([namespace(), hidden, tools()[0], silent, crm]);
    respond(&server, &body).await;
    let prompt = server.seen.prompt.lock().unwrap().clone();
    let told = "# Tools\n\n## functions\n\n// multi_agent_v1: Agents.\n// crm: Customers.\n// Their orders, too.\n\
                namespace functions {\n\n// One more.\ntype multi_agent_v1.spawn_agent = ";
    assert!(prompt.contains(told), "{prompt}");
    body["tools"] = tools();
    respond(&server, &body).await;
    assert!(server.seen.prompt.lock().unwrap().contains("## functions\n\nnamespace functions {\n"));
}

/// There is no tool search that would find it later.
#[tokio::test]
async fn a_function_that_is_to_be_loaded_later_is_there_at_once() {
    let server = Server::start().await;
    let mut tool = tools()[0].clone();
    tool["defer_loading"] = json!(true);
    let mut deferred = namespace();
    deferred["tools"][0]["defer_loading"] = json!(true);
    let mut body = input(CALLS);
    body["tools"] = json!([tool, deferred, {"type": "tool_search"}]);
    let answer = respond(&server, &body).await;
    assert_eq!(answer["tools"], json!([tool, deferred]));
    assert_eq!(answer["output"][1]["name"], "get_weather", "{answer}");
    let prompt = server.seen.prompt.lock().unwrap().clone();
    assert!(
        prompt.contains("type get_weather = (_: {") && prompt.contains("spawn_agent = (_: {"),
        "{prompt}"
    );
}

/// Places are those of the request, whatever was left out of it.
#[tokio::test]
async fn wrong_names_are_named_where_they_stand() {
    let server = Server::start().await;
    let mut body = input("x");
    let named = |name: &str| json!({"type": "function", "name": name});
    let mut twice = namespace();
    twice["tools"] = json!([named("f"), named("f")]);
    for (tools, param) in [
        (json!([web_search(), named("no blanks")]), "tools[1].name"),
        (json!([named("f"), web_search(), named("f")]), "tools[2].name"),
        (json!([twice]), "tools[0].tools[1].name"),
        (
            json!([{"type": "namespace", "name": "n", "tools": [{"type": "custom"}]}]),
            "tools[0].tools[0].type",
        ),
        (json!([{"type": "namespace", "name": "n"}]), "tools[0].tools"),
        (json!([{"type": "namespace", "name": "a b", "tools": []}]), "tools[0].name"),
        (
            json!([{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": ""}]}]),
            "tools[0].tools[0].name",
        ),
    ] {
        body["tools"] = tools;
        let (status, error) = server.refused(RESPONSES, &body).await;
        assert_eq!((status, error["param"].as_str()), (400, Some(param)), "{error}");
    }
}
