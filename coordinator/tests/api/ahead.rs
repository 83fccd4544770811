//! Turns that are bound to a form are sampled ahead, without masks, up to the text that the form binds; and say what they
//! had said under masks from the start. `min_tokens` has a turn under masks from the start.

use std::time::Duration;

use flotilla_coordinator::driver;
use flotilla_shared::{Epoch, KvBlocks};
use serde_json::{Value, json};

use crate::parrot::Parrot;
use crate::server::{
    CONTEXT, Events, Server, Setup, calls_and_goes_on, joined, thinks_and_says, until, user,
};

const CHAT: &str = "/v1/chat/completions";
/// Where a bound text begins, behind a thought.
const FINAL: &str = "<|end|><|start|>assistant<|channel|>final<|message|>";
const THOUGHT: &str = "<|channel|>analysis<|message|>one two three";

/// An answer that is an object with a number.
fn bound(script: &str) -> Value {
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
                        "additionalProperties": false});
    let mut body = user(script);
    body["response_format"] =
        json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    body
}

fn function(name: &str, strict: bool) -> Value {
    let parameters = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
                            "additionalProperties": false});
    json!({"type": "function", "function": {"name": name, "strict": strict, "parameters": parameters}})
}

fn count(server: &Server, text: &str) -> usize {
    server.tokenizer.encode_special(text).len()
}

/// The answer, with how many sequences it took, and how many tokens under masks.
async fn asked(server: &Server, body: &Value) -> (Value, usize, usize) {
    let (admitted, masked) = (server.seen.admitted(), server.seen.masked());
    let answer = server.chat(body).await;
    (answer, server.seen.admitted() - admitted, server.seen.masked() - masked)
}

/// What is sampled ahead says the same as under masks from the start. Both answers, as `asked` tells them.
async fn both(server: &Server, body: &Value) -> [(Value, usize, usize); 2] {
    let mut under = body.clone();
    under["min_tokens"] = json!(1);
    let both = [asked(server, body).await, asked(server, &under).await];
    let [ahead, under] = both.each_ref().map(|(answer, ..)| {
        let mut choices = answer["choices"].clone();
        for choice in choices.as_array_mut().unwrap() {
            // Of each call another.
            if let Some(call) = choice.pointer_mut("/message/tool_calls/0") {
                call["id"].take();
            }
        }
        let usage = &answer["usage"];
        (choices, usage["completion_tokens"].clone(), usage["completion_tokens_details"].clone())
    });
    assert_eq!(ahead, under, "{body}");
    both
}

/// How many sequences, and how many masked tokens, it took ahead.
async fn same(server: &Server, body: &Value) -> (usize, usize) {
    let [(_, admitted, masked), (under, admitted_under, masked_under)] = both(server, body).await;
    let choices = body["n"].as_u64().unwrap_or(1) as usize;
    assert_eq!((admitted_under, json!(masked_under)), (choices, under["usage"]["completion_tokens"].clone()));
    (admitted, masked)
}

#[tokio::test]
async fn thoughts_and_headers_wait_for_no_mask() {
    let server = Server::start().await;
    let said = |text: &str| bound(&thinks_and_says("one two three", text));
    let under_masks = |text: &str| (2, count(&server, &format!("{text}<|return|>")));
    let fits = "{\"n\": 7}";
    assert_eq!(same(&server, &said(fits)).await, under_masks(fits));
    let mut body = said(fits);
    (body["logprobs"], body["top_logprobs"]) = (json!(true), json!(2));
    assert_eq!(same(&server, &body).await, under_masks(fits));
    // What does not fit is another text, the same here and there.
    let (admitted, masked) = same(&server, &said("Seven, I think.")).await;
    assert!(admitted == 2 && masked > 1);
    let mut body = said("{\"n\": {seed}}");
    (body["n"], body["seed"]) = (json!(3), json!(7));
    assert_eq!(same(&server, &body).await.0, 6, "each choice goes on by itself");
    let thoughtless = bound("<|channel|>final<|message|>{\"n\": 7}<|return|>");
    assert_eq!(same(&server, &thoughtless).await, under_masks(fits));
    // A turn may not end in its thought: it goes on under masks from there.
    same(&server, &bound(&format!("{THOUGHT}<|return|>{{\"n\": 7}}<|return|>"))).await;
    let mut body = said(fits);
    body["stop"] = json!(": 7");
    both(&server, &body).await;
}

#[tokio::test]
async fn streams_are_cut_nowhere() {
    let server = Server::start().await;
    let mut body = bound(&thinks_and_says("one two three", "{\"n\": 7}"));
    let whole = server.chat(&body).await;
    body["stream_options"] = json!({"include_usage": true});
    let chunks = server.stream(CHAT, &body).await;
    assert_eq!(joined(&chunks, "/delta/reasoning"), "one two three");
    assert_eq!(joined(&chunks, "/delta/content"), "{\"n\": 7}");
    let usage = &chunks.last().unwrap()["usage"];
    assert_eq!(usage["completion_tokens"], whole["usage"]["completion_tokens"]);
    assert_eq!(usage["prompt_tokens"], whole["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn with_strict_tools_a_turn_waits_only_if_it_calls() {
    let server = Server::start().await;
    let with = |script: &str, choice: &str| {
        let mut body = user(script);
        body["tools"] = json!([function("f", true), function("g", false)]);
        body["tool_choice"] = json!(choice);
        body
    };
    let call = |name: &str, said: &str| {
        let header = format!("{THOUGHT}<|end|><|start|>assistant<|channel|>commentary to=functions.{name}");
        format!("{header} <|constrain|>json<|message|>{said}<|call|>")
    };
    let fits = "{\"n\": 7}";
    let bound = (2, count(&server, &format!("{fits}<|call|>")));
    assert_eq!(same(&server, &with(&thinks_and_says("Hm.", "No."), "auto")).await, (1, 0));
    assert_eq!(same(&server, &with(&call("g", "{any}"), "auto")).await, (1, 0));
    assert_eq!(same(&server, &with(&call("f", fits), "auto")).await, bound);
    assert_eq!(same(&server, &with(&call("g", fits), "required")).await, bound);
    // It would rather talk.
    let talks = calls_and_goes_on(&thinks_and_says("No tools.", "I will not."));
    let (admitted, masked) = same(&server, &with(&talks, "required")).await;
    assert!(admitted == 2 && masked > 1);
}

/// The token that opens the text is the last that there may be, or one that the client stops at.
#[tokio::test]
async fn what_ends_where_its_text_would_begin_goes_no_further() {
    let server = Server::start().await;
    let mut body = bound(&thinks_and_says("one two three", "{\"n\": 7}"));
    body["max_tokens"] = json!(count(&server, &format!("{THOUGHT}{FINAL}")));
    assert_eq!(same(&server, &body).await, (1, 0));
    assert_eq!(server.chat(&body).await["choices"][0]["finish_reason"], "length");
    let mut body = bound("<|channel|>final<|message|>{\"n\": 7}<|return|>");
    body["stop_token_ids"] = json!([server.tokenizer.special("<|message|>").unwrap()]);
    assert_eq!(same(&server, &body).await, (1, 0));
    assert_eq!(server.chat(&body).await["choices"][0]["finish_reason"], "stop");
}

/// The whole cache is taken by what was said when the text would begin.
#[tokio::test]
async fn a_group_that_has_no_room_for_the_text_ends_it_by_its_length() {
    let server = Server::start_with(Setup { ready: false, ..Setup::default() }).await;
    let form_group = |epoch, blocks| {
        let parrot = Parrot::new(server.tokenizer.clone(), server.seen.clone());
        server.fleet.formed(Epoch(epoch), KvBlocks::plain(blocks), parrot);
    };
    form_group(1, 4096);
    until(async || server.get("/health").await.status() == 200).await;
    // Words in the thought are in the prompt too; what follows the end is not said.
    let script = |thought: usize, more: usize| {
        thinks_and_says(&" one".repeat(thought), "{\"n\": 7}") + &" one".repeat(more)
    };
    let answer = server.chat(&bound(&script(1, 0))).await;
    let prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    let opened = count(&server, &format!("<|channel|>analysis<|message|> one{FINAL}"));
    let blocks = (prompt + opened).div_ceil(16) + 1;
    let room = blocks * 16 - prompt - opened;
    let body = bound(&script(1 + room / 2, room % 2));
    form_group(2, blocks as u32);
    until(async || server.get("/health").await.status() == 200).await;
    let (answer, admitted, masked) = asked(&server, &body).await;
    let tokens = [&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]];
    assert_eq!(tokens.iter().filter_map(|tokens| tokens.as_u64()).sum::<u64>(), 16 * blocks as u64);
    assert_eq!((admitted, masked), (1, 0));
    let choice = &answer["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("length"), &json!("")));
}

/// Computed again it would be, all of it.
#[tokio::test]
async fn without_a_prefix_cache_all_is_under_masks() {
    let scheduler =
        flotilla_scheduler::Settings { context_max: CONTEXT, prefix_cache: false, ..Default::default() };
    let server = Server::start_with(Setup { scheduler, ..Setup::default() }).await;
    let script = thinks_and_says("one two three", "{\"n\": 7}");
    let (answer, admitted, masked) = asked(&server, &bound(&script)).await;
    assert_eq!((admitted, json!(masked)), (1, answer["usage"]["completion_tokens"].clone()));
    let mut only_forbids = user(&script);
    only_forbids["tools"] = json!([function("f", false)]);
    only_forbids["tool_choice"] = json!("none");
    assert_eq!(asked(&server, &only_forbids).await.2, 0);
}

/// A server whose group is lost as soon as a text is opened, and a stream of which that is so.
async fn lost_at_the_text(said: &str) -> (Server, Events) {
    let driver = driver::Settings { regroup_wait: Duration::from_secs(600), ..Default::default() };
    let server = Server::start_with(Setup { driver, ..Setup::default() }).await;
    *server.seen.die_behind.lock().unwrap() = server.tokenizer.special("<|message|>");
    let mut body = bound(&format!("<|channel|>final<|message|>{said}<|return|>"));
    body["stream"] = json!(true);
    let events = server.open(CHAT, &body).await;
    until(async || server.get("/health").await.status() == 503).await;
    (server, events)
}

#[tokio::test]
async fn a_group_that_is_lost_as_the_text_begins_is_waited_for() {
    let (server, mut events) = lost_at_the_text("{\"n\": 7}").await;
    server.form_group(2);
    let mut content = String::new();
    while let Some(event) = events.next().await.filter(|event| event != "[DONE]") {
        let event: Value = serde_json::from_str(&event).unwrap();
        assert!(event.get("error").is_none(), "{event}");
        content.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
    }
    assert_eq!(content, "{\"n\": 7}");
}

#[tokio::test]
async fn who_leaves_as_the_text_begins_leaves_nothing_behind() {
    let (server, events) = lost_at_the_text("{\"n\": 7}").await;
    let waiting = async |server: &Server| {
        let metrics = server.get("/metrics").await.text().await.unwrap();
        let line = metrics.lines().find(|line| line.starts_with("flotilla_num_requests_waiting")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    until(async || waiting(&server).await == 1.0).await;
    drop(events);
    until(async || waiting(&server).await == 0.0).await;
    let admitted = server.seen.admitted();
    server.form_group(2);
    until(async || server.get("/health").await.status() == 200).await;
    server.chat(&user(&thinks_and_says("", "Yes."))).await;
    assert_eq!(server.seen.admitted(), admitted + 1, "nothing of it goes on");
}
