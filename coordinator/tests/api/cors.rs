//! Pages of other origins: those that are named may ask, others may not.

use flotilla_coordinator::api::Origins;
use reqwest::{Method, Response};
use serde_json::json;

use crate::server::{Server, Setup, within};

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
