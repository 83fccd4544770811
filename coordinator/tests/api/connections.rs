//! What a connection may cost: time to say what it wants, bytes to say it in, and a place among others.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::server::{CONTEXT, Server, Setup, until, user, within};

async fn connect(server: &Server) -> TcpStream {
    within(TcpStream::connect(server.address)).await.unwrap()
}

/// One after the other, and none says anything.
async fn connect_all(server: &Server, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(connect(server).await);
    }
    streams
}

/// All that comes until the server closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = within(stream.read_to_end(&mut bytes)).await;
    String::from_utf8(bytes).unwrap()
}

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn who_does_not_say_what_it_wants_is_shown_out() {
    let adjust = |settings: &mut flotilla_coordinator::service::Settings| {
        settings.limits.connections.head_wait = Duration::from_millis(50);
    };
    let server = Server::start_with(Setup { adjust: Box::new(adjust), ..Setup::default() }).await;
    let mut silent = connect(&server).await;
    let mut slow = connect(&server).await;
    slow.write_all(&HEALTH[..20]).await.unwrap();
    let mut idle = connect(&server).await;
    idle.write_all(HEALTH).await.unwrap();
    assert!(!rest(&mut silent).await.contains("200 OK"));
    assert!(!rest(&mut slow).await.contains("200 OK"));
    let answer = rest(&mut idle).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "served, then closed for resting: {answer:?}");
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let server = Server::start().await;
    let mut stream = connect(&server).await;
    stream.write_all(b"GET /health HTTP/1.1\r\nx-long: ").await.unwrap();
    // The server may close before all of it is written.
    let _ = stream.write_all(&[b'a'; 1 << 20]).await;
    let answer = rest(&mut stream).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer:?}");
}

/// One that has a request under way: its body comes drop by drop, until the handle is dropped.
struct Underway(tokio::task::JoinHandle<()>);

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn underway(server: &Server) -> Underway {
    let mut stream = connect(server).await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer carol\r\n\
                expect: 100-continue\r\ncontent-length: 60000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    // It is asked for its body once its request is.
    let mut asked = [0; 12];
    within(stream.read_exact(&mut asked)).await.unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100");
    Underway(tokio::spawn(async move {
        while stream.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }))
}

fn of_places(connections_max: usize) -> Setup {
    let adjust = move |settings: &mut flotilla_coordinator::service::Settings| {
        settings.limits.connections.connections_max = connections_max;
    };
    Setup { adjust: Box::new(adjust), ..Setup::default() }
}

/// Probes are answered, others hear why not, and either goes after one answer. Whoever has a request under way keeps
/// its place.
#[tokio::test]
async fn without_a_place_probes_are_answered_and_others_told() {
    let server = Server::start_with(of_places(1)).await;
    let first = underway(&server).await;
    for (path, status) in [
        ("/health", 200),
        ("/ready", 200),
        ("/metrics", 200),
        ("/v1/models", 503),
        ("/", 503),
        ("/health", 200),
    ] {
        let mut guest = connect(&server).await;
        guest.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let answer = rest(&mut guest).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        assert_eq!(answer.contains("connections_full"), status == 503, "{path}: {answer}");
        assert_eq!(answer.contains("retry-after: 1"), status == 503, "{path}: {answer}");
    }
    assert!(!first.0.is_finished());
    drop(first);
    let served = async || {
        let mut stream = connect(&server).await;
        stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        rest(&mut stream).await.starts_with("HTTP/1.1 200 ")
    };
    until(served).await;
}

/// Who comes takes nothing from another that has not asked yet, as long as the reserve has room for both.
#[tokio::test]
async fn who_come_together_for_the_last_place_are_all_answered() {
    let server = Server::start_with(of_places(2)).await;
    let first = underway(&server).await;
    let mut together = connect_all(&server, 8).await;
    // Nobody has asked before all have been let in.
    tokio::time::sleep(Duration::from_millis(50)).await;
    for stream in &mut together {
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    }
    for mut stream in together {
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    }
    assert!(!first.0.is_finished());
}

/// They would keep everybody out for as long as a head may take, and come again.
#[tokio::test]
async fn connections_that_say_nothing_make_place() {
    let server = Server::start_with(of_places(2)).await;
    let _kept = underway(&server).await;
    let mut silent = connect_all(&server, 40).await;
    let mut meant = connect(&server).await;
    meant.write_all(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut status = [0; 12];
    within(meant.read_exact(&mut status)).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    assert_eq!(rest(&mut silent[0]).await, "", "the oldest is closed, before a head would be too late");
}

/// Of the reserve as well: a probe waits behind nobody.
#[tokio::test]
async fn guests_that_say_nothing_make_place() {
    let server = Server::start_with(of_places(1)).await;
    let first = underway(&server).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(connect(&server).await);
        let mut probe = connect(&server).await;
        probe.write_all(HEALTH).await.unwrap();
        // Were silent ones awaited it would be for seconds, each time.
        assert!(rest(&mut probe).await.starts_with("HTTP/1.1 200 "));
    }
    assert!(!first.0.is_finished());
    assert_eq!(rest(&mut silent[0]).await, "");
}

/// Its events wait for it in memory until `max_tokens` at most; then it is given up, and all of it freed.
#[tokio::test]
async fn a_client_that_stops_reading_its_stream_is_given_up() {
    let adjust = |settings: &mut flotilla_coordinator::service::Settings| {
        settings.limits.connections.write_wait = Duration::from_millis(50);
    };
    let server = Server::start_with(Setup { adjust: Box::new(adjust), ..Setup::default() }).await;
    // Some 60 MB, more than buffers on the way hold.
    let mut body = user("<|channel|>final<|message|>on and on");
    for (name, value) in [
        ("stream", json!(true)),
        ("n", json!(8)),
        ("max_tokens", json!(CONTEXT)),
        ("logprobs", json!(true)),
        ("top_logprobs", json!(20)),
    ] {
        body[name] = value;
    }
    let body = body.to_string();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = within(socket.connect(server.address)).await.unwrap();
    let head =
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    let mut first = [0; 12];
    within(stream.read_exact(&mut first)).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    until(async || {
        let metrics = server.get("/metrics").await.text().await.unwrap();
        let given_up = metrics.lines().find(|line| line.contains("finished_reason=\"abort\""));
        given_up.is_some_and(|line| line.ends_with(" 8"))
    })
    .await;
    let load = async || {
        let metrics = server.get("/metrics").await.text().await.unwrap();
        metrics
            .lines()
            .any(|line| line.starts_with("flotilla_num_requests_running{") && line.ends_with(" 0.0"))
    };
    until(load).await;
    drop(stream);
}

/// They send all of it before they read a word: a server that closes over what it has not read resets the connection,
/// and the answer is lost.
#[tokio::test]
async fn who_is_refused_whatever_it_sends_hears_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    let limits = "requests_per_minute = 1\n";
    let entry = |name: &str| flotilla_coordinator::keys::entry(name, name).unwrap();
    std::fs::write(&path, entry("alice") + limits + &entry("carol")).unwrap();
    let keys = std::sync::Arc::new(flotilla_coordinator::keys::Keyring::read(&path).unwrap());
    let adjust = |settings: &mut flotilla_coordinator::service::Settings| {
        settings.keys = Some(keys);
        settings.limits.connections.connections_max = 2;
    };
    let server = Server::start_with(Setup { adjust: Box::new(adjust), ..Setup::default() }).await;
    let body = "x".repeat(8 << 20);
    let send = async |path: &str, key: &str| {
        let mut stream = connect(&server).await;
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n"
        );
        within(stream.write_all((head + &body).as_bytes())).await.expect("all of it is read");
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.expect("an answer, and no reset");
        answer.to_lowercase()
    };
    let chat = "/v1/chat/completions";
    assert!(send(chat, "bob").await.starts_with("http/1.1 401 "));
    assert!(send(chat, "alice").await.starts_with("http/1.1 413 "));
    let answer = send(chat, "alice").await;
    assert!(answer.starts_with("http/1.1 429 ") && answer.contains("retry-after: "), "{answer}");
    assert!(send("/v1/no", "alice").await.starts_with("http/1.1 404 "));
    assert!(send("/v1/models", "alice").await.starts_with("http/1.1 405 "));
    let _kept = (underway(&server).await, underway(&server).await);
    let answer = send(chat, "alice").await;
    assert!(answer.starts_with("http/1.1 503 ") && answer.contains("connections_full"), "{answer}");
}
