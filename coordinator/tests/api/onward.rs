//! An answer that ends inside its thought goes on once, and what comes of it is what it had been if the model had
//! opened its final message itself.

use serde_json::{Value, json};

use crate::server::{MODEL, Server, calls_and_goes_on, joined, thinks_and_says, user};

const CHAT: &str = "/v1/chat/completions";
const OPEN: &str = "<|start|>assistant<|channel|>final<|message|>";

/// What a model writes that stops where its answer should begin, and what it says if it is made to go on.
fn stops_and_says(thought: &str, answer: &str) -> String {
    format!("<|channel|>analysis<|message|>{thought}<|return|>{OPEN}{answer}<|return|>")
}

fn prompt_ends(server: &Server, end: &str) -> bool {
    server.seen.prompt.lock().unwrap().ends_with(end)
}

fn usage(answer: &Value) -> (&Value, &Value) {
    let usage = &answer["usage"];
    (&usage["completion_tokens"], &usage["completion_tokens_details"]["reasoning_tokens"])
}

#[tokio::test]
async fn the_client_gets_an_answer_and_its_usage() {
    let server = Server::start().await;
    let whole = server.chat(&user(&thinks_and_says("Add them.", "It is 4."))).await;
    let mut body = user(&stops_and_says("Add them.", "It is 4."));
    let answer = server.chat(&body).await;
    assert_eq!(answer["choices"], whole["choices"]);
    assert_eq!(usage(&answer), usage(&whole));
    let prompt = server.seen.prompt.lock().unwrap().clone();
    assert!(prompt.ends_with(&format!("<|channel|>analysis<|message|>Add them.<|end|>{OPEN}")), "{prompt}");

    body["stream_options"] = json!({"include_usage": true});
    let chunks = server.stream(CHAT, &body).await;
    assert_eq!(joined(&chunks, "/delta/content"), "It is 4.");
    assert_eq!(joined(&chunks, "/delta/reasoning"), "Add them.");
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(usage(last), usage(&whole));
    let tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(last["usage"]["prompt_tokens"], tokens);
    assert_eq!(last["usage"]["prompt_tokens_details"]["cached_tokens"], (tokens - 1) / 16 * 16);
    let ends: Vec<_> =
        before.iter().filter(|chunk| !chunk["choices"][0]["finish_reason"].is_null()).collect();
    assert!(ends.len() == 1 && ends[0]["choices"][0]["finish_reason"] == "stop", "{ends:?}");
}

#[tokio::test]
async fn wherever_the_thought_was_left() {
    let server = Server::start().await;
    let thought = "<|channel|>analysis<|message|>Hm.";
    for (script, reasoning) in [
        ("<|return|>final<|message|>Yes.<|return|>".to_owned(), Value::Null),
        (
            format!("{thought}<|end|><|return|>assistant<|channel|>final<|message|>Yes.<|return|>"),
            json!("Hm."),
        ),
        (format!("{thought}<|endoftext|>{OPEN}Yes.<|return|>"), json!("Hm.")),
        (format!("{thought}<|call|>{OPEN}Yes.<|return|>"), json!("Hm.")),
        (
            format!("{thought}<|end|><|start|>assistant{thought}<|return|>{OPEN}Yes.<|return|>"),
            json!("Hm.\nHm."),
        ),
    ] {
        // The first token that the server writes takes the place of the end.
        let message = server.chat(&user(&script)).await["choices"][0]["message"].take();
        assert_eq!(message["content"], "Yes.", "{script}");
        assert_eq!(message.get("reasoning").unwrap_or(&Value::Null), &reasoning, "{script}");
    }
}

/// gpt-oss knows of tools that nobody has offered it.
#[tokio::test]
async fn a_call_that_nobody_hears_is_thought() {
    let server = Server::start().await;
    for header in ["analysis to=browser.search", "commentary to=functions.f <|constrain|>json"] {
        let script = format!("<|channel|>{header}<|message|>{{}}<|call|>{OPEN}Yes.<|return|>");
        let choice = server.chat(&user(&script)).await["choices"][0].take();
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&json!("Yes."), &json!("stop"))
        );
        assert_eq!(choice["message"]["reasoning"], "{}");
        assert!(prompt_ends(&server, &format!("<|message|>{{}}<|end|>{OPEN}")));
    }
}

#[tokio::test]
async fn responses_have_a_message_behind_their_reasoning() {
    let server = Server::start().await;
    let body = json!({"model": MODEL, "input": stops_and_says("Add them.", "It is 4.")});
    let answer = server.ask("/v1/responses", &body).await;
    let kinds: Vec<_> = answer["output"].as_array().unwrap().iter().map(|item| &item["type"]).collect();
    assert_eq!(kinds, ["reasoning", "message"], "{answer}");
    assert_eq!(answer["output"][1]["content"][0]["text"], "It is 4.");
    assert_eq!(answer["status"], "completed");
    // The next turn reads it as any other.
    let next =
        json!({"model": MODEL, "input": thinks_and_says("", "Fine."), "previous_response_id": answer["id"]});
    server.ask("/v1/responses", &next).await;
    assert!(server.seen.prompt.lock().unwrap().contains("final<|message|>It is 4.<|end|>"));
}

#[tokio::test]
async fn each_choice_goes_on_by_itself_with_its_seed() {
    let server = Server::start().await;
    let mut body = user(&stops_and_says("Hm.", "{seed}"));
    body["seed"] = json!(7);
    body["n"] = json!(2);
    let answer = server.chat(&body).await;
    body["messages"][0]["content"] = json!(thinks_and_says("Hm.", "{seed}"));
    let whole = server.chat(&body).await;
    assert_eq!(answer["choices"], whole["choices"]);
    assert_eq!(usage(&answer), usage(&whole));
    assert_eq!(answer["choices"][0]["message"]["content"], "7");
}

#[tokio::test]
async fn stops_and_likelihoods_are_those_of_the_answer() {
    let server = Server::start().await;
    let mut body = user(&stops_and_says("one two three", "one two three"));
    (body["stop"], body["logprobs"]) = (json!(" three"), json!(true));
    let choice = server.chat(&body).await["choices"][0].take();
    assert_eq!(choice["message"]["content"], "one two");
    let tokens: String = choice["logprobs"]["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["token"].as_str().unwrap())
        .collect();
    assert_eq!(tokens, "one two");
    body["stop"] = Value::Null;
    let whole = server.chat(&body).await["choices"][0].take();
    body["messages"][0]["content"] = json!(thinks_and_says("one two three", "one two three"));
    assert_eq!(server.chat(&body).await["choices"][0], whole);
}

#[tokio::test]
async fn all_of_it_is_within_the_limit() {
    let server = Server::start().await;
    let mut body = user(&stops_and_says("one two three", "four five six"));
    let count = |text: &str| server.tokenizer.encode_special(text).len();
    let opened = count(&format!("<|channel|>analysis<|message|>one two three<|return|>{OPEN}"));
    body["max_tokens"] = json!(opened + count("four five"));
    let answer = server.chat(&body).await;
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!("four five"), &json!("length"))
    );
    assert_eq!(usage(&answer), (&json!(opened + count("four five")), &json!(count("one two three"))));

    body["max_tokens"] = json!(opened);
    let answer = server.chat(&body).await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(""), &json!("stop")));
}

/// The server goes on neither with what it should leave alone, nor twice.
#[tokio::test]
async fn who_said_something_or_stopped_by_order_is_done() {
    let server = Server::start().await;
    let content = async |body: &Value| server.chat(body).await["choices"][0]["message"]["content"].take();
    let never = format!("{OPEN}never<|return|>");
    let preamble = format!("<|channel|>commentary<|message|>Wait.<|return|>{never}");
    assert_eq!(content(&user(&preamble)).await, "Wait.");
    let empty = stops_and_says("Hm.", "") + &never;
    assert_eq!(content(&user(&empty)).await, json!(""), "an empty answer is one");
    let mut body = user(&stops_and_says("Hm.", "never"));
    body["stop_token_ids"] = json!([server.tokenizer.special("<|return|>").unwrap()]);
    assert_eq!(content(&body).await, json!(""));

    let admitted = server.seen.admitted();
    let script = "<|channel|>analysis<|message|>Hm.<|return|>";
    let raw =
        json!({"prompt": format!("{script}<|endofprompt|>"), "skip_special_tokens": false, "max_tokens": 50});
    let answer = server.ask("/v1/completions", &raw).await;
    assert_eq!(server.seen.admitted(), admitted + 1, "raw text ends where it ends: {answer}");
}

fn forbidden(script: &str) -> Value {
    let mut body = user(script);
    body["tools"] = json!([{"type": "function", "function": {"name": "f"}}]);
    body["tool_choice"] = json!("none");
    body
}

/// Where calls are only forbidden, masks are waited for once the model tries one.
#[tokio::test]
async fn a_turn_that_may_not_call_is_sampled_ahead_as_long_as_it_does_not() {
    let server = Server::start().await;
    let body = forbidden(&thinks_and_says("one two three", "four five six"));
    assert_eq!(server.chat(&body).await["choices"][0]["message"]["content"], "four five six");
    assert_eq!((server.seen.masked(), server.seen.admitted()), (0, 1));

    let thought = "<|channel|>analysis<|message|>one two three<|end|><|start|>assistant";
    for tries in [
        format!("{thought}<|channel|>commentary to=functions.f <|constrain|>json<|message|>{{}}<|call|>"),
        format!("{thought} to=functions.f<|channel|>commentary <|constrain|>json<|message|>{{}}<|call|>"),
        "<|channel|>analysis<|message|>one two three<|return|>".to_owned(),
        format!("{thought}<|channel|>final<|message|>four<|call|>"),
    ] {
        let (masked, admitted) = (server.seen.masked(), server.seen.admitted());
        let body = forbidden(&calls_and_goes_on(&tries));
        let mut answer = server.chat(&body).await;
        assert_eq!(server.seen.admitted(), admitted + 2, "it goes on, and once");
        assert!(server.seen.masked() > masked);
        let choice = answer["choices"][0].take();
        assert_eq!(choice["finish_reason"], "stop", "{choice}");
        assert!(choice["message"]["reasoning"].as_str().unwrap().starts_with("one two three"), "{choice}");
        let content = choice["message"]["content"].as_str().unwrap();
        assert!(!content.is_empty() && choice["message"].get("tool_calls").is_none(), "{choice}");
        assert_eq!(joined(&server.stream(CHAT, &body).await, "/delta/content"), content);
    }
}

/// What is sampled under masks from the start is the same.
#[tokio::test]
async fn followed_from_behind_it_is_what_it_had_been_under_masks() {
    let server = Server::start().await;
    let tries = "<|channel|>analysis<|message|>one two<|end|><|start|>assistant to=functions.f<|channel|>commentary\
                 <|message|>{}<|call|>";
    let mut body = forbidden(&calls_and_goes_on(tries));
    body["logprobs"] = json!(true);
    let ahead = server.chat(&body).await;
    body["min_tokens"] = json!(1);
    let (masked, admitted) = (server.seen.masked(), server.seen.admitted());
    let under = server.chat(&body).await;
    assert_eq!(server.seen.admitted(), admitted + 1);
    assert_eq!((server.seen.masked() - masked) as u64, under["usage"]["completion_tokens"].as_u64().unwrap());
    assert_eq!(ahead["choices"], under["choices"]);
    assert_eq!(usage(&ahead), usage(&under));
}

#[tokio::test]
async fn tools_that_are_not_among_the_allowed_ones_are_not_called() {
    let server = Server::start().await;
    let call = |name: &str| {
        format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{{}}<|call|>")
    };
    let function = |name: &str| json!({"type": "function", "function": {"name": name}});
    let mut body = user(&call("f"));
    body["tools"] = json!([function("f"), function("g")]);
    body["tool_choice"] =
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [function("f")]}});
    let name = async |body: &Value| {
        let message = server.chat(body).await["choices"][0]["message"].take();
        message["tool_calls"][0]["function"]["name"].clone()
    };
    assert_eq!((name(&body).await, server.seen.masked()), (json!("f"), 0));
    body["messages"][0]["content"] = json!(calls_and_goes_on(&call("g")));
    assert_ne!(name(&body).await, "g");
    assert!(server.seen.masked() > 0);
}

#[tokio::test]
async fn with_tools_it_answers_too_and_calls_stay_calls() {
    let server = Server::start().await;
    let mut body = user(&stops_and_says("No need to ask.", "Sunny."));
    body["tools"] = json!([{"type": "function", "function": {"name": "f"}}]);
    let choice = server.chat(&body).await["choices"][0].take();
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!("Sunny."), &json!("stop")));
    let call = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>";
    body["messages"][0]["content"] = json!(format!("{call}{OPEN}never<|return|>"));
    let admitted = server.seen.admitted();
    let choice = server.chat(&body).await["choices"][0].take();
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&Value::Null, &json!("tool_calls"))
    );
    assert_eq!(server.seen.admitted(), admitted + 1);
}
