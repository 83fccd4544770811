//! Streams: every event by its name, with its number, and that they say what a whole answer says.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::{CALLS, input, nameless, next, open, respond, stream, tools};
use crate::server::{Server, thinks_and_says, until};

/// Deltas of one item in a row become one, so that tokens do not matter; numbers and the response are left out.
fn plot(events: Vec<Value>) -> Vec<Value> {
    let mut plot: Vec<Value> = Vec::new();
    for mut event in events.into_iter().map(nameless) {
        let fields = event.as_object_mut().unwrap();
        fields.remove("sequence_number");
        fields.remove("response");
        match plot.last_mut() {
            Some(last) if last["type"] == event["type"] && event.get("delta").is_some() => {
                let joined =
                    format!("{}{}", last["delta"].as_str().unwrap(), event["delta"].as_str().unwrap());
                last["delta"] = json!(joined);
            }
            _ => plot.push(event),
        }
    }
    plot
}

fn reasoning(output_index: usize, text: &str) -> Vec<Value> {
    let item = |status: &str, content: Value| {
        json!({
            "id": "rs_", "type": "reasoning", "status": status, "summary": [], "content": content,
            "encrypted_content": null,
        })
    };
    let part = |text: &str| json!({"type": "reasoning_text", "text": text});
    let place = |mut event: Value| {
        event["output_index"] = json!(output_index);
        event["item_id"] = json!("rs_");
        event["content_index"] = json!(0);
        event
    };
    vec![
        json!({
            "type": "response.output_item.added", "output_index": output_index,
            "item": item("in_progress", json!([])),
        }),
        place(json!({"type": "response.content_part.added", "part": part("")})),
        place(json!({"type": "response.reasoning_text.delta", "delta": text})),
        place(json!({"type": "response.reasoning_text.done", "text": text})),
        place(json!({"type": "response.content_part.done", "part": part(text)})),
        json!({
            "type": "response.output_item.done", "output_index": output_index,
            "item": item("completed", json!([part(text)])),
        }),
    ]
}

fn message(output_index: usize, text: &str, status: &str) -> Vec<Value> {
    let item = |status: &str, content: Value| json!({"id": "msg_", "type": "message", "status": status, "role": "assistant", "content": content});
    let part = |text: &str| json!({"type": "output_text", "annotations": [], "logprobs": [], "text": text});
    let place = |mut event: Value| {
        event["output_index"] = json!(output_index);
        event["item_id"] = json!("msg_");
        event["content_index"] = json!(0);
        event
    };
    vec![
        json!({
            "type": "response.output_item.added", "output_index": output_index,
            "item": item("in_progress", json!([])),
        }),
        place(json!({"type": "response.content_part.added", "part": part("")})),
        place(json!({"type": "response.output_text.delta", "delta": text, "logprobs": []})),
        place(json!({"type": "response.output_text.done", "text": text, "logprobs": []})),
        place(json!({"type": "response.content_part.done", "part": part(text)})),
        json!({
            "type": "response.output_item.done", "output_index": output_index,
            "item": item(status, json!([part(text)])),
        }),
    ]
}

fn call(output_index: usize, name: &str, arguments: &str) -> Vec<Value> {
    let item = |status: &str, arguments: &str| {
        json!({
            "id": "fc_", "type": "function_call", "status": status, "call_id": "call_", "name": name,
            "arguments": arguments,
        })
    };
    let place = json!({"output_index": output_index, "item_id": "fc_"});
    let with = |mut event: Value| {
        event.as_object_mut().unwrap().extend(place.as_object().unwrap().clone());
        event
    };
    vec![
        json!({
            "type": "response.output_item.added", "output_index": output_index,
            "item": item("in_progress", ""),
        }),
        with(json!({"type": "response.function_call_arguments.delta", "delta": arguments})),
        with(json!({
            "type": "response.function_call_arguments.done", "name": name, "arguments": arguments,
        })),
        json!({
            "type": "response.output_item.done", "output_index": output_index,
            "item": item("completed", arguments),
        }),
    ]
}

fn between(ending: &str, items: Vec<Vec<Value>>) -> Vec<Value> {
    let mut events = vec![json!({"type": "response.created"}), json!({"type": "response.in_progress"})];
    events.extend(items.into_iter().flatten());
    events.push(json!({"type": ending}));
    events
}

#[tokio::test]
async fn thoughts_and_answer_are_told_step_by_step() {
    let server = Server::start().await;
    let (thought, said) = ("Größe? 🧠 ja", "Das ist groß 🎉🎉, oder 日本?");
    let body = input(thinks_and_says(thought, said));
    respond(&server, &body).await;
    // The prompt is in the cache by now, as it will be for the stream.
    let whole = respond(&server, &body).await;
    let events = stream(&server, &body).await;
    let begun = &events[0]["response"];
    assert_eq!((&begun["status"], &begun["output"]), (&json!("in_progress"), &json!([])));
    assert_eq!((&begun["usage"], &events[1]["response"]), (&Value::Null, begun));
    let ended = &events.last().unwrap()["response"];
    assert_eq!(ended["id"], begun["id"]);
    assert_eq!(nameless(ended.clone()), nameless(whole), "a stream says the same as a whole answer");
    let items = events.iter().filter(|event| event["type"] == "response.output_item.done");
    let items: Vec<&Value> = items.map(|event| &event["item"]).collect();
    assert_eq!(json!(items), ended["output"], "with the same names");
    let expected = between("response.completed", vec![reasoning(0, thought), message(1, said, "completed")]);
    assert_eq!(plot(events), expected);
}

#[tokio::test]
async fn calls_are_told_step_by_step() {
    let server = Server::start().await;
    let mut body = input(CALLS);
    body["tools"] = tools();
    let expected = between(
        "response.completed",
        vec![reasoning(0, "Ask."), call(1, "get_weather", "{\"city\": \"Köln 🌧\"}")],
    );
    assert_eq!(plot(stream(&server, &body).await), expected);
}

#[tokio::test]
async fn a_call_without_arguments_has_an_empty_object() {
    let server = Server::start().await;
    let mut body = input(
        "<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant to=functions.get_weather\
         <|channel|>commentary <|constrain|>json<|message|><|call|>",
    );
    body["tools"] = tools();
    let items = vec![message(0, "Let me look.", "completed"), call(1, "get_weather", "{}")];
    assert_eq!(plot(stream(&server, &body).await), between("response.completed", items));
}

#[tokio::test]
async fn texts_with_others_between_them_are_items_of_their_own() {
    let server = Server::start().await;
    let body = input(
        "<|channel|>analysis<|message|>First.<|end|><|start|>assistant<|channel|>commentary<|message|>\
         One moment.<|end|><|start|>assistant<|channel|>analysis<|message|>Then.<|end|><|start|>assistant\
         <|channel|>final<|message|>Done.<|return|>",
    );
    let items = vec![
        reasoning(0, "First."),
        message(1, "One moment.", "completed"),
        reasoning(2, "Then."),
        message(3, "Done.", "completed"),
    ];
    assert_eq!(plot(stream(&server, &body).await), between("response.completed", items));
}

#[tokio::test]
async fn tokens_that_run_out_end_the_stream_as_incomplete() {
    let server = Server::start().await;
    let mut body = input("<|channel|>final<|message|>one two three four five<|return|>");
    let cut = "<|channel|>final<|message|>one two";
    body["max_output_tokens"] = json!(server.tokenizer.encode_special(cut).len());
    let events = stream(&server, &body).await;
    let ended = &events.last().unwrap()["response"];
    assert_eq!(ended["incomplete_details"], json!({"reason": "max_output_tokens"}));
    let items = vec![message(0, "one two", "incomplete")];
    assert_eq!(plot(events), between("response.incomplete", items));
}

#[tokio::test]
async fn a_lost_group_fails_the_response() {
    let server = Server::start().await;
    let mut stream = open(&server, &input("<|channel|>final<|message|>on and on")).await;
    let mut events = Vec::new();
    while events.len() < 8 {
        events.push(next(&mut stream).await.unwrap());
    }
    server.seen.die.store(true, Ordering::SeqCst);
    while let Some(event) = next(&mut stream).await {
        events.push(event);
    }
    let words = "the workers of the model were lost: worker of rank 2 is lost: its power was cut";
    let [error, failed] = events.last_chunk().unwrap();
    assert_eq!(
        (&error["type"], &error["code"], &error["message"]),
        (&json!("error"), &json!("interrupted"), &json!(words))
    );
    assert_eq!(error["param"], Value::Null);
    let response = &failed["response"];
    assert_eq!((&failed["type"], &response["status"]), (&json!("response.failed"), &json!("failed")));
    assert_eq!(response["error"], json!({"code": "server_error", "message": words}));
    let cut = &response["output"][0];
    assert_eq!(cut["status"], "incomplete");
    let told: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(cut["content"][0]["text"], told, "what came before is told again");
    let output_tokens = response["usage"]["output_tokens"].as_u64().unwrap();
    assert!(output_tokens > 0);
    let id = response["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/v1/responses/{id}")).await.status(), 404, "a failure is not stored");
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let server = Server::start().await;
    let mut stream = open(&server, &input("<|channel|>final<|message|>on and on")).await;
    for _ in 0..8 {
        next(&mut stream).await.unwrap();
    }
    assert_eq!(server.seen.released(), 0);
    drop(stream);
    // Workers hear of it with the next step.
    respond(&server, &input(thinks_and_says("", "Next."))).await;
    until(async || server.seen.released() >= 1).await;
}
