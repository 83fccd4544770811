//! Parameters reach the workers as they were meant, and ends are where the client put them.

use flotilla_shared::Sampling;
use serde_json::{Value, json};

use crate::server::{Server, joined, thinks_and_says, user};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn choosing() -> Value {
    json!({
        "temperature": 0.5, "top_p": 0.75, "top_k": 40, "min_p": 0.125, "repetition_penalty": 1.5,
        "presence_penalty": -1.5, "frequency_penalty": 0.25, "logit_bias": {"9": -100, "3": 1.5}, "seed": 7,
    })
}

#[tokio::test]
async fn what_the_client_chooses_is_what_workers_sample_by() {
    let server = Server::start().await;
    let expected = Sampling {
        temperature: 0.5,
        top_p: 0.75,
        top_k: 40,
        min_p: 0.125,
        repetition_penalty: 1.5,
        presence_penalty: -1.5,
        frequency_penalty: 0.25,
        logit_bias: vec![(3, 1.5), (9, -100.0)],
        logprobs: Some(2),
        seed: 7,
    };
    let mut chat = user(&thinks_and_says("", "Yes."));
    chat.as_object_mut().unwrap().extend(choosing().as_object().unwrap().clone());
    chat["logprobs"] = json!(true);
    chat["top_logprobs"] = json!(2);
    server.chat(&chat).await;
    assert_eq!(*server.seen.sampling.lock().unwrap(), expected);

    let mut text = choosing();
    text["prompt"] = json!("a<|return|><|endofprompt|>");
    text["logprobs"] = json!(2);
    server.ask(COMPLETIONS, &text).await;
    assert_eq!(*server.seen.sampling.lock().unwrap(), expected);
}

#[tokio::test]
async fn ids_that_are_no_tokens_are_refused_by_place() {
    let server = Server::start().await;
    for (name, value, param) in [
        ("logit_bias", json!({"3": 1, "4000000": 1}), "logit_bias.4000000"),
        ("stop_token_ids", json!([3, 4_000_000]), "stop_token_ids[1]"),
    ] {
        let mut body = user("x");
        body[name] = value;
        let (status, error) = server.refused(CHAT, &body).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
        let words = "expected the id of a token of this model, found the number 4000000";
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
    let (_, error) = server.refused(CHAT, &json!({"messages": [], "stop_token_ids": vec![1; 65]})).await;
    assert_eq!(error["message"], "stop_token_ids: at most 64 tokens, found 65");
    assert_eq!(server.seen.admitted(), 0);
}

/// Each rank would send so many candidates for each row of each step.
#[tokio::test]
async fn many_candidates_are_refused() {
    let server = Server::start().await;
    let mut body = user(&thinks_and_says("", "Yes."));
    body["top_k"] = json!(server.tokenizer.vocab_size() - 1);
    let (status, error) = server.refused(CHAT, &body).await;
    assert_eq!((status, &error["param"]), (400, &json!("top_k")), "{error}");
    assert_eq!(server.seen.admitted(), 0);
    body["top_k"] = json!(server.tokenizer.vocab_size());
    server.chat(&body).await;
    assert_eq!(server.seen.sampling.lock().unwrap().top_k, 0, "all of them");
}

#[tokio::test]
async fn a_stop_token_ends_the_answer_and_is_no_part_of_it() {
    let server = Server::start().await;
    let said = "one two three";
    let tokens = server.tokenizer.encode_plain(said);
    let stop = *tokens.last().unwrap();
    let before = server.tokenizer.decode(&tokens[..tokens.len() - 1]);
    let mut chat = user(&format!("<|channel|>final<|message|>{said}"));
    chat["stop_token_ids"] = json!([stop]);
    let answer = server.chat(&chat).await;
    assert_eq!(answer["choices"][0]["message"]["content"], before);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(joined(&server.stream(CHAT, &chat).await, "/delta/content"), before);
    chat["include_stop_str_in_output"] = json!(true);
    assert_eq!(server.chat(&chat).await["choices"][0]["message"]["content"], said);

    let mut text = json!({"prompt": format!("{said}<|endofprompt|>"), "stop_token_ids": [stop]});
    assert_eq!(server.ask(COMPLETIONS, &text).await["choices"][0]["text"], before);
    text["include_stop_str_in_output"] = json!(true);
    assert_eq!(server.ask(COMPLETIONS, &text).await["choices"][0]["text"], said);
}

#[tokio::test]
async fn a_stop_string_is_part_of_the_answer_for_those_who_ask() {
    let server = Server::start().await;
    let mut body = user(&thinks_and_says("", "one two three"));
    body["stop"] = json!(["o th", "thr"]);
    body["include_stop_str_in_output"] = json!(true);
    assert_eq!(server.chat(&body).await["choices"][0]["message"]["content"], "one two th");
    assert_eq!(joined(&server.stream(CHAT, &body).await, "/delta/content"), "one two th");
}

#[tokio::test]
async fn the_models_own_end_can_be_ignored() {
    let server = Server::start().await;
    let mut body = json!({"prompt": "a<|return|><|endofprompt|>", "max_tokens": 9, "ignore_eos": true});
    let answer = server.ask(COMPLETIONS, &body).await;
    assert_eq!(answer["usage"]["completion_tokens"], 9);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["choices"][0]["text"], "a.......", "what comes behind the end is text like any");
    body["ignore_eos"] = json!(false);
    assert_eq!(server.ask(COMPLETIONS, &body).await["usage"]["completion_tokens"], 2);

    // A chat's reply is over all the same, and nothing behind it is read.
    let mut chat = user(&thinks_and_says("", "Yes."));
    chat["ignore_eos"] = json!(true);
    chat["max_tokens"] = json!(50);
    let answer = server.chat(&chat).await;
    assert_eq!(answer["usage"]["completion_tokens"], 50);
    assert_eq!(answer["choices"][0]["message"]["content"], "Yes.");
}
