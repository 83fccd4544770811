//! A small collector of OpenTelemetry: takes what is posted to `/v1/traces`, and keeps the spans.

use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Collector {
    pub url: String,
    requests: Arc<Mutex<Vec<(String, Value)>>>,
    task: JoinHandle<()>,
}

impl Collector {
    pub async fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = requests.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, kept.clone()));
            }
        });
        Collector { url, requests, task }
    }

    /// Heads and bodies, as they came.
    pub fn requests(&self) -> Vec<(String, Value)> {
        self.requests.lock().unwrap().clone()
    }

    pub fn spans(&self) -> Vec<Value> {
        let bodies = self.requests().into_iter().map(|(_, body)| body);
        let spans = bodies.map(|body| body["resourceSpans"][0]["scopeSpans"][0]["spans"].clone());
        spans.flat_map(|spans| spans.as_array().unwrap().clone()).collect()
    }

    /// Waits until there is one of this name.
    pub async fn span(&self, name: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(span) = self.spans().into_iter().find(|span| span["name"] == name) {
                return span;
            }
            assert!(Instant::now() < deadline, "no span {name:?} of {:?}", self.spans());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request after the other, each with its length.
async fn serve(mut stream: TcpStream, kept: Arc<Mutex<Vec<(String, Value)>>>) {
    let mut read = Vec::new();
    loop {
        let end = loop {
            match read.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(end) => break end,
                None if stream.read_buf(&mut read).await.unwrap_or(0) == 0 => return,
                None => {}
            }
        };
        let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let whole = end + 4 + length.trim().parse::<usize>().expect("a number");
        while read.len() < whole {
            if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let body = serde_json::from_slice(&read[end + 4..whole]).unwrap_or(json!("no JSON"));
        kept.lock().unwrap().push((head, body));
        read.drain(..whole);
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
