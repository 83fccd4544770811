//! Sends a body, and follows the stream that answers it.

use super::{Answer, Clock, Target};
use crate::record::ErrorKind;
use crate::run::Live;
use crate::stream::{Checker, Endpoint, Events, Expect};
use futures::StreamExt;
use reqwest::{Response, StatusCode, header};
use serde_json::Value;
use std::error::Error;
use tokio::time::timeout;

/// As much of what a server says to a refusal is kept.
const WORDS_MAX: usize = 300;

impl Target {
    /// `Stopped` requests drop this; what was seen until then stands in `answer`.
    pub async fn ask(&self, body: &Value, clock: Clock, live: &Live, answer: &mut Answer) {
        let expect = Expect {
            endpoint: self.endpoint,
            choices: body["n"].as_u64().unwrap_or(1) as usize,
            max_tokens: body["max_tokens"].as_u64(),
        };
        let mut checker = Checker::new(expect);
        answer.sent_us = clock.us();
        let followed = self.follow(body, clock, live, answer, &mut checker);
        let failure = match timeout(self.timeout, followed).await {
            Ok(followed) => followed.err(),
            Err(_) => Some((ErrorKind::Timeout, format!("not done within {:?}", self.timeout))),
        };
        answer.ended_us = clock.us();
        let had_chunks = checker.chunks() > 0;
        answer.checked = checker.end(failure.is_none());
        answer.failure = failure.or_else(|| fault(answer, had_chunks));
    }

    async fn follow(
        &self,
        body: &Value,
        clock: Clock,
        live: &Live,
        answer: &mut Answer,
        checker: &mut Checker,
    ) -> Result<(), (ErrorKind, String)> {
        let response = self.send(body).await?;
        let mut events = Events::default();
        let mut bytes = response.bytes_stream();
        while let Some(part) = bytes.next().await {
            let now = clock.us();
            events.push(&part.map_err(|error| (ErrorKind::Cut, chain(&error)))?);
            while let Some(event) = events.take() {
                if checker.event(&event) {
                    answer.pieces_us.push(now);
                    live.piece();
                }
            }
        }
        for event in events.rest() {
            checker.event(&event);
        }
        Ok(())
    }

    async fn send(&self, body: &Value) -> Result<Response, (ErrorKind, String)> {
        let path = match self.endpoint {
            Endpoint::Chat => "chat/completions",
            Endpoint::Completions => "completions",
        };
        let mut request = self.http.post(format!("{}/v1/{path}", self.url)).json(body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|error| (ErrorKind::Connect, chain(&error)))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err((ErrorKind::Status(status.as_u16()), words(response).await));
        }
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        if !kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
            let kind = format!("content-type {}", kind.unwrap_or("missing"));
            return Err((ErrorKind::NoStream, kind));
        }
        Ok(response)
    }
}

/// What is wrong with a stream that came to its end.
fn fault(answer: &Answer, had_chunks: bool) -> Option<(ErrorKind, String)> {
    let checked = &answer.checked;
    if let Some(error) = &checked.error {
        Some((ErrorKind::InStream, error.clone()))
    } else if checked.finished {
        None
    } else if had_chunks {
        Some((ErrorKind::Unfinished, "the stream ended before a finish_reason".into()))
    } else {
        Some((ErrorKind::NoStream, "the stream has no chunk".into()))
    }
}

/// The server's message, as OpenAI words it, or else the body as it is.
async fn words(response: Response) -> String {
    let text = response.text().await.unwrap_or_default();
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    let words = body["error"]["message"].as_str().or(body["message"].as_str()).unwrap_or(&text);
    words.chars().take(WORDS_MAX).collect()
}

/// An error with its causes: reqwest's own words do not say why.
fn chain(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(Some(error as &dyn Error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
