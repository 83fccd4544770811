//! Pages of other origins: those that are named may ask, others may not.

use flotilla_coordinator::api::Origins;
use reqwest::{Method, Response};
use serde_json::json;

use crate::server::{Server, Setup, error_of, user, within};

async fn server(origins: &[&str]) -> Server {
    let cors = Origins::new(origins.iter().copied()).unwrap();
    Server::start_with(Setup { adjust: Box::new(|settings| settings.cors = cors), ..Setup::default() }).await
}

async fn ask(server: &Server, method: Method, path: &str, origin: &str) -> Response {
    let mut request = server.client.request(method.clone(), format!("{}{path}", server.url));
    if method == Method::OPTIONS {
        request = request.header("access-control-request-method", "POST");
        request = request.header("access-control-request-headers", "authorization,x-stainless-lang");
    }
    within(request.header("origin", origin).send()).await.unwrap()
}

fn allowed(response: &Response) -> Option<&str> {
    response.headers().get("access-control-allow-origin").map(|origin| origin.to_str().unwrap())
}

#[tokio::test]
async fn named_origins_may_ask() {
    let server = server(&["https://chat.example", "http://localhost:5173"]).await;
    let path = "/v1/chat/completions";
    let before = ask(&server, Method::OPTIONS, path, "http://localhost:5173").await;
    assert_eq!((before.status().as_u16(), allowed(&before)), (204, Some("http://localhost:5173")));
    assert_eq!(before.headers()["access-control-allow-headers"], "authorization,x-stainless-lang");
    assert!(before.headers()["access-control-allow-methods"].to_str().unwrap().contains("POST"));
    let models = ask(&server, Method::GET, "/v1/models", "https://chat.example").await;
    assert_eq!((models.status().as_u16(), allowed(&models)), (200, Some("https://chat.example")));
    assert_eq!(models.headers()["vary"], "origin");
    // A page must be able to read errors, too.
    let error = ask(&server, Method::GET, "/nothing", "https://chat.example").await;
    assert_eq!((error.status().as_u16(), allowed(&error)), (404, Some("https://chat.example")));
    let other = ask(&server, Method::GET, "/v1/models", "https://evil.example").await;
    assert_eq!(allowed(&other), None);
    assert_eq!(allowed(&ask(&server, Method::OPTIONS, path, "https://evil.example").await), None);
}

#[tokio::test]
async fn all_may_ask_or_none() {
    let all = server(&["*"]).await;
    assert_eq!(allowed(&ask(&all, Method::GET, "/v1/models", "https://a.example").await), Some("*"));
    let none = Server::start().await;
    assert_eq!(allowed(&ask(&none, Method::GET, "/v1/models", "https://a.example").await), None);
    let before = ask(&none, Method::OPTIONS, "/v1/models", "https://a.example").await;
    assert_eq!(before.status(), 405);
    assert_eq!(
        before.json::<serde_json::Value>().await.unwrap()["error"]["code"],
        json!("method_not_allowed")
    );
}

/// What a browser sends for a page without asking first: it read no answer, but its chat was computed.
async fn chat_from(server: &Server, site: &str, origin: Option<&str>) -> u16 {
    let body = user("<|channel|>final<|message|>x<|return|>").to_string();
    let chat = server.client.post(format!("{}/v1/chat/completions", server.url)).body(body);
    let mut chat = chat.header("content-type", "text/plain").header("sec-fetch-site", site);
    if let Some(origin) = origin {
        chat = chat.header("origin", origin);
    }
    let response = within(chat.send()).await.unwrap();
    let status = response.status().as_u16();
    if status == 403 {
        let (_, error) = error_of(response).await;
        assert_eq!(error["code"], json!("foreign_page"));
        let words = error["message"].as_str().unwrap();
        assert!(words.contains(origin.unwrap()) && words.contains("--cors-origin"), "{words}");
    }
    status
}

#[tokio::test]
async fn pages_of_other_sites_start_nothing_where_there_are_no_keys() {
    let evil = Some("https://evil.example");
    let plain = Server::start().await;
    for (site, origin, status) in [
        ("cross-site", evil, 403),
        ("same-site", Some("http://localhost:3000"), 403),
        ("cross-site", Some("null"), 403),
        ("same-origin", Some("http://localhost:8000"), 200),
        // A link that is followed, and what is typed.
        ("cross-site", None, 200),
        ("none", None, 200),
    ] {
        assert_eq!(chat_from(&plain, site, origin).await, status, "{site} {origin:?}");
    }
    let named = server(&["https://chat.example"]).await;
    assert_eq!(chat_from(&named, "cross-site", Some("https://chat.example")).await, 200);
    assert_eq!(chat_from(&named, "cross-site", evil).await, 403);
    assert_eq!(chat_from(&server(&["*"]).await, "cross-site", evil).await, 200);
    // A key says who may ask, and pages have none.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    std::fs::write(&path, flotilla_coordinator::keys::entry("alice", "alice").unwrap()).unwrap();
    let keys = std::sync::Arc::new(flotilla_coordinator::keys::Keyring::read(&path).unwrap());
    let adjust =
        Box::new(|settings: &mut flotilla_coordinator::service::Settings| settings.keys = Some(keys));
    let keyed = Server::start_with(Setup { adjust, ..Setup::default() }).await;
    assert_eq!(chat_from(&keyed, "cross-site", evil).await, 401);
}
