//! Sends a body, and follows the stream that answers it, or reads the body that does.

use super::{Answer, Clock, Target};
use crate::record::ErrorKind;
use crate::run::Live;
use crate::stream::{Checked, Checker, Events, Expect, whole};
use futures::StreamExt;
use reqwest::{Response, StatusCode, header};
use serde_json::Value;
use std::error::Error;
use tokio::time::timeout;

/// As much of what a server says to a refusal is kept.
const WORDS_MAX: usize = 300;

type Failure = (ErrorKind, String);

impl Target {
    /// `Stopped` requests drop this; what was seen until then stands in `answer`.
    pub async fn ask(&self, body: &Value, clock: Clock, live: &Live, answer: &mut Answer) {
        let expect = Expect::of(self.endpoint, body);
        answer.sent_us = clock.us();
        if self.whole {
            self.ask_whole(&expect, body, clock, live, answer).await;
        } else {
            self.ask_stream(expect, body, clock, live, answer).await;
        }
    }

    async fn ask_stream(&self, expect: Expect, body: &Value, clock: Clock, live: &Live, answer: &mut Answer) {
        let mut checker = Checker::new(expect);
        let followed = self.follow(body, clock, live, &mut answer.pieces_us, &mut checker);
        let failure = self.in_time(followed).await.err();
        answer.ended_us = clock.us();
        let had_chunks = checker.chunks() > 0;
        answer.tokens_between = checker.tokens_between();
        answer.checked = checker.end(failure.is_none());
        answer.failure = failure.or_else(|| fault(&answer.checked, had_chunks));
    }

    async fn ask_whole(&self, expect: &Expect, body: &Value, clock: Clock, live: &Live, answer: &mut Answer) {
        let text = self.in_time(self.read(body)).await;
        answer.ended_us = clock.us();
        match text.and_then(|text| taken_apart(expect, &text)) {
            Ok(checked) => {
                live.pieces(checked.usage.map_or(0, |usage| usage.completion_tokens));
                answer.failure = whole_fault(&checked);
                answer.checked = checked;
            }
            Err(failure) => answer.failure = Some(failure),
        }
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let late = || (ErrorKind::Timeout, format!("not done within {:?}", self.timeout));
        timeout(self.timeout, work).await.unwrap_or_else(|_| Err(late()))
    }

    async fn follow(
        &self,
        body: &Value,
        clock: Clock,
        live: &Live,
        pieces_us: &mut Vec<u64>,
        checker: &mut Checker,
    ) -> Result<(), Failure> {
        let response = self.send(body).await?;
        is_of(&response, "text/event-stream").map_err(|kind| (ErrorKind::NoStream, kind))?;
        let mut events = Events::default();
        let mut bytes = response.bytes_stream();
        while let Some(part) = bytes.next().await {
            let now = clock.us();
            events.push(&part.map_err(|error| (ErrorKind::Cut, chain(&error)))?);
            while let Some(event) = events.take() {
                if checker.event(&event) {
                    pieces_us.push(now);
                    live.pieces(1);
                }
            }
        }
        let now = clock.us();
        for event in events.rest() {
            if checker.event(&event) {
                pieces_us.push(now);
                live.pieces(1);
            }
        }
        Ok(())
    }

    async fn read(&self, body: &Value) -> Result<String, Failure> {
        let response = self.send(body).await?;
        is_of(&response, "application/json").map_err(|kind| (ErrorKind::NoAnswer, kind))?;
        response.text().await.map_err(|error| (ErrorKind::Cut, chain(&error)))
    }

    async fn send(&self, body: &Value) -> Result<Response, Failure> {
        let mut request = self.http.post(format!("{}/v1/{}", self.url, self.endpoint.path())).json(body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|error| (ErrorKind::Connect, chain(&error)))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err((ErrorKind::Status(status.as_u16()), words(response).await));
        }
        Ok(response)
    }
}

/// Or else what it is of.
fn is_of(response: &Response, wanted: &str) -> Result<(), String> {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let is_wanted = kind.is_some_and(|kind| kind.starts_with(wanted));
    if is_wanted { Ok(()) } else { Err(format!("content-type {}", kind.unwrap_or("missing"))) }
}

fn taken_apart(expect: &Expect, text: &str) -> Result<Checked, Failure> {
    let body = serde_json::from_str::<Value>(text).ok();
    body.and_then(|body| whole(expect, &body)).ok_or_else(|| (ErrorKind::NoAnswer, short(text)))
}

/// What is wrong with a stream that came to its end.
fn fault(checked: &Checked, had_chunks: bool) -> Option<Failure> {
    if let Some(error) = &checked.error {
        Some((ErrorKind::InStream, error.clone()))
    } else if checked.finished {
        None
    } else if had_chunks {
        Some((ErrorKind::Unfinished, "the stream ended before the answer did".into()))
    } else {
        Some((ErrorKind::NoStream, "the stream has no chunk".into()))
    }
}

fn whole_fault(checked: &Checked) -> Option<Failure> {
    if let Some(error) = &checked.error {
        return Some((ErrorKind::InAnswer, error.clone()));
    }
    (!checked.finished).then(|| (ErrorKind::Unfinished, "the answer does not say how it ended".into()))
}

fn short(text: &str) -> String {
    text.chars().take(WORDS_MAX).collect()
}

/// The server's message, as OpenAI words it, or else the body as it is.
async fn words(response: Response) -> String {
    let text = response.text().await.unwrap_or_default();
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    let words = body["error"]["message"].as_str().or(body["message"].as_str()).unwrap_or(&text);
    short(words)
}

/// An error with its causes: reqwest's own words do not say why.
fn chain(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(Some(error as &dyn Error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
