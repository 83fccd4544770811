//! Texts and chats as tokens, and back.

use serde_json::{Value, json};

use crate::server::{CONTEXT, MODEL, Server, thinks_and_says, user};

#[tokio::test]
async fn a_prompt_as_a_completion_would_see_it() {
    let server = Server::start().await;
    let text = "Größe 🧨 <|end|>";
    let answer = server.ask("/tokenize", &json!({"model": MODEL, "prompt": text})).await;
    let tokens = server.tokenizer.encode_special(text);
    let expected =
        json!({"count": tokens.len(), "max_model_len": CONTEXT, "tokens": tokens, "token_strs": null});
    assert_eq!(answer, expected);
    let body = json!({"prompt": "Hi there", "add_special_tokens": true, "return_token_strs": true});
    let strings = server.ask("/tokenize", &body).await["token_strs"].take();
    let joined: String = strings.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(joined, "Hi there");
    let back = server.ask("/detokenize", &json!({"model": MODEL, "tokens": tokens})).await;
    assert_eq!(back, json!({"prompt": text}));
    assert_eq!(server.ask("/detokenize", &json!({"tokens": []})).await, json!({"prompt": ""}));
}

#[tokio::test]
async fn a_chat_has_the_tokens_that_its_answer_counts() {
    let server = Server::start().await;
    let mut body = user(&thinks_and_says("", "Yes."));
    body["tools"] = json!([{"type": "function", "function": {"name": "get_weather"}}]);
    body["reasoning_effort"] = json!("high");
    let usage = server.chat(&body).await["usage"].take();
    body["add_generation_prompt"] = json!(true);
    body["add_special_tokens"] = json!(false);
    let answer = server.ask("/tokenize", &body).await;
    assert_eq!(answer["count"], usage["prompt_tokens"]);
    assert_eq!(answer["tokens"].as_array().unwrap().len(), answer["count"].as_u64().unwrap() as usize);
}

#[tokio::test]
async fn what_cannot_be_is_named() {
    let server = Server::start().await;
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": 7}), "prompt"),
        ("/tokenize", json!({"prompt": "a", "messages": []}), "messages"),
        ("/tokenize", json!({"prompt": "a", "x": 1}), "x"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": [1, -1]}), "tokens[1]"),
        ("/detokenize", json!({"tokens": [1, 4_000_000]}), "tokens[1]"),
    ] {
        let (status, error) = server.refused(path, &body).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
        let names_both = error["message"].as_str().unwrap().contains("a prompt, or the messages of a chat");
        assert_eq!(names_both, path == "/tokenize" && body == json!({}), "{error}");
    }
    let (status, error) = server.refused("/tokenize", &json!({"model": "gpt-5", "prompt": "a"})).await;
    assert_eq!((status, &error["param"]), (404, &json!("model")));
}
