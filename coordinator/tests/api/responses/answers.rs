//! Whole answers: their items, what they repeat of the request, and the way of a tool.

use serde_json::{Value, json};

use super::{CALLS, input, nameless, respond, stream, tools};
use crate::server::{MODEL, Server, calls_and_goes_on, thinks_and_says};

#[tokio::test]
async fn an_answer_says_everything_that_clients_read() {
    let server = Server::start().await;
    let script = thinks_and_says("Add them.", "It is 4.");
    let mut body = input(&*script);
    body["instructions"] = json!("Be brief.");
    body["metadata"] = json!({"order": "7"});
    body["temperature"] = json!(0.7);
    body["max_output_tokens"] = json!(100);
    body["reasoning"] = json!({"effort": "high", "summary": "auto"});
    body["user"] = json!("ann");
    body["tools"] = tools();
    let answer = respond(&server, &body).await;
    let count = |text: &str| server.tokenizer.encode_special(text).len();
    let input_tokens = answer["usage"]["input_tokens"].as_u64().unwrap() as usize;
    assert!(input_tokens > count(&script));
    let expected = json!({
        "id": "resp_",
        "object": "response",
        "created_at": 1_772_000_000,
        "status": "completed",
        "error": null,
        "incomplete_details": null,
        "model": MODEL,
        "output": [
            {
                "id": "rs_",
                "type": "reasoning",
                "status": "completed",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "Add them."}],
                "encrypted_content": null,
            },
            {
                "id": "msg_",
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [
                    {"type": "output_text", "annotations": [], "logprobs": [], "text": "It is 4."},
                ],
            },
        ],
        "usage": {
            "input_tokens": input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": count(&script),
            "output_tokens_details": {"reasoning_tokens": count("Add them.")},
            "total_tokens": input_tokens + count(&script),
        },
        "instructions": "Be brief.",
        "max_output_tokens": 100,
        "max_tool_calls": null,
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "prompt_cache_key": null,
        "safety_identifier": null,
        "store": true,
        "user": "ann",
        "metadata": {"order": "7"},
        "temperature": 0.7,
        "top_p": 1.0,
        "top_logprobs": 0,
        "service_tier": "default",
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "truncation": "disabled",
        "background": false,
        "reasoning": {"effort": "high", "summary": null},
        "tools": tools(),
        "tool_choice": "auto",
    });
    assert_eq!(nameless(answer), expected);
    let prompt = server.seen.prompt.lock().unwrap().clone();
    assert!(prompt.contains("Reasoning: high\n"), "{prompt}");
    assert!(prompt.contains("# Instructions\n\nBe brief.\n\n# Tools"), "{prompt}");
}

#[tokio::test]
async fn input_may_be_items_of_every_kind() {
    let server = Server::start().await;
    let body = input(json!([
        {"role": "system", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [],
         "content": [{"type": "reasoning_text", "text": "Ask around."}]},
        {"role": "assistant", "content": "One moment.", "phase": "commentary"},
        {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{\"city\":\"Ulm\"}"},
        {"type": "function_call", "call_id": "c2", "name": "get_weather", "arguments": "{\"city\":\"Aix\"}"},
        {"type": "function_call_output", "call_id": "c2", "output": "sun"},
        {"type": "function_call_output", "call_id": "c1",
         "output": [{"type": "input_text", "text": thinks_and_says("", "Rain and sun.")}]},
    ]));
    let answer = respond(&server, &body).await;
    assert_eq!(answer["output"][0]["content"][0]["text"], "Rain and sun.");
    let prompt = server.seen.prompt.lock().unwrap().clone();
    let call = " to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>{\"city\":";
    for part in [
        "# Instructions\n\nBe kind.",
        "<|start|>user<|message|>Weather?<|end|>",
        "<|start|>assistant<|channel|>analysis<|message|>Ask around.<|end|>",
        "<|start|>assistant<|channel|>commentary<|message|>One moment.<|end|>",
        &format!("<|start|>assistant{call}\"Ulm\"}}<|call|><|start|>assistant{call}\"Aix\"}}<|call|>"),
        "<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>sun<|end|>",
    ] {
        assert!(prompt.contains(part), "{part:?} is missing in {prompt:?}");
    }
}

#[tokio::test]
async fn a_tool_is_called_and_its_output_read() {
    let server = Server::start().await;
    let mut body = input(CALLS);
    body["tools"] = tools();
    body["store"] = json!(false);
    let answer = respond(&server, &body).await;
    assert_eq!(answer["status"], "completed");
    let output = answer["output"].as_array().unwrap();
    assert_eq!(output.len(), 2);
    assert_eq!(output[0]["content"][0]["text"], "Ask.");
    let call = json!({
        "id": "fc_",
        "type": "function_call",
        "status": "completed",
        "call_id": "call_",
        "name": "get_weather",
        "arguments": "{\"city\": \"Köln 🌧\"}",
    });
    assert_eq!(nameless(output[1].clone()), call);

    // The client sends back what it was sent, and what the tool said; then it goes on.
    let mut items = vec![json!({"role": "user", "content": CALLS})];
    items.extend(output.iter().cloned());
    let said = thinks_and_says("Rain.", "Take a coat.");
    items.push(json!({"type": "function_call_output", "call_id": output[1]["call_id"], "output": said}));
    body["input"] = json!(items);
    let answer = respond(&server, &body).await;
    assert_eq!(answer["output"][1]["content"][0]["text"], "Take a coat.");
    let prompt = server.seen.prompt.lock().unwrap().clone();
    assert!(prompt.contains("<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>"));
    assert!(prompt.contains("analysis<|message|>Ask.<|end|>"), "the turn is not over: its thoughts stay");

    items.extend(answer["output"].as_array().unwrap().iter().cloned());
    items.push(json!({"role": "user", "content": thinks_and_says("", "Yes.")}));
    body["input"] = json!(items);
    assert_eq!(respond(&server, &body).await["output"][0]["content"][0]["text"], "Yes.");
    let prompt = server.seen.prompt.lock().unwrap().clone();
    assert!(prompt.contains("final<|message|>Take a coat.<|end|>"), "{prompt}");
    for thought in ["Ask.", "Rain."] {
        let shown = format!("<|start|>assistant<|channel|>analysis<|message|>{thought}<|end|>");
        assert!(!prompt.contains(&shown), "thoughts of past turns are not shown again");
    }
}

/// Codex sends back of its reasoning what `encrypted_content` says, and nothing else.
#[tokio::test]
async fn thoughts_come_back_in_what_is_named_encrypted_content() {
    let server = Server::start().await;
    let mut body = input(CALLS);
    body["tools"] = tools();
    body["store"] = json!(false);
    let plain = respond(&server, &body).await;
    assert_eq!(plain["output"][0]["encrypted_content"], Value::Null, "nobody asked for it");
    body["include"] = json!(["reasoning.encrypted_content"]);
    let mut events = stream(&server, &body).await;
    let answer = events.pop().unwrap()["response"].take();
    let told = |name: &str| {
        events.iter().find(|event| event["type"] == name).unwrap()["item"]["encrypted_content"].clone()
    };
    let mut output = answer["output"].as_array().unwrap().clone();
    assert_eq!(output[0]["encrypted_content"], "flotilla1:Ask.");
    assert_eq!(told("response.output_item.added"), Value::Null);
    assert_eq!(told("response.output_item.done"), output[0]["encrypted_content"]);

    output[0].as_object_mut().unwrap().remove("content");
    let said = thinks_and_says("Rain.", "Take a coat.");
    let result = json!({"type": "function_call_output", "call_id": output[1]["call_id"], "output": said});
    body["input"] = json!([&[json!({"role": "user", "content": CALLS})], &output[..], &[result]].concat());
    respond(&server, &body).await;
    let prompt = server.seen.prompt.lock().unwrap().clone();
    assert!(prompt.contains("<|start|>assistant<|channel|>analysis<|message|>Ask.<|end|>"), "{prompt}");
}

#[tokio::test]
async fn tools_that_are_forbidden_are_shown_and_not_called() {
    let server = Server::start().await;
    let mut body = input(calls_and_goes_on(CALLS));
    body["tools"] = tools();
    body["tool_choice"] = json!("none");
    let answer = respond(&server, &body).await;
    assert!(server.seen.prompt.lock().unwrap().contains("type get_weather"));
    assert_eq!((&answer["tool_choice"], &answer["tools"]), (&json!("none"), &tools()));
    answers(&answer);

    // Without tools, and with calls that are remembered.
    body["tool_choice"] = json!("auto");
    let called = respond(&server, &body).await;
    let output = json!([{"type": "function_call_output", "call_id": called["output"][1]["call_id"], "output": calls_and_goes_on(CALLS)}]);
    let mut body = input(output);
    body["previous_response_id"] = called["id"].clone();
    answers(&respond(&server, &body).await);
}

/// A model that wants to call, and must answer.
#[track_caller]
fn answers(answer: &Value) {
    let kinds: Vec<&Value> = answer["output"].as_array().unwrap().iter().map(|item| &item["type"]).collect();
    assert!(!kinds.contains(&&json!("function_call")), "{answer}");
    assert_eq!(kinds.last(), Some(&&json!("message")), "{answer}");
}

#[tokio::test]
async fn tokens_that_run_out_make_an_incomplete_answer() {
    let server = Server::start().await;
    let mut body = input(thinks_and_says("So.", "one two three four five"));
    let whole =
        "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>one two";
    body["max_output_tokens"] = json!(server.tokenizer.encode_special(whole).len());
    let answer = respond(&server, &body).await;
    assert_eq!(answer["status"], "incomplete");
    assert_eq!(answer["incomplete_details"], json!({"reason": "max_output_tokens"}));
    let status: Vec<&Value> =
        answer["output"].as_array().unwrap().iter().map(|item| &item["status"]).collect();
    assert_eq!(status, ["completed", "incomplete"]);
    assert_eq!(answer["output"][1]["content"][0]["text"], "one two");
    assert_eq!(answer["usage"]["output_tokens"], body["max_output_tokens"]);
}

#[tokio::test]
async fn log_probabilities_stand_beside_the_text() {
    let server = Server::start().await;
    let mut body = input(thinks_and_says("Hm.", "It is 4."));
    body["include"] = json!(["message.output_text.logprobs", "reasoning.encrypted_content"]);
    body["top_logprobs"] = json!(2);
    let answer = respond(&server, &body).await;
    assert_eq!(answer["top_logprobs"], 2);
    let logprobs = answer["output"][1]["content"][0]["logprobs"].as_array().unwrap();
    let joined: String = logprobs.iter().map(|one| one["token"].as_str().unwrap()).collect();
    assert_eq!(joined, "It is 4.");
    for one in logprobs {
        assert!(one["logprob"].is_number() && one["bytes"].is_array(), "{one}");
        assert_eq!(one["top_logprobs"].as_array().unwrap().len(), 2, "{one}");
    }
}

#[tokio::test]
async fn what_vllm_has_beyond_openai_works_here_too() {
    let server = Server::start().await;
    let mut body = input("<|channel|>final<|message|>{seed}, so stop here<|return|>");
    body["seed"] = json!(7);
    body["stop"] = json!(" stop");
    body["top_k"] = json!(40);
    let answer = respond(&server, &body).await;
    assert_eq!(answer["output"][0]["content"][0]["text"], "7, so");
    assert_eq!(answer["status"], "completed");
}
