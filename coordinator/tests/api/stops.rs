//! Where an answer ends: stop strings, lengths, and characters that end in the middle.

use flotilla_shared::SequenceId;
use serde_json::{Value, json};

use crate::server::{CONTEXT, Server, joined, thinks_and_says, user};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_stop_string_is_found_across_tokens_and_characters() {
    let server = Server::start().await;
    let (answer, stop) = ("Ein Fest 🎉🧨 und mehr davon", "t 🎉🧨 u");
    assert!(server.tokenizer.encode_plain(stop).len() > 2, "over several tokens");
    assert!(server.tokenizer.encode_plain("🧨").len() > 1, "a character in several tokens");
    let mut body = user(&thinks_and_says(&format!("not here: {stop}"), answer));
    body["stop"] = json!(["never", stop]);
    let whole = server.chat(&body).await;
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["content"], "Ein Fes");
    assert_eq!(choice["message"]["reasoning"], format!("not here: {stop}"), "thoughts are not stopped");
    assert_eq!(choice["finish_reason"], "stop");
    let chunks = server.stream(CHAT, &body).await;
    assert_eq!(joined(&chunks, "/delta/content"), "Ein Fes");

    // A false alarm is held back, and comes whole.
    body["stop"] = json!("und mehr davon, und noch mehr");
    assert_eq!(server.chat(&body).await["choices"][0]["message"]["content"], answer);
    assert_eq!(joined(&server.stream(CHAT, &body).await, "/delta/content"), answer);
}

#[tokio::test]
async fn a_stop_string_ends_the_work_too() {
    let server = Server::start().await;
    let mut body = user("<|channel|>final<|message|>one two three");
    body["stop"] = json!("two");
    assert_eq!(server.chat(&body).await["choices"][0]["message"]["content"], "one ");
    // Workers hear of it with the next step, which is the first of the next request.
    server.chat(&user(&thinks_and_says("", "done"))).await;
    assert!(server.seen.released.lock().unwrap().contains(&SequenceId(1)));
}

#[tokio::test]
async fn length_is_told() {
    let server = Server::start().await;
    let mut body = user(&thinks_and_says("long long thoughts", "never said"));
    body["max_tokens"] = json!(500);
    body["max_completion_tokens"] = json!(4);
    let answer = server.chat(&body).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    assert_eq!(answer["choices"][0]["message"]["content"], "");

    let endless = server.chat(&user("<|channel|>final<|message|>on and on")).await;
    assert_eq!(endless["choices"][0]["finish_reason"], "length");
    assert_eq!(endless["usage"]["total_tokens"], CONTEXT, "as far as the context goes");
}

#[tokio::test]
async fn half_a_character_at_the_end_is_replaced_once() {
    let server = Server::start().await;
    let whole = "<|channel|>final<|message|>so 🧨";
    let tokens_max = server.tokenizer.encode_special(whole).len() - 1;
    let mut body = user(whole);
    body["max_tokens"] = json!(tokens_max);
    let content: Value = server.chat(&body).await["choices"][0]["message"]["content"].take();
    assert_eq!(content, "so \u{FFFD}");
    assert_eq!(joined(&server.stream(CHAT, &body).await, "/delta/content"), content);
}

#[tokio::test]
async fn stop_strings_that_overlap_and_begin_over_and_over() {
    let server = Server::start().await;
    // What is said, the stop strings, and what is left.
    for (said, stops, left) in [
        // The one that is complete first counts, not the one that begins first.
        ("abcdef", json!(["bcdef", "cd"]), "ab"),
        // Of two that are complete at once, the longer.
        ("abcdef", json!(["cd", "bcd"]), "a"),
        // A beginning that fails holds the true beginning.
        ("aaab", json!(["aab"]), "a"),
        ("\n\n\n\nEND", json!(["\n\nEND"]), "\n\n"),
        // A character whose bytes come with several tokens, first, last and within.
        ("so 🧨 und", json!(["🧨"]), "so "),
        ("so 🧨🧨🎉 und", json!(["🧨🎉"]), "so 🧨"),
        ("ä🧨ö", json!(["ö"]), "ä🧨"),
    ] {
        let mut body = user(&thinks_and_says("", said));
        body["stop"] = stops;
        let whole = server.chat(&body).await;
        assert_eq!(whole["choices"][0]["message"]["content"], left, "{said:?}");
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
        assert_eq!(joined(&server.stream(CHAT, &body).await, "/delta/content"), left, "{said:?}");
        let raw = json!({"prompt": format!("{said}<|return|><|endofprompt|>"), "stop": body["stop"]});
        assert_eq!(server.ask("/v1/completions", &raw).await["choices"][0]["text"], left, "{said:?}");
    }
}

/// The answer ends before the scheduler has its last word.
#[tokio::test]
async fn what_was_cached_is_told_also_where_a_stop_string_ends_it() {
    let server = Server::start().await;
    let mut body = user("<|channel|>final<|message|>one two three");
    body["stop"] = json!("two");
    server.chat(&body).await;
    let usage = server.chat(&body).await["usage"].take();
    assert!(usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() >= 16, "{usage}");
}

/// Each token's text is held against the beginnings of each: a megabyte of them took the server from everybody.
#[tokio::test]
async fn a_stop_string_is_no_novel() {
    let server = Server::start().await;
    let mut body = user("x");
    body["stop"] = json!(["short", "x".repeat(257)]);
    let (status, error) = server.refused(CHAT, &body).await;
    assert_eq!((status, &error["param"]), (400, &json!("stop[1]")));
    assert!(error["message"].as_str().unwrap().contains("at most 256 bytes"), "{error}");
}

/// The model wants to stop at once; it says dots until it may. Stop strings do not count before, either.
#[tokio::test]
async fn an_answer_has_its_least_length() {
    let server = Server::start().await;
    let mut body = user(&thinks_and_says("", "one two three"));
    let short = server.chat(&body).await["usage"]["completion_tokens"].as_u64().unwrap();
    body["min_tokens"] = json!(short + 20);
    body["max_tokens"] = json!(short + 40);
    let answer = server.chat(&body).await;
    let said = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((short + 20..=short + 40).contains(&said), "{said}, {short} without: {answer}");

    // All but the token that ends it.
    body["min_tokens"] = json!(short - 1);
    body["stop"] = json!("two");
    let whole = server.chat(&body).await;
    assert_eq!(whole["choices"][0]["message"]["content"], "one two three");
    body["min_tokens"] = json!(1);
    assert_eq!(server.chat(&body).await["choices"][0]["message"]["content"], "one ");

    body["min_tokens"] = json!(short + 41);
    let (status, error) = server.refused(CHAT, &body).await;
    assert_eq!((status, &error["param"]), (400, &json!("min_tokens")), "{error}");

    // More than there may be where nobody said how many: 16 of a raw completion, and the context of a chat.
    body.as_object_mut().unwrap().remove("max_tokens");
    body["min_tokens"] = json!(CONTEXT);
    let raw = json!({"prompt": "a<|endofprompt|>", "min_tokens": 17});
    for (path, body) in [(CHAT, &body), ("/v1/completions", &raw)] {
        let (status, error) = server.refused(path, body).await;
        assert_eq!((status, &error["param"]), (400, &json!("min_tokens")), "{error}");
    }
}
