//! What one request may ask for: so many messages, parts, tools, and so much time.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{CONTEXT, Server, Setup, error_of, user};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn lists_have_ends() {
    let server = Server::start().await;
    let many = |count: usize, one: Value| Value::Array(vec![one; count]);
    let part = json!({"type": "text", "text": "a"});
    let message = json!({"role": "user", "content": "a"});
    let tool = json!({"type": "function", "function": {"name": "f"}});
    for (body, param, words) in [
        (json!({"messages": many(4097, message)}), "messages", "at most 4096 messages, found 4097"),
        (
            json!({"messages": [{"role": "user", "content": many(1025, part)}]}),
            "messages[0].content",
            "at most 1024 parts, found 1025",
        ),
        (json!({"messages": [], "tools": many(129, tool)}), "tools", "at most 128 tools, found 129"),
    ] {
        let (status, error) = server.refused(CHAT, &body).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
    let (status, error) = server.refused("/v1/completions", &json!({"prompt": many(65, json!("a"))})).await;
    assert_eq!((status, &error["message"]), (400, &json!("prompt: at most 64 prompts, found 65")));
    assert_eq!(server.seen.admitted(), 0);
}

#[tokio::test]
async fn many_prompts_of_many_choices_are_bounded_together() {
    let server = Server::start().await;
    let ask = |prompts: usize, choices: usize| json!({"prompt": vec![vec![65; 512]; prompts], "n": choices, "max_tokens": 1});
    // 8 contexts of 2048 tokens are 32 such prompts.
    for (prompts, choices) in [(33, 1), (5, 8), (64, 8)] {
        let (status, error) = server.refused("/v1/completions", &ask(prompts, choices)).await;
        assert_eq!((status, &error["code"]), (400, &json!("prompts_too_large")), "{prompts} of {choices}");
        let words = format!("have {} tokens, of at most 16384", 512 * prompts * choices);
        assert!(error["message"].as_str().unwrap().contains(&words), "{error}");
        assert_eq!(error["param"], "prompt");
    }
    assert_eq!(server.seen.admitted(), 0);
}

#[tokio::test]
async fn a_request_that_takes_too_long_ends_with_a_reason() {
    let adjust = |settings: &mut flotilla_coordinator::service::Settings| {
        settings.limits.request_timeout = Some(Duration::from_millis(100));
    };
    let server = Server::start_with(Setup { adjust: Box::new(adjust), ..Setup::default() }).await;
    let mut body = user("<|channel|>final<|message|>on and on");
    let response = server.post(CHAT, &body).await;
    assert_eq!(response.headers()["retry-after"], "5");
    assert_eq!(response.headers()["x-should-retry"], "false", "a client's own next try would take as long");
    let (status, error) = error_of(response).await;
    assert_eq!((status, &error["code"]), (503, &json!("deadline_exceeded")));

    body["stream"] = json!(true);
    let mut stream = server.open(CHAT, &body).await;
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        events.push(event);
    }
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let last: Value = serde_json::from_str(&events.pop().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "deadline_exceeded", "what came before it was sent: {}", events.len());
}

/// A million numbers in a prompt of a body that is allowed: they are counted, and no more is made of them. Of two million not
/// even values are made.
#[tokio::test]
async fn what_cannot_fit_is_refused_before_it_is_looked_at() {
    let server = Server::start().await;
    let ids = |count: usize| format!("[{}\"x\"]", "1,".repeat(count - 1));
    for (prompt, tokens) in [(ids(1_000_000), 1_000_000), (format!("[{}]", ids(CONTEXT)), CONTEXT)] {
        let body = format!("{{\"prompt\": {prompt}}}");
        let (status, error) = error_of(server.send(Method::POST, "/v1/completions", &body).await).await;
        assert_eq!(
            (status, &error["code"]),
            (400, &json!("context_length_exceeded")),
            "not the word among them"
        );
        assert!(error["message"].as_str().unwrap().contains(&format!("has {tokens} tokens")), "{error}");
    }
    let body = format!("{{\"prompt\": {}}}", ids(2_000_000));
    let (status, error) = error_of(server.send(Method::POST, "/v1/completions", &body).await).await;
    assert_eq!((status, &error["code"]), (413, &json!("too_many_values")));
    let body = format!("{{\"prompt\": {}}}", ids(CONTEXT - 1));
    let (_, error) = error_of(server.send(Method::POST, "/v1/completions", &body).await).await;
    assert_eq!(error["param"], json!(format!("prompt[{}]", CONTEXT - 2)), "{error}");

    let longest =
        server.tokenizer.piece_ids().filter_map(|id| server.tokenizer.decode_bytes(id)).map(<[u8]>::len);
    let text = "x".repeat(CONTEXT * longest.max().unwrap() + 1);
    let input = json!({"input": text});
    for (path, body) in
        [(CHAT, user(&text)), ("/v1/completions", json!({"prompt": text})), ("/v1/responses", input)]
    {
        let (status, error) = server.refused(path, &body).await;
        assert_eq!((status, &error["code"]), (400, &json!("context_length_exceeded")), "{path}");
        let words = format!("the prompt has {} bytes", text.len());
        assert!(error["message"].as_str().unwrap().contains(&words), "{error}");
    }
    assert_eq!(server.seen.admitted(), 0);
}
