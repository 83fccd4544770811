//! A server that is told to stop: what is under way is finished, what is new is told so, and the end comes in time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use flotilla_coordinator::driver;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::server::{Server, Setup, error_of, until, user, within};

const CHAT: &str = "/v1/chat/completions";
const MODELS: &[u8] = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n";

/// A long answer, streamed.
fn long() -> serde_json::Value {
    let mut body = user("<|channel|>final<|message|>on and on");
    body["stream"] = json!(true);
    body["max_tokens"] = json!(600);
    body
}

/// What stands there of an answer so far.
async fn read_some(stream: &mut TcpStream) -> String {
    let mut bytes = vec![0; 1 << 16];
    let count = within(stream.read(&mut bytes)).await.unwrap();
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}

async fn stops(server: &mut Server) {
    drop(server.stop.take());
    until(async || server.get("/health").await.status() == 503).await;
}

#[tokio::test]
async fn what_is_new_is_refused_while_what_is_under_way_is_finished() {
    let mut server = Server::start().await;
    let mut kept = within(TcpStream::connect(server.address)).await.unwrap();
    kept.write_all(MODELS).await.unwrap();
    assert!(read_some(&mut kept).await.starts_with("HTTP/1.1 200 "));
    // Its client reads nothing yet, so that it is under way for as long as this test likes.
    let mut running = server.open(CHAT, &long()).await;
    running.next().await.unwrap();
    stops(&mut server).await;

    for path in ["/health", "/ready", "/v1/models"] {
        let response = server.get(path).await;
        assert_eq!(response.headers()["retry-after"], "5", "{path}");
        let (status, error) = error_of(response).await;
        assert_eq!((status, &error["code"]), (503, &json!("draining")), "{path}");
    }
    assert_eq!(server.refused(CHAT, &user("x")).await.1["code"], "draining");
    assert_eq!(server.get("/metrics").await.status(), 200);
    kept.write_all(MODELS).await.unwrap();
    let answer = read_some(&mut kept).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 503 ") && answer.contains("connection: close"), "{answer}");

    let mut last = String::new();
    while let Some(event) = running.next().await {
        last = event;
    }
    assert_eq!(last, "[DONE]");
    until(async || TcpStream::connect(server.address).await.is_err()).await;
}

#[tokio::test]
async fn an_idle_server_stops_at_once() {
    let mut server = Server::start().await;
    let mut kept = within(TcpStream::connect(server.address)).await.unwrap();
    kept.write_all(MODELS).await.unwrap();
    read_some(&mut kept).await;
    drop(server.stop.take());
    until(async || TcpStream::connect(server.address).await.is_err()).await;
    assert_eq!(read_some(&mut kept).await, "", "the connection that was kept is closed");
}

/// Its answer takes longer than any drain: no group comes.
#[tokio::test]
async fn who_has_no_whole_answer_when_the_time_is_over_hears_why() {
    let adjust = |settings: &mut flotilla_coordinator::service::Settings| {
        settings.limits.drain = Duration::from_millis(200);
    };
    let driver = driver::Settings { regroup_wait: Duration::from_secs(600), ..Default::default() };
    let mut server = Server::start_with(Setup { adjust: Box::new(adjust), driver, ..Setup::default() }).await;
    let mut body = long();
    body["max_tokens"] = json!(1900);
    let mut stream = server.open(CHAT, &body).await;
    stream.next().await.unwrap();
    server.seen.die.store(true, Ordering::SeqCst);
    until(async || server.get("/health").await.status() == 503).await;
    drop(server.stop.take());
    let mut last = String::new();
    while let Some(event) = stream.next().await.filter(|event| event != "[DONE]") {
        last = event;
    }
    let error = serde_json::from_str::<serde_json::Value>(&last).unwrap()["error"].take();
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("service_unavailable_error"), &json!("interrupted"))
    );
    assert_eq!(error["message"], "the server is stopping");
    until(async || TcpStream::connect(server.address).await.is_err()).await;
}

#[tokio::test]
async fn what_takes_too_long_is_cut_off() {
    let adjust = |settings: &mut flotilla_coordinator::service::Settings| {
        settings.limits.drain = Duration::from_millis(200);
    };
    let mut server =
        Server::start_with(Setup { adjust: Box::new(adjust), ready: false, ..Setup::default() }).await;
    // A body that never ends is a request that never does.
    let mut stuck = within(TcpStream::connect(server.address)).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{");
    stuck.write_all(head.as_bytes()).await.unwrap();
    // Until the server has its head.
    until(async || server.get("/version").await.status() == 200).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(server.stop.take());
    until(async || TcpStream::connect(server.address).await.is_err()).await;
}
