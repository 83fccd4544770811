//! Raw completions: the prompt as it stands.

use serde_json::{Value, json};

use crate::server::{MODEL, Server, error_of, joined};

const COMPLETIONS: &str = "/v1/completions";

#[tokio::test]
async fn a_prompt_is_text_or_tokens() {
    let server = Server::start().await;
    let text = "over the hill<|return|><|endofprompt|>";
    let tokens = server.tokenizer.encode_special(text);
    for prompt in [json!(text), json!(tokens), json!([text]), json!([tokens])] {
        let answer = server.ask(COMPLETIONS, &json!({"model": MODEL, "prompt": prompt})).await;
        assert_eq!(answer["object"], "text_completion");
        assert_eq!(answer["choices"][0]["text"], "over the hill");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(answer["usage"]["prompt_tokens"], tokens.len());
    }
    let chunks = server.stream(COMPLETIONS, &json!({"model": MODEL, "prompt": text})).await;
    assert_eq!(joined(&chunks, "/text"), "over the hill");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn several_prompts_and_choices_are_told_apart_by_index() {
    let server = Server::start().await;
    let prompts = ["a<|return|><|endofprompt|>", "b<|return|><|endofprompt|>"];
    let answer = server.ask(COMPLETIONS, &json!({"model": MODEL, "prompt": prompts, "n": 2})).await;
    let texts: Vec<&Value> =
        answer["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    assert_eq!(texts, ["a", "a", "b", "b"]);
    assert_eq!(answer["usage"]["prompt_tokens"], 6, "each prompt once");
    assert_eq!(answer["usage"]["completion_tokens"], 8);
}

#[tokio::test]
async fn sixteen_tokens_unless_told_otherwise() {
    let server = Server::start().await;
    let mut body = json!({"prompt": "on<|endofprompt|>"});
    let answer = server.ask(COMPLETIONS, &body).await;
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    body["stop"] = json!("...");
    assert_eq!(server.ask(COMPLETIONS, &body).await["choices"][0]["text"], "on");
}

#[tokio::test]
async fn prompts_that_are_none_are_refused() {
    let server = Server::start().await;
    for (prompt, param, words) in [
        (json!(""), "prompt", "must not be empty"),
        (json!([]), "prompt", "expected a string, an array of strings, or an array of token ids"),
        (json!(["a", 3]), "prompt[1]", "expected a string or an array of token ids, found the number 3"),
        (json!([1, "a"]), "prompt[1]", "expected a whole number"),
        (json!([1, 4_000_000]), "prompt[1]", "expected the id of a token of this model"),
        (json!({}), "prompt", "found an object"),
    ] {
        let body = json!({"model": MODEL, "prompt": prompt});
        let (status, error) = error_of(server.post(COMPLETIONS, &body).await).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
    let echo = json!({"prompt": "a", "echo": true, "logprobs": 1});
    let (_, error) = server.refused(COMPLETIONS, &echo).await;
    let words = "echo: true is not supported yet; accepted is false, where logprobs are asked for";
    assert_eq!(error["message"], words);
}

#[tokio::test]
async fn an_echo_comes_before_the_continuation() {
    let server = Server::start().await;
    let prompt = "over the hill<|return|><|endofprompt|>";
    let tokens = server.tokenizer.encode_special(prompt);
    for prompt_given in [json!(prompt), json!(tokens)] {
        let body = json!({"prompt": prompt_given, "echo": true, "n": 2});
        let answer = server.ask(COMPLETIONS, &body).await;
        for choice in 0..2 {
            assert_eq!(answer["choices"][choice]["text"], format!("{prompt}over the hill"));
        }
        let chunks = server.stream(COMPLETIONS, &body).await;
        let first: Vec<&Value> = chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == 0).collect();
        assert_eq!(first[0]["choices"][0]["text"], prompt);
        let text: String = first.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
        assert_eq!(text, format!("{prompt}over the hill"));
    }
}

#[tokio::test]
async fn special_tokens_are_shown_to_those_who_ask() {
    let server = Server::start().await;
    let mut body = json!({"prompt": "<|channel|>final<|message|>Hi<|return|><|endofprompt|>"});
    assert_eq!(server.ask(COMPLETIONS, &body).await["choices"][0]["text"], "finalHi");
    body["skip_special_tokens"] = json!(false);
    let shown = "<|channel|>final<|message|>Hi";
    assert_eq!(server.ask(COMPLETIONS, &body).await["choices"][0]["text"], shown);
    body["include_stop_str_in_output"] = json!(true);
    assert_eq!(server.ask(COMPLETIONS, &body).await["choices"][0]["text"], format!("{shown}<|return|>"));
}
