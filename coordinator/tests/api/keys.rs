//! Keys: who has none is told so, and who has one may use so much of the server.

use std::sync::Arc;

use flotilla_coordinator::keys::{Keyring, entry};
use serde_json::{Value, json};

use crate::server::{Events, Server, Setup, error_of, thinks_and_says, until, user};

const CHAT: &str = "/v1/chat/completions";

/// A server that knows these keys: name, which is the key as well, and limits.
async fn server(keys: &[(&str, &str)]) -> Server {
    let server = not_ready(keys).await;
    server.form_group(1);
    until(async || server.get("/health").await.status() == 200).await;
    server
}

/// One that has no workers yet.
async fn not_ready(keys: &[(&str, &str)]) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    let text: String = keys.iter().map(|(name, limits)| entry(name, name).unwrap() + limits + "\n").collect();
    std::fs::write(&path, text).unwrap();
    let keys = Arc::new(Keyring::read(&path).unwrap());
    let adjust =
        Box::new(|settings: &mut flotilla_coordinator::service::Settings| settings.keys = Some(keys));
    Server::start_with(Setup { adjust, ready: false, ..Setup::default() }).await
}

fn yes() -> Value {
    user(&thinks_and_says("", "Yes."))
}

fn endless() -> Value {
    let mut body = user("<|channel|>final<|message|>on and on");
    body["stream"] = json!(true);
    body
}

#[tokio::test]
async fn who_has_no_key_is_told_so() {
    let server = server(&[("alice", ""), ("bob", "")]).await;
    let response = server.post(CHAT, &yes()).await;
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    let (status, error) = error_of(response).await;
    assert_eq!((status, &error["code"]), (401, &json!("missing_api_key")));
    assert!(error["message"].as_str().unwrap().contains("Authorization: Bearer KEY"), "{error}");
    for wrong in ["carol", "", "alic", "alicee"] {
        let (status, error) = error_of(server.post_as(wrong, CHAT, &yes()).await).await;
        assert_eq!((status, &error["code"]), (401, &json!("invalid_api_key")), "{wrong:?}");
    }
    for guarded in ["/v1/models", "/v1/models/x", "/v1/cluster"] {
        assert_eq!(server.get(guarded).await.status(), 401, "{guarded}");
    }
    for guarded in ["/tokenize", "/detokenize", "/v1/completions"] {
        assert_eq!(server.post(guarded, &json!({})).await.status(), 401, "{guarded}");
    }
    for open in ["/health", "/ready", "/version", "/metrics", "/", "/cluster"] {
        assert_eq!(server.get(open).await.status(), 200, "{open}");
    }
    assert_eq!(server.seen.admitted(), 0);
    for key in ["alice", "bob"] {
        assert_eq!(server.post_as(key, CHAT, &yes()).await.status(), 200);
    }
    let basic = server.client.post(format!("{}{CHAT}", server.url)).basic_auth("alice", Some("alice"));
    assert_eq!(basic.send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn the_key_file_may_change_while_it_serves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    std::fs::write(&path, entry("alice", "alice").unwrap()).unwrap();
    let keys = Arc::new(Keyring::read(&path).unwrap());
    let adjust =
        Box::new(|settings: &mut flotilla_coordinator::service::Settings| settings.keys = Some(keys));
    let server = Server::start_with(Setup { adjust, ..Setup::default() }).await;
    assert_eq!(server.post_as("bob", CHAT, &yes()).await.status(), 401);
    std::fs::write(&path, entry("bob", "bob").unwrap()).unwrap();
    until(async || server.post_as("bob", CHAT, &yes()).await.status() == 200).await;
    assert_eq!(server.post_as("alice", CHAT, &yes()).await.status(), 401, "hers is gone");
}

#[tokio::test]
async fn requests_a_minute() {
    let server = server(&[("alice", "requests_per_minute = 2"), ("bob", "")]).await;
    for _ in 0..2 {
        assert_eq!(server.post_as("alice", CHAT, &yes()).await.status(), 200);
    }
    let response = server.post_as("alice", CHAT, &yes()).await;
    let wait: u32 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait), "two a minute are one in 30 seconds: {wait}");
    let (status, error) = error_of(response).await;
    assert_eq!((status, &error["code"]), (429, &json!("rate_limit_exceeded")));
    let words = "the key \"alice\" has reached a limit: it may make 2 requests a minute";
    assert_eq!(error["message"], words);
    assert_eq!(server.post_as("bob", CHAT, &yes()).await.status(), 200, "others have limits of their own");
}

/// A page that watches the cluster takes nothing from who asks with the same key.
#[tokio::test]
async fn looking_is_not_asking() {
    let server = server(&[("alice", "requests_per_minute = 1\nconcurrent = 1")]).await;
    let look = async |path: &str| {
        let request = server.client.get(format!("{}{path}", server.url)).bearer_auth("alice");
        request.send().await.unwrap().status().as_u16()
    };
    let looks =
        [("/v1/cluster", 200), ("/v1/models", 200), ("/v1/responses/none", 404), ("/v1/cluster", 200)];
    for (path, status) in looks {
        assert_eq!(look(path).await, status, "{path}");
    }
    let mut stream = Events::of(server.post_as("alice", CHAT, &endless()).await);
    stream.next().await.unwrap();
    for (path, status) in looks {
        assert_eq!(look(path).await, status, "{path}, while an answer is made");
    }
    drop(stream);
    for path in [CHAT, "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"] {
        until(async || {
            let (status, error) = error_of(server.post_as("alice", path, &yes()).await).await;
            // Until the server has seen that the client of the stream is gone.
            status == 429 && error["message"].as_str().unwrap().ends_with("it may make 1 requests a minute")
        })
        .await;
    }
}

#[tokio::test]
async fn requests_at_once() {
    let server = server(&[("alice", "concurrent = 1"), ("bob", "")]).await;
    let mut first = Events::of(server.post_as("alice", CHAT, &endless()).await);
    first.next().await.unwrap();
    let response = server.post_as("alice", CHAT, &yes()).await;
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(error_of(response).await.0, 429);
    assert_eq!(server.post_as("bob", CHAT, &yes()).await.status(), 200);
    drop(first);
    until(async || server.post_as("alice", CHAT, &yes()).await.status() == 200).await;
    // An answer that is over, or was refused, holds no place.
    for _ in 0..3 {
        until(async || server.post_as("alice", CHAT, &json!({"messages": 1})).await.status() == 400).await;
        until(async || server.post_as("alice", CHAT, &yes()).await.status() == 200).await;
    }
}

/// Eight choices are as much work as eight requests.
#[tokio::test]
async fn choices_are_counted_as_requests_are() {
    let server = server(&[("alice", "concurrent = 4")]).await;
    let many = |n: u32| {
        let mut body = yes();
        body["n"] = json!(n);
        body
    };
    let (status, error) = error_of(server.post_as("alice", CHAT, &many(5)).await).await;
    assert_eq!(status, 429);
    assert!(error["message"].as_str().unwrap().ends_with("it may have 4 answers made at once"), "{error}");
    // Each gives back all that it had.
    for _ in 0..3 {
        until(async || server.post_as("alice", CHAT, &many(4)).await.status() == 200).await;
    }
    let mut body = endless();
    body["n"] = json!(3);
    let mut open = Events::of(server.post_as("alice", CHAT, &body).await);
    open.next().await.unwrap();
    assert_eq!(server.post_as("alice", CHAT, &many(2)).await.status(), 429);
    until(async || server.post_as("alice", CHAT, &yes()).await.status() == 200).await;
}

#[tokio::test]
async fn tokens_a_minute() {
    let server = server(&[("alice", "tokens_per_minute = 200"), ("bob", "")]).await;
    let long = user(&thinks_and_says("", &"word ".repeat(100)));
    assert_eq!(server.post_as("alice", CHAT, &long).await.status(), 200);
    let response = server.post_as("alice", CHAT, &long).await;
    let wait: u32 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(wait >= 1);
    let (status, error) = error_of(response).await;
    assert_eq!((status, &error["code"]), (429, &json!("rate_limit_exceeded")));
    assert!(error["message"].as_str().unwrap().ends_with("it may use 200 tokens a minute"), "{error}");
    assert_eq!(server.post_as("bob", CHAT, &long).await.status(), 200);
}

/// Who comes back while the model loads has all of its tokens when it is there.
#[tokio::test]
async fn what_is_not_taken_in_costs_no_tokens() {
    let server = not_ready(&[("alice", "tokens_per_minute = 200")]).await;
    let body = user(&thinks_and_says("", &"word ".repeat(100)));
    for _ in 0..3 {
        let (status, error) = error_of(server.post_as("alice", CHAT, &body).await).await;
        assert_eq!((status, &error["code"]), (503, &json!("not_ready")), "{error}");
    }
    server.form_group(1);
    until(async || server.post_as("alice", CHAT, &body).await.status() == 200).await;
}

/// How fast an answer comes, and its usage, would tell one key what another asked.
#[tokio::test]
async fn keys_share_no_beginnings() {
    let server = server(&[("alice", ""), ("bob", "")]).await;
    let mut found = Vec::new();
    for key in ["alice", "alice", "bob", "bob"] {
        let answer: Value = server.post_as(key, CHAT, &yes()).await.json().await.unwrap();
        found.push(answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap());
    }
    assert!(found[0] == 0 && found[1] > 0 && found[2] == 0 && found[3] == found[1], "{found:?}");
}

#[tokio::test]
async fn only_an_administrator_ends_a_replica_and_the_last_one_only_by_force() {
    let server = server(&[("alice", ""), ("root", "admin = true")]).await;
    let path = |number: &str| format!("/v1/cluster/replicas/{number}/dissolve");
    let (none, force) = (json!({}), json!({"force": true}));
    assert_eq!(server.post(&path("0"), &force).await.status(), 401);
    let refusals = [
        ("alice", "0", &force, 403, "not_admin"),
        ("root", "0", &none, 409, "replica_is_last"),
        ("root", "1", &force, 404, "replica_not_found"),
        ("root", "x", &force, 404, "replica_not_found"),
        ("root", "0", &json!({"forse": true}), 400, "unknown_parameter"),
    ];
    for (key, number, body, status, code) in refusals {
        let (found, error) = error_of(server.post_as(key, &path(number), body).await).await;
        assert_eq!((found, &error["code"]), (status, &json!(code)), "{key} {number} {body}");
    }
    assert_eq!(server.get("/health").await.status(), 200);
    assert_eq!(server.post_as("root", &path("0"), &force).await.status(), 200);
    let (status, error) = error_of(server.post_as("root", &path("0"), &force).await).await;
    assert_eq!((status, &error["code"]), (409, &json!("replica_not_serving")), "{error}");
}

#[tokio::test]
async fn without_keys_nobody_is_an_administrator() {
    let server = Server::start().await;
    let path = "/v1/cluster/replicas/0/dissolve";
    let (status, error) = error_of(server.post(path, &json!({"force": true})).await).await;
    assert_eq!((status, &error["code"]), (403, &json!("not_admin")));
}
