//! The way out: a queue with an end, and a task that posts what lies in it, some at once. What a collector does not take
//! is dropped: spans are not worth memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::otlp;
use super::span::Span;

/// Spans that wait; one more is dropped.
const WAITING_MAX: usize = 4096;
/// Of what a collector answers so much is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// In one request.
const BATCH_MAX: usize = 512;
/// So long spans are gathered.
const GATHER: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where spans go.
#[derive(Clone, Debug)]
pub struct Target {
    /// Of a collector, without `/v1/traces`.
    pub endpoint: String,
    /// `service.name`.
    pub service: String,
    /// `name=value,…`: sent along, a collector's key for example.
    pub headers: String,
}

/// Why spans cannot be sent.
#[derive(Debug, Error)]
pub enum ExportError {
    #[error(
        "spans cannot be sent to {0:?}\nhint: give a collector's OTLP/HTTP address, such as http://localhost:4318"
    )]
    Endpoint(String),
    #[error("OTEL_EXPORTER_OTLP_HEADERS is malformed\nhint: write name=value, several with commas between")]
    Headers,
    #[error("no HTTP client for spans: {0}")]
    Client(String),
}

/// What became of spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub exported: u64,
    pub dropped: u64,
}

pub(super) struct Exporter {
    queue: mpsc::Sender<Message>,
    counts: Arc<Counts>,
}

enum Message {
    Span(Box<Span>),
    /// Answered once all before it is sent, or dropped.
    Flush(oneshot::Sender<()>),
}

#[derive(Default)]
struct Counts {
    exported: AtomicU64,
    dropped: AtomicU64,
}

impl Exporter {
    pub fn start(target: Target) -> Result<Exporter, ExportError> {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let counts = Arc::new(Counts::default());
        let post = Post::new(target, counts.clone())?;
        tokio::spawn(run(waiting, post));
        Ok(Exporter { queue, counts })
    }

    pub fn tell(&self, span: Span) {
        if self.queue.try_send(Message::Span(Box::new(span))).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn told(&self) -> Told {
        let Counts { exported, dropped } = &*self.counts;
        Told { exported: exported.load(Ordering::Relaxed), dropped: dropped.load(Ordering::Relaxed) }
    }

    pub async fn flush(&self) {
        let (done, is_done) = oneshot::channel();
        if self.queue.send(Message::Flush(done)).await.is_ok() {
            let _ = is_done.await;
        }
    }
}

/// Until the last tracer is gone.
async fn run(mut waiting: mpsc::Receiver<Message>, mut post: Post) {
    let mut batch = Vec::new();
    while let Some(first) = waiting.recv().await {
        let flush = gather(first, &mut waiting, &mut batch).await;
        post.send(&batch).await;
        batch.clear();
        if let Some(done) = flush {
            let _ = done.send(());
        }
    }
}

/// What comes within a moment, up to a batch, or to whoever wants to know that all is sent.
async fn gather(
    first: Message,
    waiting: &mut mpsc::Receiver<Message>,
    batch: &mut Vec<Span>,
) -> Option<oneshot::Sender<()>> {
    let deadline = Instant::now() + GATHER;
    let mut next = Some(first);
    while let Some(message) = next {
        match message {
            Message::Flush(done) => return Some(done),
            Message::Span(span) => batch.push(*span),
        }
        next = match batch.len() {
            BATCH_MAX => None,
            _ => timeout_at(deadline, waiting.recv()).await.ok().flatten(),
        };
    }
    None
}

struct Post {
    client: reqwest::Client,
    url: String,
    target: Target,
    headers: HeaderMap,
    counts: Arc<Counts>,
    /// What went wrong last, which is said once.
    trouble: Option<String>,
}

impl Post {
    fn new(target: Target, counts: Arc<Counts>) -> Result<Post, ExportError> {
        let url = format!("{}/v1/traces", target.endpoint.trim_end_matches('/'));
        let parsed = reqwest::Url::parse(&url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let parsed = parsed.ok_or_else(|| ExportError::Endpoint(target.endpoint.clone()))?;
        let headers = headers(&target.headers).ok_or(ExportError::Headers)?;
        // Fails where it is installed already.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder().timeout(TIMEOUT).no_proxy();
        // Without certificates on the machine, http works all the same.
        let builder = if parsed.scheme() == "http" { builder.tls_certs_only([]) } else { builder };
        let client = builder.build().map_err(|error| ExportError::Client(error.to_string()))?;
        Ok(Post { client, url, target, headers, counts, trouble: None })
    }

    async fn send(&mut self, spans: &[Span]) {
        if spans.is_empty() {
            return;
        }
        let body = otlp::body(&self.target.service, spans).to_string();
        let request = self.client.post(&self.url).headers(self.headers.clone());
        let answer = request.header(CONTENT_TYPE, "application/json").body(body).send().await;
        let trouble = match answer {
            Ok(answer) if answer.status().is_success() => otlp::rejected(&beginning(answer).await),
            Ok(answer) => Some((u64::MAX, format!("it answers {}", answer.status()))),
            Err(error) => Some((u64::MAX, error.to_string())),
        };
        let (rejected, trouble) = trouble.unzip();
        let dropped = rejected.unwrap_or(0).min(spans.len() as u64);
        self.counts.dropped.fetch_add(dropped, Ordering::Relaxed);
        self.counts.exported.fetch_add(spans.len() as u64 - dropped, Ordering::Relaxed);
        if trouble != self.trouble {
            match &trouble {
                Some(reason) => {
                    tracing::warn!(url = self.url, reason, "spans are not taken, and are dropped")
                }
                None => tracing::info!(url = self.url, "spans are taken again"),
            }
            self.trouble = trouble;
        }
    }
}

/// Read also where nothing stands in it: the connection is good for the next request then.
async fn beginning(mut answer: reqwest::Response) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < ANSWER_BYTES_MAX {
        let Ok(Some(chunk)) = answer.chunk().await else { break };
        body.extend_from_slice(&chunk);
    }
    body
}

fn headers(text: &str) -> Option<HeaderMap> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let header = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let mut value = HeaderValue::from_bytes(&decoded(value.trim())).ok()?;
        value.set_sensitive(true);
        Some((name.trim().parse::<HeaderName>().ok()?, value))
    };
    pairs.map(header).collect()
}

/// `%20` is a space, as OpenTelemetry takes from W3C Baggage. What only looks like it stays as it is, and so does a space.
fn decoded(value: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), value.as_bytes());
    while let [first, behind @ ..] = rest {
        let digits =
            behind.get(..2).filter(|digits| *first == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        let byte = digits.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &behind[2..] } else { behind };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::context::Context;
    use super::*;

    fn target(endpoint: &str, headers: &str) -> Target {
        Target { endpoint: endpoint.into(), service: "test".into(), headers: headers.into() }
    }

    #[tokio::test]
    async fn what_cannot_be_sent_is_counted_and_nobody_waits() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let exporter = Exporter::start(target(&format!("http://{nobody}"), "")).unwrap();
        let count = 3 * WAITING_MAX as u64;
        // Without a pause: the exporter's task does not run meanwhile.
        (0..count).for_each(|_| exporter.tell(Span::within(Context::new(), "x", (1, 2))));
        assert!(exporter.told().dropped >= count - WAITING_MAX as u64);
        exporter.flush().await;
        assert_eq!(exporter.told(), Told { exported: 0, dropped: count });
    }

    #[tokio::test]
    async fn what_is_malformed_is_refused_at_the_start() {
        for (endpoint, more, words) in [
            ("localhost:4318", "", "such as http://localhost:4318"),
            ("grpc://localhost:4317", "", "such as http://localhost:4318"),
            ("http://localhost:4318", "no value", "name=value"),
        ] {
            let error = Exporter::start(target(endpoint, more)).err().unwrap().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(Exporter::start(target("http://localhost:4318/", "api-key=x, b=c")).is_ok());
    }

    #[test]
    fn values_of_headers_are_as_baggage_words_them() {
        for (text, value) in [
            ("Authorization=Basic%20dXNlcjpwYXNz", "Basic dXNlcjpwYXNz"),
            ("Authorization=Basic dXNlcjpwYXNz", "Basic dXNlcjpwYXNz"),
            ("authorization= a%3Db%2cc+d ", "a=b,c+d"),
            ("authorization=100%, b=c", "100%"),
            ("authorization=%zz%+1%4", "%zz%+1%4"),
        ] {
            assert_eq!(headers(text).expect(text)["authorization"], value, "{text}");
        }
        assert_eq!(headers("a=b%0d%0ac: d"), None, "no header ends within another");
    }

    /// A collector that takes one request, and answers it like this.
    async fn collector(answer: &'static str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = [0; 64 << 10];
            let mut seen = String::new();
            while !seen.contains("resourceSpans") {
                let count = stream.read(&mut read).await.unwrap();
                seen.push_str(&String::from_utf8_lossy(&read[..count]));
            }
            let length = answer.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{answer}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        url
    }

    #[tokio::test]
    async fn what_a_collector_rejects_is_not_exported() {
        for (answer, dropped) in [
            (r#"{"partialSuccess": {"rejectedSpans": "2", "errorMessage": "too old"}}"#, 2),
            (r#"{"partialSuccess": {"rejectedSpans": 9}}"#, 3),
            (r#"{"partialSuccess": {}}"#, 0),
            ("no JSON", 0),
            ("", 0),
        ] {
            let exporter = Exporter::start(target(&collector(answer).await, "")).unwrap();
            (0..3).for_each(|_| exporter.tell(Span::within(Context::new(), "x", (1, 2))));
            exporter.flush().await;
            assert_eq!(exporter.told(), Told { exported: 3 - dropped, dropped }, "{answer}");
        }
    }
}
