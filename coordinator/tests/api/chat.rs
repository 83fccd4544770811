//! What a chat answers: thoughts, words and calls come apart, and a stream says the same as a whole
//! answer.

use serde_json::{Value, json};

use crate::server::{MODEL, Server, calls_and_goes_on, joined, thinks_and_says, user};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn thoughts_and_answer_come_apart() {
    let server = Server::start().await;
    let answer = server.chat(&user(&thinks_and_says("Add them.", "It is 4."))).await;
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], MODEL);
    assert_eq!(answer["created"], 1_772_000_000);
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(answer["system_fingerprint"].as_str().unwrap().starts_with("flotilla-"));
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"], "It is 4.");
    assert_eq!(choice["message"]["reasoning"], "Add them.");
    assert_eq!(choice["message"]["reasoning_content"], "Add them.");
    assert_eq!(choice["message"].get("tool_calls"), None);
    assert_eq!(choice["finish_reason"], "stop");
}

#[tokio::test]
async fn a_stream_says_the_same() {
    let server = Server::start().await;
    let body = user(&thinks_and_says("Größe? 🧠 ja", "Das ist groß 🎉🎉, oder 日本?"));
    let whole = server.chat(&body).await;
    let chunks = server.stream(CHAT, &body).await;
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["content"], "Das ist groß 🎉🎉, oder 日本?");
    assert_eq!(joined(&chunks, "/delta/content"), message["content"]);
    assert_eq!(joined(&chunks, "/delta/reasoning"), message["reasoning"]);
    assert_eq!(joined(&chunks, "/delta/reasoning_content"), message["reasoning_content"]);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"] && chunk.get("usage").is_none()));
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert!(before.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
}

#[tokio::test]
async fn usage_adds_up() {
    let server = Server::start().await;
    let script = thinks_and_says("one two three", "four");
    let mut body = user(&script);
    let mut usage = server.chat(&body).await["usage"].take();
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    let count = |text: &str| server.tokenizer.encode_special(text).len();
    let prompt = server.seen.prompt.lock().unwrap().clone();
    assert_eq!(usage["completion_tokens"], count(&script));
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], count("one two three"));
    // The script is plain text in the prompt, so the text alone does not tell how many tokens it has.
    assert!(usage["prompt_tokens"].as_u64().unwrap() >= count(&prompt) as u64);
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);

    body["stream_options"] = json!({"include_usage": true});
    let chunks = server.stream(CHAT, &body).await;
    let (last, before) = chunks.split_last().unwrap();
    // All whole blocks of the prompt are found again.
    usage["prompt_tokens_details"]["cached_tokens"] =
        json!((usage["prompt_tokens"].as_u64().unwrap() - 1) / 16 * 16);
    assert_eq!((&last["usage"], &last["choices"]), (&usage, &json!([])));
    assert!(before.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
}

/// From the first chunk on, which tells the role and brings no token yet.
#[tokio::test]
async fn usage_so_far_begins_with_the_prompt() {
    let server = Server::start().await;
    let mut body = user("one two three");
    body["n"] = json!(2);
    body["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
    let chunks = server.stream(CHAT, &body).await;
    let prompt = chunks.last().unwrap()["usage"]["prompt_tokens"].as_u64().unwrap();
    let first = &chunks[0]["usage"];
    assert!(prompt > 0 && chunks[0]["choices"][0]["delta"]["role"] == "assistant", "{}", chunks[0]);
    assert_eq!((&first["prompt_tokens"], &first["completion_tokens"]), (&json!(prompt), &json!(0)));
    let so_far = |chunk: &Value| chunk["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(chunks.is_sorted_by_key(so_far), "{chunks:#?}");
}

#[tokio::test]
async fn the_prompt_is_what_the_format_asks_for() {
    let server = Server::start().await;
    let body = json!({
        "model": MODEL,
        "reasoning_effort": "high",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": " there"}]},
            {"role": "assistant", "content": "Hello.", "reasoning_content": "greet"},
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": "<|channel|>final<|message|>Bye<|return|>"},
        ],
    });
    server.chat(&body).await;
    let prompt = server.seen.prompt.lock().unwrap().clone();
    for part in [
        "<|start|>system<|message|>You are ChatGPT",
        "Knowledge cutoff: 2024-06\nCurrent date: 2026-02-28\n\nReasoning: high\n",
        "<|start|>developer<|message|># Instructions\n\nBe brief.<|end|>",
        "Hello.<|end|><|start|>developer<|message|># Instructions\n\nBe kind.<|end|><|start|>user",
        "<|start|>user<|message|>Hi there<|end|>",
        "<|start|>assistant<|channel|>final<|message|>Hello.<|end|>",
    ] {
        assert!(prompt.contains(part), "{part:?} is missing in {prompt:?}");
    }
    assert!(prompt.ends_with("<|end|><|start|>assistant"));
    assert!(!prompt.contains("greet"), "thoughts of past turns are not shown again");
}

fn tools() -> Value {
    json!([{"type": "function", "function": {
        "name": "get_weather",
        "description": "Of a city, now.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }}])
}

const CALL: &str = "<|channel|>analysis<|message|>Ask.<|end|><|start|>assistant<|channel|>commentary \
                    to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Köln 🌧\"}<|call|>";

#[tokio::test]
async fn a_tool_is_called_and_its_answer_read() {
    let server = Server::start().await;
    let mut body = user(CALL);
    body["tools"] = tools();
    let answer = server.chat(&body).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(choice["message"]["reasoning"], "Ask.");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["type"], "function");
    assert_eq!(call["function"]["name"], "get_weather");
    assert_eq!(call["function"]["arguments"], "{\"city\": \"Köln 🌧\"}");
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    assert!(
        server.seen.prompt.lock().unwrap().contains("type get_weather = (_: {\ncity: string,\n}) => any;")
    );

    // The client sends back what it was sent, and what the tool said.
    let mut messages = body["messages"].as_array().unwrap().clone();
    messages.push(choice["message"].clone());
    let said = thinks_and_says("Rain.", "Take a coat.");
    messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": said}));
    let body = json!({"model": MODEL, "messages": messages, "tools": tools(), "tool_choice": "auto"});
    let answer = server.chat(&body).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "Take a coat.");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let prompt = server.seen.prompt.lock().unwrap().clone();
    assert!(prompt.contains("<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>"));
    assert!(prompt.contains("analysis<|message|>Ask.<|end|>"), "the turn is not over: its thoughts stay");
}

#[tokio::test]
async fn calls_are_streamed_as_openai_does() {
    let server = Server::start().await;
    let mut body = user(CALL);
    body["tools"] = tools();
    let chunks = server.stream(CHAT, &body).await;
    let calls: Vec<&Value> =
        chunks.iter().filter_map(|chunk| chunk.pointer("/choices/0/delta/tool_calls/0")).collect();
    let (first, rest) = calls.split_first().unwrap();
    assert_eq!(first["index"], 0);
    assert_eq!(first["type"], "function");
    assert_eq!(first["function"], json!({"name": "get_weather", "arguments": ""}));
    assert!(rest.iter().all(|call| call["index"] == 0 && call.get("id").is_none()));
    assert_eq!(joined(&chunks, "/delta/tool_calls/0/function/arguments"), "{\"city\": \"Köln 🌧\"}");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn tools_that_are_forbidden_are_shown_and_not_called() {
    let server = Server::start().await;
    let mut body = user(&calls_and_goes_on(CALL));
    body["tools"] = tools();
    server.chat(&body).await;
    let prompt = server.seen.prompt.lock().unwrap().clone();
    body["tool_choice"] = json!("none");
    let answer = server.chat(&body).await;
    let goes_on_from = server.seen.prompt.lock().unwrap().clone();
    assert!(goes_on_from.starts_with(&prompt), "what was computed is found again: {goes_on_from}");
    assert!(answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 100, "{answer}");
    answers(&answer);
    body["ignore_eos"] = json!(true);
    body["max_tokens"] = json!(60);
    assert_eq!(
        server.chat(&body).await["choices"][0]["message"].get("tool_calls"),
        None,
        "nor heard as calls"
    );
}

/// A model that wants to call, and must answer.
#[track_caller]
fn answers(answer: &Value) {
    let choice = &answer["choices"][0];
    assert_eq!((choice["message"].get("tool_calls"), &choice["finish_reason"]), (None, &json!("stop")));
    assert!(choice["message"]["content"].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
}

/// The model knows of the function from its earlier call.
#[tokio::test]
async fn without_tools_none_is_called_whatever_was_called_before() {
    let server = Server::start().await;
    let call =
        json!({"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}});
    let body = json!({"model": MODEL, "messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": calls_and_goes_on(CALL)},
    ]});
    answers(&server.chat(&body).await);
}

#[tokio::test]
async fn a_preamble_is_content_and_a_bare_call_has_empty_arguments() {
    let server = Server::start().await;
    let mut body = user(
        "<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant to=functions.get_weather\
         <|channel|>commentary <|constrain|>json<|message|><|call|>",
    );
    body["tools"] = tools();
    let message = server.chat(&body).await["choices"][0]["message"].take();
    assert_eq!(message["content"], "Let me look.");
    assert_eq!(message["tool_calls"][0]["function"]["arguments"], "{}");
}

#[tokio::test]
async fn two_choices_have_seeds_of_their_own() {
    let server = Server::start().await;
    let mut body = user("<|channel|>final<|message|>{seed}<|return|>");
    body["n"] = json!(2);
    body["seed"] = json!(7);
    let answer = server.chat(&body).await;
    let said = |answer: &Value, index: usize| answer["choices"][index]["message"]["content"].clone();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    assert_eq!((&answer["choices"][0]["index"], &answer["choices"][1]["index"]), (&json!(0), &json!(1)));
    assert_eq!(said(&answer, 0), "7");
    assert_ne!(said(&answer, 1), "7");
    assert_eq!(server.chat(&body).await["choices"], answer["choices"], "the same seed, the same answer");
    body["n"] = json!(1);
    let one = server.chat(&body).await;
    assert_eq!(said(&one, 0), "7");
    assert_eq!(one["usage"]["prompt_tokens"], answer["usage"]["prompt_tokens"], "prompts count once");

    body.as_object_mut().unwrap().remove("seed");
    let unseeded = (server.chat(&body).await, server.chat(&body).await);
    assert_ne!(said(&unseeded.0, 0), said(&unseeded.1, 0), "chance, where no seed is given");

    body["n"] = json!(2);
    let chunks = server.stream(CHAT, &body).await;
    for index in 0..2 {
        let of = |chunk: &&Value| chunk["choices"][0]["index"] == index;
        let first = chunks.iter().find(of).unwrap();
        assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(chunks.iter().rfind(of).unwrap()["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn harmless_parameters_are_taken() {
    let server = Server::start().await;
    let mut body = user(&thinks_and_says("", "Yes."));
    let harmless = json!({
        "user": "u", "metadata": {"a": "b"}, "store": false, "parallel_tool_calls": true, "logprobs": false,
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "service_tier": "auto", "top_logprobs": 0, "prompt_cache_key": "k",
        "response_format": {"type": "text"}, "modalities": ["text"], "top_k": -1, "stop": null, "n": null,
        "temperature": 0.5, "top_p": 0.9, "functions": [], "tools": [],
    });
    body.as_object_mut().unwrap().extend(harmless.as_object().unwrap().clone());
    assert_eq!(server.chat(&body).await["choices"][0]["message"]["content"], "Yes.");
}
