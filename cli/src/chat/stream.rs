//! A streamed answer: bytes of server-sent events in, chunks out, and whether the answer came to its end. Servers that are
//! asked in OpenAI's words differ in what they say beside them; what they mean is taken.

use super::plain::plain;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

#[derive(Default)]
pub struct Stream {
    lines: Lines,
    /// A choice has said why it ended.
    is_finished: bool,
    is_done: bool,
}

#[derive(Debug, Deserialize)]
pub struct Chunk {
    #[serde(default)]
    pub choices: Vec<Choice>,
    error: Option<Value>,
    object: Option<Value>,
    message: Option<Value>,
}

#[derive(Debug, Deserialize)]
pub struct Choice {
    #[serde(default)]
    pub delta: Delta,
    pub finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub struct Delta {
    pub content: Option<String>,
    /// The same thoughts by two names: some servers send one, some the other, some both.
    reasoning: Option<String>,
    reasoning_content: Option<String>,
    pub tool_calls: Option<Value>,
}

impl Stream {
    pub fn push(&mut self, part: &[u8]) {
        self.lines.push(part);
    }

    /// The next chunk that is there whole. Errors: the server ends the answer with one, or says what is no chunk.
    pub fn next(&mut self) -> Result<Option<Chunk>> {
        while let Some(line) = self.lines.next() {
            match line.strip_prefix("data:").map(str::trim) {
                None | Some("") => {}
                Some("[DONE]") => self.is_done = true,
                Some(data) => return self.chunk(data).map(Some),
            }
        }
        Ok(None)
    }

    /// Whatever comes behind it is not waited for.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Nothing more comes.
    pub fn end(&self) -> Result<()> {
        ensure!(
            self.is_done || self.is_finished,
            "the answer broke off: the stream ended without saying that it does"
        );
        Ok(())
    }

    fn chunk(&mut self, data: &str) -> Result<Chunk> {
        let chunk: Chunk = serde_json::from_str(data).context("the server sent a malformed chunk")?;
        if let Some(reason) = chunk.failure() {
            bail!("the server ended the answer: {}", plain(reason));
        }
        self.is_finished |= chunk.choices.iter().any(|choice| choice.finish_reason.is_some());
        Ok(chunk)
    }
}

impl Chunk {
    /// Why there is no answer: `{"error": {"message"}}`, `{"error": "words"}`, or `{"object": "error", "message"}`.
    fn failure(&self) -> Option<&str> {
        let is_error = self.object.as_ref().is_some_and(|object| object == "error");
        let error = self.error.as_ref().or(self.message.as_ref().filter(|_| is_error));
        let reason = error.and_then(|error| error["message"].as_str().or(error.as_str()));
        (is_error || error.is_some()).then(|| reason.unwrap_or("no reason given"))
    }
}

impl Delta {
    pub fn thoughts(&self) -> Option<&str> {
        [&self.reasoning, &self.reasoning_content]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .find(|it| !it.is_empty())
    }
}

/// Whole lines out of parts that may cut anywhere.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
}

impl Lines {
    fn push(&mut self, part: &[u8]) {
        self.bytes.extend_from_slice(part);
    }

    fn next(&mut self) -> Option<String> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.bytes.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).trim_end().to_owned())
    }
}
