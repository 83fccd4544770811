//! Answers bound to a form, from the request to the answer: what the model is told, what binds it, and what a
//! form that cannot be kept to is answered with. The parrot wants to say other things, and may not.

use serde_json::{Value, json};

use crate::server::{MODEL, Server, joined, thinks_and_says, user};

const CHAT: &str = "/v1/chat/completions";

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn colour() -> Value {
    json!({"type": "object", "properties": {"colour": {"enum": ["red", "green"]}, "sure": {"type": "boolean"}},
           "required": ["colour", "sure"], "additionalProperties": false})
}

fn format(schema: Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "colour", "description": "Which\none", "strict": true,
           "schema": schema}})
}

/// Arrays, one element a line.
fn indented(value: &Value, blanks: usize) -> String {
    match value.as_array() {
        Some(values) => {
            let inner: Vec<String> = values.iter().map(|value| indented(value, blanks + 4)).collect();
            let (inside, outside) = (" ".repeat(blanks), " ".repeat(blanks - 4));
            format!("[\n{inside}{}\n{outside}]", inner.join(","))
        }
        None => value.to_string(),
    }
}

fn content(answer: &Value) -> Value {
    let message = &answer["choices"][0]["message"];
    serde_json::from_str(message["content"].as_str().unwrap_or_else(|| panic!("no content in {answer}")))
        .unwrap_or_else(|error| panic!("{error}: {answer}"))
}

#[tokio::test]
async fn an_answer_follows_its_schema_whatever_the_model_wants_to_say() {
    let server = Server::start().await;
    let said = thinks_and_says("Free {{ as \"a bird", "{\"colour\": \"blue\", \"sure\": perhaps}");
    let body = with(user(&said), json!({"response_format": format(colour()), "n": 2}));
    let answer = server.chat(&body).await;
    let colour = content(&answer);
    assert!(colour["colour"] == "red" || colour["colour"] == "green", "{answer}");
    assert!(colour["sure"].is_boolean() && colour.as_object().unwrap().len() == 2, "{answer}");
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["reasoning"], "Free {{ as \"a bird", "thoughts are free");
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["message"]["content"], answer["choices"][1]["message"]["content"]);
    let prompt = server.seen.prompt.lock().unwrap().clone();
    let told = "# Response Formats\n\n## colour\n\n// Which\n// one\n{\"type\":\"object\",\"properties\":";
    assert!(prompt.contains(told), "{prompt}");
    let chunks = server.stream(CHAT, &body).await;
    assert!(!joined(&chunks, "/delta/content").is_empty());
}

#[tokio::test]
async fn an_answer_that_fits_is_left_as_it_is() {
    let server = Server::start().await;
    let said = "{\n  \"colour\": \"red\",\n  \"sure\": true\n}";
    let body = with(user(&thinks_and_says("", said)), json!({"response_format": format(colour())}));
    assert_eq!(server.chat(&body).await["choices"][0]["message"]["content"], said);
    let deep = json!([[[[[[[[1]]]]]]]]);
    for said in ["{\"any\": [\"thing\"]}", &format!("{{\"deep\": {}}}", indented(&deep, 4))] {
        let body =
            with(user(&thinks_and_says("", said)), json!({"response_format": {"type": "json_object"}}));
        assert_eq!(server.chat(&body).await["choices"][0]["message"]["content"], said);
    }
}

#[tokio::test]
async fn keys_come_in_the_order_of_the_schema_that_was_asked_for() {
    let server = Server::start().await;
    let one = || json!({"const": 1});
    let schema = |properties: Value| json!({"type": "object", "properties": properties, "required": ["a", "b"], "additionalProperties": false});
    for (properties, first) in
        [(json!({"a": one(), "b": one()}), "a"), (json!({"b": one(), "a": one()}), "b")]
    {
        let body =
            with(user(&thinks_and_says("", "Any.")), json!({"response_format": format(schema(properties))}));
        let answer = content(&server.chat(&body).await);
        assert_eq!(answer.as_object().unwrap().keys().next().unwrap(), first, "{answer}");
    }
}

#[tokio::test]
async fn null_is_an_answer_where_a_schema_is_nullable() {
    let server = Server::start().await;
    let text = json!({"type": "string", "enum": ["x"], "nullable": true});
    let schema = json!({"type": "object", "properties": {"a": text}, "required": ["a"], "additionalProperties": false});
    for said in ["{\"a\": null}", "{\"a\": \"x\"}"] {
        let body = with(user(&thinks_and_says("", said)), json!({"response_format": format(schema.clone())}));
        assert_eq!(server.chat(&body).await["choices"][0]["message"]["content"], said);
    }
}

/// llama.cpp's way to say a schema, and others'.
#[tokio::test]
async fn an_object_may_have_a_schema_of_its_own() {
    let server = Server::start().await;
    let asked = json!({"response_format": {"type": "json_object", "schema": colour()}});
    let answer = server.chat(&with(user(&thinks_and_says("", "{\"colour\": \"blue\"}")), asked)).await;
    let colour = content(&answer);
    assert!(colour["colour"] == "red" || colour["colour"] == "green", "{answer}");
    assert!(server.seen.prompt.lock().unwrap().contains("# Response Formats\n\n## response\n"));
    let asked = json!({"response_format": {"type": "json_object", "schema": 7}});
    let (status, error) = server.refused(CHAT, &with(user("x"), asked)).await;
    assert_eq!((status, &error["param"]), (400, &json!("response_format.schema")), "{error}");
}

#[tokio::test]
async fn forms_by_the_names_of_vllm() {
    let server = Server::start().await;
    let cases = [
        (json!({"structured_outputs": {"choice": ["yes", "no"]}}), ["yes", "no"]),
        (json!({"structured_outputs": {"regex": "[7]{2}"}}), ["77", "77"]),
        (json!({"structured_outputs": {"grammar": "start: \"a\" | \"b\""}}), ["a", "b"]),
        (json!({"structured_outputs": {"json": {"const": 5}}}), ["5", "5"]),
        (json!({"structured_outputs": {"json": "{\"enum\": [1]}"}}), ["1", "1"]),
        (json!({"guided_choice": ["left"]}), ["left", "left"]),
        (json!({"guided_regex": "é{1,2}x"}), ["éx", "ééx"]),
    ];
    for (form, allowed) in cases {
        let answer = server.chat(&with(user(&thinks_and_says("", "Perhaps.")), form.clone())).await;
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        assert!(allowed.contains(&content.as_str()), "{form}: {content:?}");
    }
    let body = json!({"model": MODEL, "prompt": "nonsense<|endofprompt|>", "max_tokens": 9,
                      "structured_outputs": {"choice": ["yes", "no"]}});
    let answer = server.ask("/v1/completions", &body).await;
    assert!(["yes", "no"].map(Value::from).contains(&answer["choices"][0]["text"]), "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

fn tools(strict: bool) -> Value {
    let function = |name, parameters| {
        json!({"type": "function", "function": {"name": name, "strict": strict,
                                             "parameters": parameters}})
    };
    let empty = json!({"type": "object", "properties": {}, "additionalProperties": false});
    json!([function("paint", colour()), function("wash", empty)])
}

#[tokio::test]
async fn a_required_call_is_made_by_a_model_that_would_rather_talk() {
    let server = Server::start().await;
    let said = thinks_and_says("No tools, please.", "I will not.");
    let body = with(user(&said), json!({"tools": tools(false), "tool_choice": "required"}));
    let answer = server.chat(&body).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls", "{answer}");
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    let painted = ["red", "green"].map(Value::from).contains(&arguments["colour"]);
    assert!(painted || (call["name"] == "wash" && arguments == json!({})), "{answer}");

    for name in ["paint", "wash"] {
        let choice = json!({"type": "function", "function": {"name": name}});
        let body = with(user(&said), json!({"tools": tools(false), "tool_choice": choice}));
        let answer = server.chat(&body).await;
        let calls = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap();
        assert_eq!((calls.len(), &calls[0]["function"]["name"]), (1, &json!(name)), "{answer}");
    }
}

/// A call must be made, of a tool whose schema nobody can follow: the arguments are an object.
#[tokio::test]
async fn a_call_is_required_of_tools_whose_schemas_cannot_be_followed() {
    let server = Server::start().await;
    let said = thinks_and_says("No tools, please.", "I will not.");
    let with_property =
        |schema: Value| json!({"type": "object", "properties": {"a": schema}, "required": ["a"]});
    for (schema, read) in [
        (with_property(json!({"type": "string", "pattern": "^(?!x).*$", "maxLength": 9})), true),
        (with_property(json!({"type": "str"})), false),
        (with_property(json!({"$ref": "#/$defs/none"})), false),
        (json!({"type": "object", "properties": {}, "required": null}), false),
    ] {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": schema}});
        let body = with(user(&said), json!({"tools": [tool], "tool_choice": "required"}));
        let call = server.chat(&body).await["choices"][0]["message"]["tool_calls"][0]["function"].take();
        let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
        assert!(arguments.is_object() && (!read || arguments["a"].is_string()), "{schema}: {call}");
    }
}

fn allowed(mode: &str, name: &str) -> Value {
    let tools = json!([{"type": "function", "function": {"name": name}}]);
    json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}})
}

/// The model is told of all, so that the prompt stays what it was, and calls only those.
#[tokio::test]
async fn only_allowed_tools_are_called() {
    let server = Server::start().await;
    let call = "<|channel|>analysis<|message|>Paint.<|end|><|start|>assistant to=functions.paint<|channel|>\
                commentary <|constrain|>json<|message|>{\"colour\": \"red\"}<|call|>";
    for (mode, name, called) in
        [("required", "wash", "wash"), ("auto", "paint", "paint"), ("auto", "wash", "")]
    {
        let body = with(user(call), json!({"tools": tools(false), "tool_choice": allowed(mode, name)}));
        let answer = server.chat(&body).await;
        let calls = &answer["choices"][0]["message"]["tool_calls"];
        assert!(server.seen.prompt.lock().unwrap().contains("type paint ="));
        match called {
            "" => assert_ne!(calls[0]["function"]["name"], "paint", "{answer}"),
            _ => assert_eq!(calls[0]["function"]["name"], called, "{answer}"),
        }
    }
}

#[tokio::test]
async fn strict_tools_bind_a_call_that_the_model_makes_by_itself() {
    let server = Server::start().await;
    let call = "<|channel|>analysis<|message|>Paint.<|end|><|start|>assistant to=functions.paint<|channel|>\
                commentary <|constrain|>json<|message|>{\"colour\": \"black\"}<|call|>";
    let body = with(user(call), json!({"tools": tools(true), "parallel_tool_calls": false}));
    let answer = server.chat(&body).await;
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(call["name"], "paint");
    assert!(["red", "green"].map(Value::from).contains(&arguments["colour"]), "{answer}");
    let body = with(user(&thinks_and_says("", "Not now.")), json!({"tools": tools(true)}));
    assert_eq!(server.chat(&body).await["choices"][0]["message"]["content"], "Not now.");
}

#[tokio::test]
async fn what_cannot_be_kept_to_is_refused_by_name() {
    let server = Server::start().await;
    let schema = |schema| json!({"response_format": format(schema)});
    let path = "response_format.json_schema.schema";
    let function = |function| json!({"tools": [{"type": "function", "function": function}]});
    let cases = [
        (schema(json!({"type": "array", "uniqueItems": true})), path, "uniqueItems"),
        (schema(json!({"$ref": "https://example.org/x"})), path, "example.org"),
        (schema(json!(true)), path, "expected a JSON schema, an object"),
        (json!({"response_format": {"kind": "text"}}), "response_format.type", "missing"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type", "found the string"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema", "missing"),
        (json!({"structured_outputs": {"regex": "(a"}}), "structured_outputs.regex", "unclosed group"),
        (
            json!({"structured_outputs": {"grammar": "start: x"}}),
            "structured_outputs.grammar",
            "unknown name",
        ),
        (json!({"structured_outputs": {"structural_tag": {}}}), "structured_outputs.structural_tag", "null"),
        (
            json!({"guided_regex": "a", "guided_choice": ["b"]}),
            "guided_choice",
            "guided_regex binds the answer",
        ),
        (json!({"guided_json": "{"}), "guided_json", "not JSON"),
        (
            function(json!({"name": "f", "strict": "yes"})),
            "tools[0].function.strict",
            "expected true or false",
        ),
        (
            function(json!({"name": "f", "strict": true, "parameters": {"type": "objct"}})),
            "tools[0].function.parameters",
            "objct",
        ),
        (json!({"tools": [{"type": "custom", "custom": {}}]}), "tools[0].type", "not supported yet"),
        (json!({"tool_choice": {"type": "allowed_tools"}}), "tool_choice.allowed_tools", "missing"),
        (
            json!({"tools": tools(false), "tool_choice": allowed("auto", "fly")}),
            "tool_choice",
            "none of the tools",
        ),
        (json!({"tool_choice": {"type": "custom"}}), "tool_choice.type", "not supported yet"),
        (
            json!({"tools": tools(false), "tool_choice": {"type": "function", "function": {"name": "fly"}}}),
            "tool_choice",
            "\"fly\" is none of the tools",
        ),
        (json!({"ignore_eos": true, "guided_regex": "a"}), "ignore_eos", "bound to a form"),
    ];
    for (form, param, words) in cases {
        let (status, error) = server.refused(CHAT, &with(user("x"), form)).await;
        assert_eq!((status, error["param"].as_str()), (400, Some(param)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{words:?} is missing in {error}");
    }
    assert_eq!(server.seen.admitted(), 0, "no worker has heard of any of this");
}

/// Written as a form is, and more than can be followed; or of nothing at all. Nothing is wrong with the request
/// itself: 422, which clients do not try again.
#[tokio::test]
async fn what_cannot_be_followed_is_unprocessable() {
    let server = Server::start().await;
    let many = (0..70_000).map(|n| format!("w{n}")).collect::<Vec<_>>();
    let nested = format!("{}a{}", "(".repeat(200), ")".repeat(200));
    let path = "response_format.json_schema.schema";
    let nothing = json!({"type": "integer", "minimum": 5, "maximum": 4});
    let tool = json!({"type": "function", "function": {"name": "f", "strict": true, "parameters":
        {"type": "object", "properties": {"a": false}, "required": ["a"]}}});
    let cases = [
        (json!({"response_format": format(json!({"enum": many}))}), path, "grammar_too_complex"),
        (json!({"guided_regex": nested}), "guided_regex", "grammar_too_complex"),
        (json!({"response_format": format(nothing)}), path, "grammar_unsatisfiable"),
        (json!({"tools": [tool]}), "tools[0].function.parameters", "grammar_unsatisfiable"),
    ];
    for (form, param, code) in cases {
        let (status, error) = server.refused(CHAT, &with(user("x"), form)).await;
        assert_eq!((status, error["param"].as_str()), (422, Some(param)), "{error}");
        let kind = (error["type"].as_str(), error["code"].as_str());
        assert_eq!(kind, (Some("invalid_request_error"), Some(code)), "{error}");
    }
    assert_eq!(server.seen.admitted(), 0, "no worker has heard of any of this");
}

/// What was said so far is no answer of that form, and must not look like one.
#[tokio::test]
async fn a_form_that_becomes_too_much_is_an_error_and_no_end() {
    let server = Server::start().await;
    let said = "x".repeat(1600);
    let ways = (2..8).map(|n| "s ".repeat(n) + "| ").collect::<String>();
    let form = json!({"guided_grammar": format!("start: s\ns: {ways}\"x\"")});
    let body = with(user(&thinks_and_says("", &said)), form);
    let (status, error) = server.refused(CHAT, &body).await;
    assert_eq!((status, error["code"].as_str()), (422, Some("grammar_exhausted")), "{error}");
    assert!(error["message"].as_str().unwrap().contains("within its limits"), "{error}");

    let events = server.stream(CHAT, &with(body, json!({"stream": true}))).await;
    let last = events.last().unwrap();
    assert_eq!(last["error"]["code"], "grammar_exhausted", "{last}");
    let ended = events.iter().any(|event| event["choices"][0]["finish_reason"].is_string());
    assert!(!ended && !joined(&events, "/delta/content").is_empty(), "said, and not ended: {events:?}");
}
