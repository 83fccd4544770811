//! Likelihoods come beside the text that they are of, in OpenAI's shapes.

use serde_json::{Value, json};

use crate::server::{MODEL, Server, joined, thinks_and_says, user};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn asking(script: &str) -> Value {
    let mut body = user(script);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(2);
    body
}

fn bytes(entries: &[Value]) -> Vec<u8> {
    let bytes = entries.iter().flat_map(|entry| entry["bytes"].as_array().unwrap());
    bytes.map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn the_tokens_of_the_content_and_no_others() {
    let server = Server::start().await;
    let said = "It is 4 🎉🧨.";
    let answer = server.chat(&asking(&thinks_and_says("Add them.", said))).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["refusal"], Value::Null);
    let entries = logprobs["content"].as_array().unwrap();
    assert_eq!(bytes(entries), said.as_bytes(), "joined, they are the content, half characters too");
    assert_eq!(entries.len(), server.tokenizer.encode_plain(said).len());
    for entry in entries {
        assert_eq!(entry["logprob"], -0.25);
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["token"], &top[0]["logprob"]), (2, &entry["token"], &json!(-0.25)));
        assert_eq!(top[1]["logprob"], -9999.0, "what is impossible is JSON all the same");
    }
    let half = entries.iter().find(|entry| entry["token"].as_str().unwrap().starts_with("\\x")).unwrap();
    assert!(str::from_utf8(&bytes(std::slice::from_ref(half))).is_err(), "{half}");

    let plain = server.chat(&user(&thinks_and_says("", said))).await;
    assert_eq!(plain["choices"][0]["logprobs"], Value::Null);
}

#[tokio::test]
async fn a_stream_has_them_beside_their_text() {
    let server = Server::start().await;
    let said = "Das ist 🎉🧨 groß";
    let body = asking(&thinks_and_says("Größe?", said));
    let whole = server.chat(&body).await;
    let chunks = server.stream(CHAT, &body).await;
    let mut all = Vec::new();
    for chunk in &chunks {
        let choice = &chunk["choices"][0];
        let Some(text) = choice["delta"]["content"].as_str().filter(|text| !text.is_empty()) else {
            assert_eq!(choice["logprobs"], Value::Null, "no content, no likelihoods");
            continue;
        };
        let entries = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(bytes(entries), text.as_bytes(), "of just this text");
        all.extend(entries.clone());
    }
    assert_eq!(json!(all), whole["choices"][0]["logprobs"]["content"]);
}

#[tokio::test]
async fn a_stop_string_takes_its_tokens_with_it() {
    let server = Server::start().await;
    let mut body = asking(&thinks_and_says("", "one two three four"));
    body["stop"] = json!(" three");
    let answer = server.chat(&body).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], "one two");
    assert_eq!(bytes(choice["logprobs"]["content"].as_array().unwrap()), b"one two");
}

#[tokio::test]
async fn an_answer_without_a_header_has_them_too() {
    let server = Server::start().await;
    let answer = server.chat(&asking("plain words<|return|>")).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], "plain words");
    assert_eq!(bytes(choice["logprobs"]["content"].as_array().unwrap()), b"plain words");
}

#[tokio::test]
async fn completions_have_columns() {
    let server = Server::start().await;
    let said = "ab 🎉 c";
    let prompt = format!("{said}<|return|><|endofprompt|>");
    let body = json!({"model": MODEL, "prompt": prompt, "logprobs": 2});
    let answer = server.ask(COMPLETIONS, &body).await;
    let columns = &answer["choices"][0]["logprobs"];
    let tokens = server.tokenizer.encode_plain(said);
    for column in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(columns[column].as_array().unwrap().len(), tokens.len(), "{column} in {columns}");
    }
    assert_eq!(columns["token_logprobs"][0], -0.25);
    let first = columns["tokens"][0].as_str().unwrap();
    assert_eq!(columns["top_logprobs"][0][first], -0.25);
    assert_eq!(columns["top_logprobs"][0].as_object().unwrap().len(), 2);
    let offsets: Vec<u64> =
        columns["text_offset"].as_array().unwrap().iter().map(|offset| offset.as_u64().unwrap()).collect();
    let expected: Vec<u64> = (0..tokens.len())
        .map(|count| {
            let bytes: Vec<u8> = tokens[..count]
                .iter()
                .flat_map(|id| server.tokenizer.decode_bytes(*id).unwrap().to_vec())
                .collect();
            let whole = String::from_utf8_lossy(&bytes);
            whole.trim_end_matches('\u{FFFD}').chars().count() as u64
        })
        .collect();
    assert_eq!(offsets, expected, "in characters");

    let chunks = server.stream(COMPLETIONS, &body).await;
    assert_eq!(joined(&chunks, "/text"), said);
    let streamed: Vec<Value> = chunks
        .iter()
        .filter_map(|chunk| chunk.pointer("/choices/0/logprobs/tokens"))
        .flat_map(|tokens| tokens.as_array().unwrap().clone())
        .collect();
    assert_eq!(json!(streamed), columns["tokens"]);
    // The chosen token stands there even where no others were asked for.
    let none = json!({"model": MODEL, "prompt": prompt, "logprobs": 0});
    let none = server.ask(COMPLETIONS, &none).await;
    assert_eq!(none["choices"][0]["logprobs"]["top_logprobs"][0], json!({first: -0.25}));
}
