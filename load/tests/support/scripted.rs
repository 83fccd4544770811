//! A server that says what it was told to say, when it was told to: first token, tokens between, and what can go wrong. Chat,
//! completions and responses; as a stream, or as a body when the last token is due. It counts a word of a prompt as a token, and five around them.
#![allow(dead_code, reason = "each test uses a part")]

#[path = "wording.rs"]
mod wording;

use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until};
use wording::{Endpoint, Wording};

pub const OVERHEAD_TOKENS: u64 = 5;

#[derive(Clone)]
pub struct Script {
    pub ttft: Duration,
    pub itl: Duration,
    /// What becomes of the n-th request for an answer, which is counted from 0.
    pub act: Arc<dyn Fn(u64) -> Act + Send + Sync>,
    /// So many are answered at once, and others refused with 503.
    pub busy_at: Option<u64>,
    /// So many tokens of a stream come first, and show nothing.
    pub hidden: u64,
    /// From this request on nothing leaves the server for so long.
    pub stall: Option<(u64, Duration)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    Answer,
    Refuse(u16),
    /// The connection breaks after so many tokens.
    Cut(u64),
    /// The stream ends properly after so many.
    End(u64),
    /// After so many an error is sent instead of the rest.
    Error(u64),
    /// Nothing more is sent.
    Hang(u64),
    /// A chunk that is no JSON.
    Garbage,
    NoDone,
    AfterDone,
    /// 200, and a page.
    Page,
    /// Refused if the body asks for `ignore_eos`, or for usage with every chunk, as servers do that do not know a field.
    Strict,
}

impl Script {
    pub fn quick() -> Script {
        let act = Arc::new(|_| Act::Answer);
        let (ttft, itl) = (Duration::from_millis(2), Duration::ZERO);
        Script { ttft, itl, act, busy_at: None, hidden: 0, stall: None }
    }
}

pub struct Scripted {
    pub address: SocketAddr,
    pub url: String,
    asked: Arc<AtomicU64>,
}

/// Requests that came, and those that are being answered.
#[derive(Clone, Default)]
struct Counts {
    asked: Arc<AtomicU64>,
    running: Arc<AtomicU64>,
    stalled_until: Arc<OnceLock<Instant>>,
}

impl Scripted {
    pub async fn start(script: Script) -> Scripted {
        Scripted::listen("127.0.0.1:0", script).await
    }

    pub async fn listen(address: &str, script: Script) -> Scripted {
        let listener = TcpListener::bind(address).await.expect("the address can be listened on");
        let address = listener.local_addr().expect("it is bound");
        let counts = Counts::default();
        let asked = counts.asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = Connection { stream, script: script.clone(), counts: counts.clone() };
                tokio::spawn(connection.serve());
            }
        });
        Scripted { address, url: format!("http://{address}"), asked }
    }

    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

struct Connection {
    stream: TcpStream,
    script: Script,
    counts: Counts,
}

impl Connection {
    /// One request after the other, until one is broken off. None: it is over.
    async fn serve(mut self) -> Option<()> {
        self.stream.set_nodelay(true).ok()?;
        loop {
            let (line, body) = self.request().await?;
            let path = line.split_whitespace().nth(1)?.to_owned();
            match path.as_str() {
                "/v1/models" => {
                    self.plain(200, &json!({ "data": [{ "id": "scripted" }] }).to_string()).await?
                }
                "/v1/chat/completions" => self.answer(Endpoint::Chat, &body).await?,
                "/v1/completions" => self.answer(Endpoint::Completions, &body).await?,
                "/v1/responses" => self.answer(Endpoint::Responses, &body).await?,
                _ => self.plain(404, "{}").await?,
            }
        }
    }

    async fn request(&mut self) -> Option<(String, Value)> {
        let mut bytes = Vec::new();
        let head_end = loop {
            if let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
                break end + 4;
            }
            self.read(&mut bytes).await?;
        };
        let head = String::from_utf8_lossy(&bytes[..head_end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        while bytes.len() < head_end + length.unwrap_or(0) {
            self.read(&mut bytes).await?;
        }
        let line = head.lines().next()?.to_owned();
        Some((line, serde_json::from_slice(&bytes[head_end..]).unwrap_or_default()))
    }

    async fn read(&mut self, bytes: &mut Vec<u8>) -> Option<()> {
        let mut part = [0; 16 << 10];
        let count = self.stream.read(&mut part).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&part[..count]);
        Some(())
    }

    async fn plain(&mut self, status: u16, body: &str) -> Option<()> {
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.write(&(head + body)).await
    }

    async fn write(&mut self, text: &str) -> Option<()> {
        if let Some(until) = self.counts.stalled_until.get() {
            sleep_until(*until).await;
        }
        self.stream.write_all(text.as_bytes()).await.ok()
    }

    async fn event(&mut self, data: &str) -> Option<()> {
        let event = format!("data: {data}\n\n");
        self.write(&format!("{:x}\r\n{event}\r\n", event.len())).await
    }

    async fn answer(&mut self, endpoint: Endpoint, body: &Value) -> Option<()> {
        let number = self.counts.asked.fetch_add(1, Ordering::SeqCst);
        if let Some((_, long)) = self.script.stall.filter(|(from, _)| number >= *from) {
            self.counts.stalled_until.get_or_init(|| Instant::now() + long);
        }
        let running = self.counts.running.fetch_add(1, Ordering::SeqCst);
        let act = match self.script.busy_at {
            Some(most) if running >= most => Act::Refuse(503),
            _ => (self.script.act)(number),
        };
        let field = if endpoint == Endpoint::Responses { "max_output_tokens" } else { "max_tokens" };
        let tokens = body[field].as_u64().or(body["max_completion_tokens"].as_u64()).unwrap_or(16);
        let words = Wording {
            id: format!("a-{number}"),
            endpoint,
            prompt_tokens: prompt_tokens(body),
            tokens,
            hidden: self.script.hidden.min(tokens.saturating_sub(1)),
            continuous: body["stream_options"]["continuous_usage_stats"] == true,
        };
        let answered = self.act(act, &words, body).await;
        self.counts.running.fetch_sub(1, Ordering::SeqCst);
        answered
    }

    async fn act(&mut self, act: Act, words: &Wording, body: &Value) -> Option<()> {
        match act {
            Act::Refuse(status) => self.plain(status, r#"{"error": {"message": "told to refuse"}}"#).await,
            Act::Strict if body["ignore_eos"] == true => {
                self.plain(400, r#"{"error": {"message": "ignore_eos: unknown field"}}"#).await
            }
            Act::Strict if words.continuous => self.plain(422, r#"{"error": {"message": "unknown"}}"#).await,
            Act::Page => self.plain(200, "<html>").await,
            _ if body["stream"] == true => self.stream(act, words).await,
            _ => self.whole(act, words).await,
        }
    }

    /// When its last token is due.
    async fn whole(&mut self, act: Act, words: &Wording) -> Option<()> {
        sleep(self.script.ttft + self.script.itl * words.tokens.saturating_sub(1) as u32).await;
        match act {
            Act::Cut(_) => None,
            Act::End(_) => self.plain(200, "{}").await,
            Act::Error(_) => self.plain(200, r#"{"error": {"message": "told to fail"}}"#).await,
            Act::Hang(_) => {
                sleep(Duration::from_secs(3600)).await;
                None
            }
            _ => self.plain(200, &words.whole()).await,
        }
    }

    async fn stream(&mut self, act: Act, words: &Wording) -> Option<()> {
        self.write(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .await?;
        for event in words.begin() {
            self.event(&event).await?;
        }
        let mut due = Instant::now() + self.script.ttft + self.script.itl * words.hidden as u32;
        for token in 0..words.pieces() {
            sleep_until(due).await;
            due += self.script.itl;
            match act {
                Act::Cut(after) if token == after => return None,
                Act::End(after) if token == after => return self.write("0\r\n\r\n").await,
                Act::Error(after) if token == after => {
                    self.event(r#"{"error": {"message": "told to fail"}}"#).await?;
                    break;
                }
                Act::Hang(after) if token == after => sleep(Duration::from_secs(3600)).await,
                Act::Garbage if token == 1 => self.event("{\"id\": ").await?,
                _ => {}
            }
            self.event(&words.piece(token)).await?;
        }
        let end = if matches!(act, Act::Error(_)) { Vec::new() } else { words.end() };
        for event in end {
            self.event(&event).await?;
        }
        if act != Act::NoDone && words.endpoint != Endpoint::Responses {
            self.event("[DONE]").await?;
        }
        if act == Act::AfterDone {
            self.event(&words.piece(words.pieces())).await?;
        }
        self.write("0\r\n\r\n").await
    }
}

fn prompt_tokens(body: &Value) -> u64 {
    let words = |text: &Value| text.as_str().unwrap_or_default().split_whitespace().count() as u64;
    let messages = [&body["messages"], &body["input"]].into_iter().filter_map(Value::as_array).flatten();
    let said: u64 = messages.map(|message| words(&message["content"])).sum();
    said + words(&body["prompt"]) + OVERHEAD_TOKENS
}
