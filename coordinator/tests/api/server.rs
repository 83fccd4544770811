//! A server on a free port, and a client that speaks to it.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flotilla_coordinator::driver::{self, DriverHandle, FleetHandle, Replicas};
use flotilla_coordinator::harmony::Harmony;
use flotilla_coordinator::router::ReplicaRouter;
use flotilla_coordinator::service::{self, Settings};
use flotilla_coordinator::tokenizer::Tokenizer;
use flotilla_scheduler::Scheduler;
use flotilla_shared::Epoch;
use flotilla_shared::KvBlocks;
use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::parrot::{Parrot, Seen};

pub const MODEL: &str = "openai/gpt-oss-test";
/// Far more than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const CONTEXT: usize = 2048;

pub struct Setup {
    pub scheduler: flotilla_scheduler::Settings,
    pub driver: driver::Settings,
    pub body_bytes_max: usize,
    pub keep_alive: Duration,
    /// With a group from the start.
    pub ready: bool,
    /// Replicas behind the first, which has the group.
    pub others: Vec<DriverHandle>,
    /// Anything else.
    pub adjust: Box<dyn FnOnce(&mut Settings) + Send>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            scheduler: flotilla_scheduler::Settings { context_max: CONTEXT, ..Default::default() },
            driver: driver::Settings::default(),
            body_bytes_max: 4 << 20,
            keep_alive: Duration::from_secs(15),
            ready: true,
            others: Vec::new(),
            adjust: Box::new(|_| {}),
        }
    }
}

pub struct Server {
    pub url: String,
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    pub fleet: FleetHandle<Parrot>,
    pub tokenizer: Arc<Tokenizer>,
    pub client: reqwest::Client,
    /// Dropped: the server stops.
    pub stop: Option<tokio::sync::oneshot::Sender<()>>,
}

pub fn tokenizer_json() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/small_tokenizer.json"))
}

impl Server {
    pub async fn start() -> Server {
        Server::start_with(Setup::default()).await
    }

    pub async fn start_with(setup: Setup) -> Server {
        let scheduler = Scheduler::new(setup.scheduler).unwrap();
        let (driver, fleet) = driver::start(scheduler, setup.driver);
        let mut ready = driver.clone();
        let replicas = Replicas::default();
        [driver].into_iter().chain(setup.others).for_each(|driver| replicas.add(driver));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("http://{address}");
        let tokenizer = Arc::new(Tokenizer::from_file(tokenizer_json()).unwrap());
        let harmony = Harmony::new(tokenizer.clone()).unwrap();
        let mut settings = Settings::new(MODEL, harmony, CONTEXT);
        settings.limits.body.bytes_max = setup.body_bytes_max;
        settings.limits.keep_alive = setup.keep_alive;
        settings.current_date = Arc::new(|| "2026-02-28".to_owned());
        settings.unix_seconds = Arc::new(|| 1_772_000_000);
        (setup.adjust)(&mut settings);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serve = service::serve(listener, settings, ReplicaRouter::new(replicas), async {
            let _ = stopped.await;
        });
        tokio::spawn(serve);
        let seen = Arc::default();
        let client = client();
        let server = Server { url, address, seen, fleet, tokenizer, client, stop: Some(stop) };
        if setup.ready {
            server.form_group(1);
            within(ready.ready()).await;
        }
        server
    }

    pub fn form_group(&self, epoch: u64) {
        let parrot = Parrot::new(Arc::clone(&self.tokenizer), Arc::clone(&self.seen));
        self.fleet.formed(Epoch(epoch), KvBlocks::plain(4096), parrot);
    }

    pub async fn get(&self, path: &str) -> Response {
        self.send(Method::GET, path, "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Response {
        self.send(Method::POST, path, &body.to_string()).await
    }

    pub async fn send(&self, method: Method, path: &str, body: &str) -> Response {
        let request = self.client.request(method, format!("{}{path}", self.url)).body(body.to_owned());
        within(request.send()).await.expect("an answer")
    }

    /// With a key.
    pub async fn post_as(&self, key: &str, path: &str, body: &Value) -> Response {
        let request = self.client.post(format!("{}{path}", self.url)).body(body.to_string());
        within(request.bearer_auth(key).send()).await.expect("an answer")
    }

    /// The answer to a body that is fine.
    pub async fn ask(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).await;
        let status = response.status();
        let answer: Value = within(response.json()).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    pub async fn chat(&self, body: &Value) -> Value {
        self.ask("/v1/chat/completions", body).await
    }

    /// The chunks of a stream that is fine.
    pub async fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let mut events = self.open(path, &body).await;
        let mut chunks = Vec::new();
        loop {
            match events.next().await.expect("[DONE] before the end").as_str() {
                "[DONE]" => break,
                chunk => chunks.push(serde_json::from_str(chunk).expect("JSON in every event")),
            }
        }
        assert_eq!(events.next().await, None, "nothing behind [DONE]");
        chunks
    }

    pub async fn open(&self, path: &str, body: &Value) -> Events {
        Events::of(self.post(path, body).await)
    }

    /// Status and `error` of a body that is not fine.
    pub async fn refused(&self, path: &str, body: &Value) -> (u16, Value) {
        error_of(self.post(path, body).await).await
    }
}

/// One that speaks http, and trusts nobody's certificate.
pub fn client() -> reqwest::Client {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().tls_certs_only([]).build().unwrap()
}

pub async fn error_of(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    assert!(response.headers().contains_key("x-request-id"));
    let mut body: Value = within(response.json()).await.expect("errors are JSON");
    let error = body["error"].take();
    for field in ["message", "type", "param", "code"] {
        assert!(error.get(field).is_some(), "{field} is missing in {error}");
    }
    (status, error)
}

/// The events of a stream. Dropping it closes the connection.
pub struct Events {
    bytes: BoxStream<'static, reqwest::Result<Vec<u8>>>,
    held: Vec<u8>,
}

impl Events {
    pub fn of(response: Response) -> Events {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let bytes = response.bytes_stream().map(|chunk| chunk.map(|bytes| bytes.to_vec())).boxed();
        Events { bytes, held: Vec::new() }
    }

    /// The data of the next event. Each must be whole UTF-8.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            let event = self.next_raw().await?;
            if let Some(data) = event.strip_prefix("data: ") {
                return Some(data.to_owned());
            }
            assert!(event.starts_with(':'), "neither data nor a comment: {event:?}");
        }
    }

    /// With comments.
    pub async fn next_raw(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.held.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.held.drain(..end + 2).collect();
                return Some(String::from_utf8(event[..end].to_vec()).expect("UTF-8"));
            }
            self.held.extend(within(self.bytes.next()).await?.expect("the stream goes on"));
        }
    }
}

pub fn user(content: &str) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": content}]})
}

/// What a model writes that thinks, then answers.
pub fn thinks_and_says(thought: &str, answer: &str) -> String {
    format!(
        "<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant\
         <|channel|>final<|message|>{answer}<|return|>"
    )
}

/// Of a model that wants to call, and has more to say where it may not.
pub fn calls_and_goes_on(call: &str) -> String {
    format!("{call}{}", " one two three four five six seven eight nine ten<|end|>".repeat(20))
}

/// The strings at `pointer` in all chunks' first choices, joined.
pub fn joined(chunks: &[Value], pointer: &str) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0].pointer(pointer)?.as_str()).collect()
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

pub async fn until(mut condition: impl AsyncFnMut() -> bool) {
    within(async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}
