//! A client of the API: whole answers, streams that can be left, and the server's health.

use super::server::PATIENCE;
use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    pub fn new(url: &str) -> Client {
        Client::with_headers(url, HeaderMap::new())
    }

    pub fn with_key(url: &str, key: &str) -> Client {
        let bearer = format!("Bearer {key}").parse().expect("a key is ASCII");
        Client::with_headers(url, HeaderMap::from_iter([(AUTHORIZATION, bearer)]))
    }

    fn with_headers(url: &str, headers: HeaderMap) -> Client {
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        // It speaks http, and trusts nobody's certificate.
        let http = reqwest::Client::builder().timeout(2 * PATIENCE).no_proxy().tls_certs_only([]);
        let http = http.default_headers(headers).build().expect("a client");
        Client { http, url: url.to_owned() }
    }

    /// Status and body.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.http.get(format!("{}{path}", self.url)).send().await).await
    }

    /// A body that is no JSON.
    pub async fn text(&self, path: &str) -> String {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await.expect("an answer");
        answer.text().await.expect("a text")
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.post_text(path, body.to_string()).await
    }

    pub async fn post_text(&self, path: &str, body: String) -> (u16, Value) {
        let request =
            self.http.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        answer(request.body(body).send().await).await
    }

    /// 200, and the body.
    #[track_caller]
    pub fn expect(&self, path: &'static str, body: Value) -> impl Future<Output = Value> {
        let client = self.clone();
        async move {
            let (status, answer) = client.post(path, &body).await;
            assert_eq!(status, 200, "{body}: {answer}");
            answer
        }
    }

    /// Waits until /health has that status, and gives its body.
    pub async fn health(&self, status: u16) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (found, body) = match self.http.get(format!("{}/health", self.url)).send().await {
                Ok(response) => answer(Ok(response)).await,
                Err(error) => (0, json!(error.to_string())),
            };
            if found == status {
                return body;
            }
            assert!(Instant::now() < deadline, "/health is {found}, not {status}: {body}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a group of this epoch, or of a later one, stands. Between two groups may lie less than two looks.
    pub async fn group_of(&self, epoch: u64) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.health(200).await["epoch"].as_u64().expect("a number");
            if found >= epoch {
                return found;
            }
            assert!(Instant::now() < deadline, "epoch {epoch} does not come, it is {found}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until /health is 503 and its message is this one.
    pub async fn waits_for(&self, message: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let body = self.health(503).await;
            if body["error"]["message"] == message {
                return;
            }
            assert!(Instant::now() < deadline, "{message:?} is not said: {body}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn stream(&self, path: &str, body: Value) -> Stream {
        let stream = self.try_stream(path, body.clone()).await.expect("the server answers");
        stream.unwrap_or_else(|status| panic!("status {status}: {body}"))
    }

    /// The stream, or the status of a refusal, which must say when to come again if it says to.
    pub async fn try_stream(&self, path: &str, mut body: Value) -> Result<Result<Stream, u16>, String> {
        body["stream"] = json!(true);
        let response = self.http.post(format!("{}{path}", self.url)).json(&body).send().await;
        let response = response.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        if status != 200 {
            let says_when = response.headers().contains_key("retry-after");
            assert!(says_when || ![429, 503].contains(&status), "{status} without Retry-After");
            return Ok(Err(status));
        }
        Ok(Ok(Stream {
            bytes: response.bytes_stream().map(|part| part.map(|part| part.to_vec())).boxed(),
            line: Vec::new(),
        }))
    }
}

async fn answer(response: reqwest::Result<reqwest::Response>) -> (u16, Value) {
    let response = response.expect("the server answers");
    let status = response.status().as_u16();
    let text = response.text().await.expect("the answer is whole");
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status}, {error}: {text}")))
}

/// Server-sent events. Dropping it leaves the server.
pub struct Stream {
    bytes: BoxStream<'static, reqwest::Result<Vec<u8>>>,
    line: Vec<u8>,
}

impl Stream {
    /// The next chunk; none after `[DONE]`, behind which nothing may come.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            let Some(end) = self.line.iter().position(|byte| *byte == b'\n') else {
                let part = self.bytes.next().await.expect("a stream ends with [DONE]");
                self.line.extend(part.expect("the stream does not break"));
                continue;
            };
            let line: Vec<u8> = self.line.drain(..=end).collect();
            let line = String::from_utf8(line).expect("lines are UTF-8");
            match line.trim_end().strip_prefix("data: ") {
                Some("[DONE]") => {
                    self.expect_end().await;
                    return None;
                }
                Some(data) => return Some(serde_json::from_str(data).expect("chunks are JSON")),
                None => assert!(line.trim().is_empty() || line.starts_with(':'), "{line:?}"),
            }
        }
    }

    async fn expect_end(&mut self) {
        while let Some(part) = self.bytes.next().await {
            self.line.extend(part.expect("the stream does not break"));
        }
        assert!(self.line.iter().all(u8::is_ascii_whitespace), "something came behind [DONE]");
    }

    /// The text of the next `chunks` chunks that have one.
    pub async fn text_of(&mut self, chunks: usize) -> String {
        let mut text = String::new();
        let mut seen = 0;
        while seen < chunks {
            let chunk = self.next().await.expect("the answer is longer");
            assert!(chunk["error"].is_null(), "{chunk}");
            let delta = completion_text(&chunk);
            seen += usize::from(!delta.is_empty());
            text.push_str(delta);
        }
        text
    }

    /// The rest: its text, and how it ended.
    pub async fn rest(mut self) -> Rest {
        let mut rest = Rest::default();
        while let Some(chunk) = self.next().await {
            rest.text.push_str(completion_text(&chunk));
            if !chunk["error"].is_null() {
                rest.error = Some(chunk["error"].clone());
            }
            if let Some(reason) = chunk["choices"][0]["finish_reason"].as_str() {
                rest.finish_reason = Some(reason.to_owned());
            }
        }
        rest
    }
}

#[derive(Debug, Default, PartialEq)]
pub struct Rest {
    pub text: String,
    pub finish_reason: Option<String>,
    pub error: Option<Value>,
}

fn completion_text(chunk: &Value) -> &str {
    chunk["choices"][0]["text"].as_str().unwrap_or_default()
}

pub const CHAT: &str = "/v1/chat/completions";
pub const COMPLETIONS: &str = "/v1/completions";

/// A greedy continuation of `prompt` by exactly `tokens` tokens.
pub fn greedy(prompt: &str, tokens: usize) -> Value {
    json!({ "prompt": prompt, "max_tokens": tokens, "temperature": 0 })
}

/// The text of a whole greedy continuation, which must have come to its full length.
pub async fn greedy_text(client: &Client, prompt: &str, tokens: usize) -> String {
    let answer = client.expect(COMPLETIONS, greedy(prompt, tokens)).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length", "choose another seed: {answer}");
    assert_eq!(answer["usage"]["completion_tokens"], tokens, "{answer}");
    answer["choices"][0]["text"].as_str().expect("a text").to_owned()
}

/// One user message, greedy.
pub fn question(text: &str, tokens: usize) -> Value {
    json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": tokens, "temperature": 0 })
}
