//! What clients in use send that is no word of OpenAI's for this place, and is no reason to refuse them: what
//! libraries add to messages and hand back, other servers' names, and marks that change nothing.

use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{MODEL, Server, error_of, joined, thinks_and_says, user};

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

fn prompt(server: &Server) -> String {
    server.seen.prompt.lock().unwrap().clone()
}

fn chat(messages: Value) -> Value {
    json!({"model": MODEL, "messages": messages})
}

/// LiteLLM, OpenRouter, Google's and OpenAI's own Python library each add to a message what they know of it.
#[tokio::test]
async fn what_libraries_add_to_a_message_may_come_back() {
    let server = Server::start().await;
    let said = thinks_and_says("", "Fine.");
    let body = chat(json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "parsed": null, "provider_specific_fields": {"refusal": null},
         "reasoning_details": [{"type": "reasoning.text", "text": "Ask."}], "thinking_blocks": [{}],
         "extra_content": {"google": {}},
         "tool_calls": [{"id": "c1", "type": "function", "index": 0, "provider_specific_fields": {"a": 1},
                         "extra_content": {"google": {"thought_signature": "x"}},
                         "function": {"name": "f", "arguments": "{}", "parsed_arguments": {"a": 1},
                                      "provider_specific_fields": {}}}]},
        {"role": "tool", "tool_call_id": "c1", "content": null},
        {"role": "assistant", "content": "{}", "parsed": {"a": 1}},
        {"role": "user", "content": said},
    ]));
    assert_eq!(server.chat(&body).await["choices"][0]["message"]["content"], "Fine.");
    assert!(prompt(&server).contains("to=assistant<|channel|>commentary<|message|><|end|>"), "null is empty");

    let body = json!({"model": MODEL, "input": [
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "summary": [], "content": [], "encrypted_content": ""},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "parsed_arguments": {"a": 1}},
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
        {"type": "message", "role": "assistant",
         "content": [{"type": "output_text", "text": "{}", "parsed": {"a": 1}, "annotations": []}]},
        {"role": "user", "content": said},
    ]});
    assert_eq!(server.ask(RESPONSES, &body).await["output"][0]["content"][0]["text"], "Fine.");
}

#[tokio::test]
async fn reasoning_is_read_by_whichever_name_has_it() {
    let server = Server::start().await;
    let call = json!([{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    let of = |reasoning: Value, content: Value| {
        chat(json!([
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "reasoning": reasoning, "reasoning_content": content, "tool_calls": call},
            {"role": "tool", "tool_call_id": "c1", "content": thinks_and_says("", "Fine.")},
        ]))
    };
    for (reasoning, content) in [("Ask.", ""), ("", "Ask."), ("Ask.", "Other."), ("Ask.", "Ask.")] {
        server.chat(&of(json!(reasoning), json!(content))).await;
        assert!(prompt(&server).contains("analysis<|message|>Ask.<|end|>"), "{reasoning:?}, {content:?}");
    }
    server.chat(&of(Value::Null, json!("Ask."))).await;
    assert!(prompt(&server).contains("analysis<|message|>Ask.<|end|>"));
}

#[tokio::test]
async fn marks_for_caches_change_nothing() {
    let server = Server::start().await;
    let mark = json!({"type": "ephemeral"});
    let text = json!({"type": "text", "text": thinks_and_says("", "Fine."), "cache_control": mark,
                      "prompt_cache_breakpoint": {}});
    let mut body = chat(json!([{"role": "user", "content": [text], "cache_control": mark}]));
    body["tools"] = json!([{"type": "function", "cache_control": mark,
                            "function": {"name": "f", "cache_control": mark}}]);
    body["cache_prompt"] = json!(true);
    assert_eq!(server.chat(&body).await["choices"][0]["message"]["content"], "Fine.");
    let text = json!({"type": "input_text", "text": thinks_and_says("", "Fine."), "cache_control": mark});
    let body = json!({"model": MODEL, "input": [{"role": "user", "content": [text]}],
                      "tools": [{"type": "function", "name": "f", "cache_control": mark}]});
    assert_eq!(server.ask(RESPONSES, &body).await["output"][0]["content"][0]["text"], "Fine.");
}

#[tokio::test]
async fn effort_may_stand_among_the_arguments_of_a_template() {
    let server = Server::start().await;
    let mut body = user(&thinks_and_says("", "Fine."));
    for (kwargs, named, expected) in [
        (json!({"reasoning_effort": "high"}), Value::Null, "Reasoning: high"),
        (json!({"reasoning_effort": "high"}), json!("low"), "Reasoning: low"),
        (json!({}), Value::Null, "Reasoning: medium"),
    ] {
        body["chat_template_kwargs"] = kwargs;
        body["reasoning_effort"] = named;
        server.chat(&body).await;
        assert!(prompt(&server).contains(expected), "{body}");
    }
    body["chat_template_kwargs"] = json!({"enable_thinking": false});
    let (status, error) = server.refused(CHAT, &body).await;
    assert_eq!((status, error["param"].as_str()), (400, Some("chat_template_kwargs")), "{error}");
    assert_eq!(error["code"], "unsupported_value");
}

/// OpenAI's default, which some clients spell out.
#[tokio::test]
async fn obfuscation_may_be_asked_for() {
    let server = Server::start().await;
    let script = thinks_and_says("", "Fine.");
    for obfuscation in [true, false] {
        let options = json!({"include_obfuscation": obfuscation});
        let mut body = user(&script);
        body["stream_options"] = options.clone();
        assert_eq!(joined(&server.stream(CHAT, &body).await, "/delta/content"), "Fine.");
        let body = json!({"model": MODEL, "input": script, "stream": true, "stream_options": options});
        let answer = server.post(RESPONSES, &body).await;
        assert!(answer.status().is_success() && answer.text().await.unwrap().contains("Fine."));
    }
}

/// By the words that clients have for models of more levels.
#[tokio::test]
async fn every_effort_is_one_of_three() {
    let server = Server::start().await;
    let script = thinks_and_says("", "Fine.");
    for (word, level) in [
        ("none", "low"),
        ("minimal", "low"),
        ("low", "low"),
        ("medium", "medium"),
        ("high", "high"),
        ("xhigh", "high"),
        ("max", "high"),
    ] {
        for named in
            [json!({"reasoning_effort": word}), json!({"chat_template_kwargs": {"reasoning_effort": word}})]
        {
            let mut body = user(&script);
            body.as_object_mut().unwrap().extend(named.as_object().unwrap().clone());
            server.chat(&body).await;
            assert!(prompt(&server).contains(&format!("Reasoning: {level}\n")), "{body}");
        }
        let body = json!({"model": MODEL, "input": script, "reasoning": {"effort": word}});
        assert_eq!(server.ask(RESPONSES, &body).await["reasoning"]["effort"], level, "what is used: {word}");
        assert!(prompt(&server).contains(&format!("Reasoning: {level}\n")), "{body}");
    }
}

#[tokio::test]
async fn users_have_names_of_any_letters() {
    let server = Server::start().await;
    let longest = "é".repeat(128);
    for name in ["Zoë", "山田", "o'neil@example.org", &longest] {
        let said = thinks_and_says("", "Fine.");
        let body = chat(json!([{"role": "user", "name": name, "content": said}]));
        server.chat(&body).await;
        assert!(prompt(&server).contains(&format!("<|start|>user:{name}<|message|>")));
    }
    for name in ["", "two words", "a\u{7}b", "<|end|>", "a/b", "a\\b", &format!("{longest}é")] {
        let body = chat(json!([{"role": "user", "name": name, "content": "x"}]));
        let (status, error) = server.refused(CHAT, &body).await;
        assert_eq!((status, error["param"].as_str()), (400, Some("messages[0].name")), "{name:?}: {error}");
    }
}

/// What the server sends as a call's name it must take back, or the conversation is at its end.
#[tokio::test]
async fn a_call_by_an_odd_name_can_be_sent_back() {
    let server = Server::start().await;
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    for (recipient, name) in
        [("functions.f?(x)", Some("f")), ("functions.f,g", Some("f")), ("functions.", None)]
    {
        let call = format!("<|channel|>commentary to={recipient} <|constrain|>json<|message|>{{}}<|call|>");
        let mut body = user(&call);
        body["tools"] = tools.clone();
        let message = server.chat(&body).await["choices"][0]["message"].take();
        assert_eq!(message["tool_calls"][0]["function"]["name"].as_str(), name, "{recipient}: {message}");
        if name.is_none() {
            continue;
        }
        let id = message["tool_calls"][0]["id"].clone();
        let said = thinks_and_says("", "Fine.");
        let mut body = chat(json!([{"role": "user", "content": call}, message,
                                   {"role": "tool", "tool_call_id": id, "content": said}]));
        body["tools"] = tools.clone();
        assert_eq!(server.chat(&body).await["choices"][0]["message"]["content"], "Fine.");
    }
}

#[tokio::test]
async fn names_of_llama_cpp_are_told_by_their_names_here() {
    let server = Server::start().await;
    for (name, here) in [("n_predict", "max_tokens"), ("repeat_penalty", "repetition_penalty")] {
        for (path, mut body) in [(CHAT, user("x")), ("/v1/completions", json!({"prompt": "x"}))] {
            body[name] = json!(1);
            let (status, error) = server.refused(path, &body).await;
            assert_eq!((status, error["param"].as_str()), (400, Some(name)), "{error}");
            assert!(error["message"].as_str().unwrap().contains(here), "{error}");
        }
    }
}

/// Agents look for these words, and shorten the conversation.
#[tokio::test]
async fn too_long_is_said_in_the_words_that_clients_look_for() {
    let server = Server::start().await;
    for prompt in ["word ".repeat(4000), "word ".repeat(400_000)] {
        let (status, error) = server.refused(CHAT, &user(&prompt)).await;
        assert_eq!((status, error["code"].as_str()), (400, Some("context_length_exceeded")), "{error}");
        let words = "This model's maximum context length is 2048 tokens. However, the prompt has ";
        assert!(error["message"].as_str().unwrap().starts_with(words), "{error}");
    }
}

/// JavaScript's JSON.stringify writes it of a text that was cut within an emoji.
#[tokio::test]
async fn half_a_character_is_no_reason_to_refuse_a_body() {
    let server = Server::start().await;
    let body = user(&thinks_and_says("", "cut: HALF")).to_string().replace("HALF", "\\ud83d");
    let response = server.send(Method::POST, CHAT, &body).await;
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], "cut: \u{fffd}", "{answer}");
    let response = server.send(Method::POST, CHAT, &format!("{body}}}")).await;
    assert_eq!(error_of(response).await.1["code"], "invalid_json");
}
