//! Answers and calls bound to a form by the names of this API. What a form does is tested with chats.

use serde_json::{Value, json};

use super::{RESPONSES, input, respond, tools};
use crate::server::{Server, thinks_and_says};

fn colour() -> Value {
    json!({"type": "object", "properties": {"colour": {"enum": ["red", "green"]}}, "required": ["colour"],
           "additionalProperties": false})
}

fn text(schema: Value) -> Value {
    json!({"format": {"type": "json_schema", "name": "colour", "strict": true, "schema": schema}})
}

#[tokio::test]
async fn an_answer_follows_its_schema() {
    let server = Server::start().await;
    let mut body = input(thinks_and_says("Free.", "{\"colour\": \"blue\"}"));
    body["text"] = text(colour());
    let answer = respond(&server, &body).await;
    assert_eq!(answer["output"][0]["content"][0]["text"], "Free.", "thoughts are free");
    let said: Value =
        serde_json::from_str(answer["output"][1]["content"][0]["text"].as_str().unwrap()).unwrap();
    assert!(said["colour"] == "red" || said["colour"] == "green", "{answer}");
    assert_eq!(answer["text"], json!({"format": body["text"]["format"], "verbosity": "medium"}));
    assert!(server.seen.prompt.lock().unwrap().contains("# Response Formats\n\n## colour"));

    body["text"] = json!({"format": {"type": "json_object"}});
    let said = "{\"any\": 1}";
    body["input"] = json!(thinks_and_says("", said));
    assert_eq!(respond(&server, &body).await["output"][0]["content"][0]["text"], said);
}

#[tokio::test]
async fn a_call_can_be_required_or_named_and_strict() {
    let server = Server::start().await;
    let named = json!({"type": "function", "name": "get_weather"});
    for choice in [json!("required"), named] {
        let mut body = input(thinks_and_says("No tools.", "I will not."));
        body["tools"] = tools();
        body["tools"][0]["strict"] = json!(true);
        body["tools"][0]["parameters"] = colour();
        body["tool_choice"] = choice.clone();
        let answer = respond(&server, &body).await;
        assert_eq!((&answer["tool_choice"], &answer["tools"]), (&choice, &body["tools"]));
        let call = answer["output"].as_array().unwrap().last().unwrap();
        assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("get_weather")));
        let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
        assert!(arguments["colour"] == "red" || arguments["colour"] == "green", "{call}");
    }
}

#[tokio::test]
async fn forms_that_cannot_be_kept_to_are_refused_by_name() {
    let server = Server::start().await;
    let named = |name: &str| json!({"type": "function", "name": name});
    let cases = [
        (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
        (json!({"text": {"format": {"type": "json_schema", "name": "a"}, "verbosity": 7}}), "text.verbosity"),
        (json!({"text": text(json!({"type": "array", "uniqueItems": true}))}), "text.format.schema"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": named("f"), "tools": tools()}), "tool_choice"),
        (json!({"tool_choice": {"type": "allowed_tools"}, "tools": tools()}), "tool_choice.mode"),
        (json!({"tool_choice": "any"}), "tool_choice"),
        (json!({"text": text(colour()), "structured_outputs": {"regex": "a"}}), "structured_outputs.regex"),
    ];
    for (more, param) in cases {
        let mut body = input("x");
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, error) = server.refused(RESPONSES, &body).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
    }
    assert_eq!(server.seen.admitted(), 0);
}
