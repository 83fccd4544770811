//! `/v1/responses`, over HTTP as the rest: what answers and their events look like, what is remembered, and
//! what is refused.

mod answers;
mod events;
mod forms;
mod memory;
mod refusals;
mod tools;

use serde_json::{Value, json};

use crate::server::{Events, MODEL, Server};

pub const RESPONSES: &str = "/v1/responses";

/// What the model writes that asks for the weather.
pub const CALLS: &str = "<|channel|>analysis<|message|>Ask.<|end|><|start|>assistant<|channel|>commentary \
                         to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Köln 🌧\"}<|call|>";

pub fn tools() -> Value {
    json!([{
        "type": "function",
        "name": "get_weather",
        "description": "Of a city, now.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": false,
    }])
}

pub fn input(input: impl Into<Value>) -> Value {
    json!({"model": MODEL, "input": input.into()})
}

pub async fn respond(server: &Server, body: &Value) -> Value {
    server.ask(RESPONSES, body).await
}

pub async fn open(server: &Server, body: &Value) -> Events {
    let mut body = body.clone();
    body["stream"] = json!(true);
    server.open(RESPONSES, &body).await
}

/// The next event, whose name is its type. None: the stream is over.
pub async fn next(events: &mut Events) -> Option<Value> {
    loop {
        let raw = events.next_raw().await?;
        if raw.starts_with(':') {
            continue;
        }
        let (name, data) = raw.split_once('\n').expect("a name and data");
        let event: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).expect("JSON");
        assert_eq!(name.strip_prefix("event: "), event["type"].as_str());
        return Some(event);
    }
}

/// All events of a stream, which are numbered from 0.
pub async fn stream(server: &Server, body: &Value) -> Vec<Value> {
    let mut stream = open(server, body).await;
    let mut events = Vec::new();
    while let Some(event) = next(&mut stream).await {
        assert_eq!(event["sequence_number"], events.len());
        events.push(event);
    }
    events
}

/// The JSON without what is chance: of ids only the prefix stays.
pub fn nameless(mut value: Value) -> Value {
    forget_names(&mut value);
    value
}

fn forget_names(value: &mut Value) {
    match value {
        Value::String(text) => {
            let prefix = text.len().checked_sub(32).filter(|at| text.is_char_boundary(*at));
            let prefix = prefix.map(|at| text.split_at(at)).filter(|(prefix, digits)| {
                prefix.ends_with('_') && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
            });
            if let Some((prefix, _)) = prefix {
                *text = prefix.to_owned();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(forget_names),
        Value::Object(fields) => fields.values_mut().for_each(forget_names),
        _ => {}
    }
}
