//! What is remembered of a response, for whom, and for how long.

use std::sync::Arc;

use flotilla_coordinator::api::StoreLimits;
use flotilla_coordinator::keys::{Keyring, entry};
use flotilla_coordinator::service::Settings;
use reqwest::Method;
use serde_json::{Value, json};

use super::{CALLS, RESPONSES, input, respond, stream, tools};
use crate::server::{Server, Setup, error_of, thinks_and_says};

fn path(response: &Value) -> String {
    format!("{RESPONSES}/{}", response["id"].as_str().unwrap())
}

fn after(response: &Value, input: impl Into<Value>) -> Value {
    let mut body = super::input(input);
    body["previous_response_id"] = response["id"].clone();
    body
}

async fn remembering(limits: StoreLimits) -> Server {
    let adjust = Box::new(move |settings: &mut Settings| settings.limits.responses = limits);
    Server::start_with(Setup { adjust, ..Setup::default() }).await
}

async fn get(server: &Server, path: &str) -> Value {
    let response = server.get(path).await;
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

fn prompt(server: &Server) -> String {
    server.seen.prompt.lock().unwrap().clone()
}

#[tokio::test]
async fn a_conversation_goes_on_from_its_last_response() {
    let server = Server::start().await;
    let mut body = input(thinks_and_says("Greet.", "Hello."));
    body["instructions"] = json!("Speak French.");
    let first = respond(&server, &body).await;
    let second = respond(&server, &after(&first, thinks_and_says("Think.", "Fine."))).await;
    assert_eq!(second["previous_response_id"], first["id"]);
    let told = prompt(&server);
    let said = |text: &str| format!("<|start|>assistant<|channel|>final<|message|>{text}<|end|>");
    assert!(told.contains(&said("Hello.")), "{told}");
    assert!(!told.contains("Speak French."), "instructions are for one response");
    assert!(!told.contains(
        "analysis<|message|>Greet.<|end|><|start|>assistant<|channel|>final<|message|>Hello.<|end|>"
    ));

    // From a stream as from a whole answer, and twice from the same response.
    for turn in ["left", "right"] {
        let mut body = after(&second, thinks_and_says("", turn));
        body["instructions"] = json!("Be brief.");
        let events = stream(&server, &body).await;
        let response = &events.last().unwrap()["response"];
        let told = prompt(&server);
        assert!(
            told.contains("Be brief.") && told.contains(&said("Hello.")) && told.contains(&said("Fine."))
        );
        respond(&server, &after(response, thinks_and_says("", "x"))).await;
        assert!(prompt(&server).contains(&said(turn)));
    }
}

#[tokio::test]
async fn a_tools_output_is_enough_where_the_call_is_remembered() {
    let server = Server::start().await;
    let mut body = input(CALLS);
    body["tools"] = tools();
    let first = respond(&server, &body).await;
    let call_id = &first["output"][1]["call_id"];
    let said = thinks_and_says("Rain.", "Take a coat.");
    let output = json!([{"type": "function_call_output", "call_id": call_id, "output": said}]);
    let second = respond(&server, &after(&first, output)).await;
    assert_eq!(second["output"][1]["content"][0]["text"], "Take a coat.");
    assert!(
        prompt(&server).contains("analysis<|message|>Ask.<|end|>"),
        "the turn is not over: its thoughts stay"
    );
    respond(&server, &after(&second, thinks_and_says("", "Bye."))).await;
    let told = prompt(&server);
    assert!(told.contains("final<|message|>Take a coat.<|end|>"), "{told}");
    assert!(!told.contains("<|start|>assistant<|channel|>analysis<|message|>Ask.<|end|>"), "{told}");
}

#[tokio::test]
async fn a_response_can_be_read_again_and_deleted() {
    let server = Server::start().await;
    let first = respond(&server, &input(thinks_and_says("Hm.", "One."))).await;
    let second = respond(&server, &after(&first, thinks_and_says("", "Two."))).await;
    assert_eq!(get(&server, &path(&first)).await, first);
    let streamed = stream(&server, &input(thinks_and_says("", "Three."))).await;
    let streamed = &streamed.last().unwrap()["response"];
    assert_eq!(get(&server, &path(streamed)).await, *streamed);

    let deleted: Value = server.send(Method::DELETE, &path(&first), "").await.json().await.unwrap();
    assert_eq!(deleted, json!({"id": first["id"], "object": "response", "deleted": true}));
    for method in [Method::GET, Method::DELETE] {
        let (status, error) = error_of(server.send(method, &path(&first), "").await).await;
        assert_eq!((status, &error["code"]), (404, &json!("response_not_found")));
        assert_eq!(error["param"], "response_id");
    }
    // What went on from it keeps what was said.
    respond(&server, &after(&second, thinks_and_says("", "Four."))).await;
    let told = prompt(&server);
    assert!(told.contains("final<|message|>One.<|end|>") && told.contains("final<|message|>Two.<|end|>"));
}

#[tokio::test]
async fn what_the_model_was_told_is_listed_page_by_page() {
    let server = Server::start().await;
    let say = |text: &str| thinks_and_says("", text);
    let first = respond(&server, &input(say("One."))).await;
    let next = json!([
        {"type": "message", "id": "msg_mine", "role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": say("Two.")}]},
    ]);
    let second = respond(&server, &after(&first, next)).await;
    let items = format!("{}/input_items", path(&second));
    let list = get(&server, &format!("{items}?order=asc")).await;
    let data = list["data"].as_array().unwrap();
    let texts: Vec<&str> = data.iter().map(|item| item["content"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, [&say("One."), "One.", "Be kind.", &say("Two.")]);
    assert_eq!((&list["object"], &list["has_more"]), (&json!("list"), &json!(false)));
    assert_eq!((&list["first_id"], &list["last_id"]), (&data[0]["id"], &data[3]["id"]));
    assert_eq!(data[1]["id"], first["output"][0]["id"]);
    assert_eq!(data[2]["id"], "msg_mine");

    // As its libraries ask for what is included.
    for include in ["include", "include[]", "include%5B%5D"] {
        let include = format!("{include}=reasoning.encrypted_content");
        assert_eq!(get(&server, &format!("{items}?order=asc&{include}&{include}")).await, list);
        assert_eq!(get(&server, &format!("{}?{include}&stream=false", path(&second))).await, second);
    }

    // The newest first, as OpenAI has it.
    let page = get(&server, &format!("{items}?limit=3")).await;
    assert_eq!(page["data"], json!([data[3], data[2], data[1]]));
    assert_eq!(page["has_more"], true);
    let last = page["last_id"].as_str().unwrap();
    let page = get(&server, &format!("{items}?limit=3&after={last}")).await;
    assert_eq!((&page["data"], &page["has_more"]), (&json!([data[0]]), &json!(false)));
}

#[tokio::test]
async fn items_can_be_referred_to() {
    let server = Server::start().await;
    let first = respond(&server, &input(thinks_and_says("Hm.", "One."))).await;
    let reference = |item: &Value| json!({"type": "item_reference", "id": item["id"]});
    let output = &first["output"];
    let say = json!({"role": "user", "content": thinks_and_says("", "Two.")});
    let question = json!({"role": "user", "content": "First?"});
    respond(&server, &input(json!([question, reference(&output[0]), reference(&output[1]), say]))).await;
    assert!(prompt(&server).contains("final<|message|>One.<|end|>"));
    let unknown = json!([say, {"type": "item_reference", "id": "msg_1"}]);
    let (status, error) = server.refused(RESPONSES, &input(unknown)).await;
    assert_eq!(
        (status, &error["code"], &error["param"]),
        (404, &json!("item_not_found"), &json!("input[1]"))
    );
}

#[tokio::test]
async fn what_is_not_stored_or_dropped_is_not_found() {
    let responses = StoreLimits { count_max: 2, ..StoreLimits::default() };
    let server = remembering(responses).await;
    let mut body = input(thinks_and_says("", "x"));
    body["store"] = json!(false);
    let unstored = respond(&server, &body).await;
    assert_eq!(unstored["store"], false);
    body["store"] = json!(true);
    let first = respond(&server, &body).await;
    let second = respond(&server, &body).await;
    get(&server, &path(&first)).await;
    let third = respond(&server, &body).await;
    for (lost, name) in [(&unstored, "never stored"), (&second, "not used for longest")] {
        let (status, error) = server.refused(RESPONSES, &after(lost, "x")).await;
        let code = json!("previous_response_not_found");
        assert_eq!(
            (status, &error["code"], &error["param"]),
            (404, &code, &json!("previous_response_id")),
            "{name}"
        );
        assert!(error["message"].as_str().unwrap().contains("by this server and not another"), "{error}");
    }
    for kept in [&first, &third] {
        let mut body = after(kept, thinks_and_says("", "x"));
        body["store"] = json!(false);
        respond(&server, &body).await;
    }
}

#[tokio::test]
async fn memory_has_a_limit_in_bytes() {
    let bytes_max = 64 << 10;
    let responses = StoreLimits { bytes_max, ..StoreLimits::default() };
    let server = remembering(responses).await;
    // Text of a developer is no part of the script, and a few tokens of many bytes.
    let body = |name: &str, bytes: usize| {
        let mut body = input(thinks_and_says("", name));
        body["metadata"] = json!({"a": "x".repeat(512)});
        body["tools"] = json!([{
            "type": "function", "name": "f", "parameters": {"type": "object", "note": "y".repeat(bytes)},
        }]);
        body
    };
    let small = respond(&server, &body("small", 1 << 10)).await;
    let large = respond(&server, &body("large", 50 << 10)).await;
    assert_eq!(server.get(&path(&small)).await.status(), 200, "both fit");
    let other = respond(&server, &body("other", 50 << 10)).await;
    let found = async |response: &Value| server.get(&path(response)).await.status() == 200;
    assert_eq!((found(&large).await, found(&small).await, found(&other).await), (false, true, true));
    let huge = respond(&server, &body("huge", 80 << 10)).await;
    assert_eq!((found(&huge).await, found(&other).await), (false, true), "what cannot fit drops nobody");
}

#[tokio::test]
async fn a_key_reads_its_own_responses_only() {
    let folder = tempfile::tempdir().unwrap();
    let path_of_keys = folder.path().join("keys.toml");
    let keys: String = ["ann", "ben"].iter().map(|name| entry(name, name).unwrap() + "\n").collect();
    std::fs::write(&path_of_keys, keys).unwrap();
    let keys = Arc::new(Keyring::read(&path_of_keys).unwrap());
    let adjust = Box::new(|settings: &mut Settings| settings.keys = Some(keys));
    let server = Server::start_with(Setup { adjust, ..Setup::default() }).await;
    let body = input(thinks_and_says("", "Secret."));
    assert_eq!(server.post(RESPONSES, &body).await.status(), 401);
    let made: Value = server.post_as("ann", RESPONSES, &body).await.json().await.unwrap();
    assert_eq!(server.get(&path(&made)).await.status(), 401);
    let mine = after(&made, thinks_and_says("", "More."));
    let reference = json!([
        {"role": "user", "content": thinks_and_says("", "More.")},
        {"type": "item_reference", "id": made["output"][0]["id"]},
    ]);
    for (key, status) in [("ben", 404), ("ann", 200)] {
        for (method, path) in [
            (Method::GET, path(&made)),
            (Method::GET, format!("{}/input_items", path(&made))),
            (Method::DELETE, path(&made)),
        ] {
            if (method.clone(), key) != (Method::DELETE, "ann") {
                let request = server.client.request(method, format!("{}{path}", server.url)).bearer_auth(key);
                assert_eq!(request.send().await.unwrap().status(), status, "{key} {path}");
            }
        }
        for body in [&mine, &input(reference.clone())] {
            let mut body = body.clone();
            body["max_output_tokens"] = json!(1);
            assert_eq!(server.post_as(key, RESPONSES, &body).await.status(), status, "{key} {body}");
        }
    }
}
