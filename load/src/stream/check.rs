//! Follows one streamed answer of chat or completions, chunk by chunk, and notes what must not be.

use super::{Event, Violation, ViolationKind};
use serde_json::Value;
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    Chat,
    Completions,
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    pub endpoint: Endpoint,
    pub choices: usize,
    pub max_tokens: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
}

/// A function that the model calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    pub id: String,
    pub name: String,
    pub arguments: String,
}

/// What an answer was.
#[derive(Debug, Default)]
pub struct Checked {
    pub text: String,
    pub calls: Vec<Call>,
    pub finish_reason: Option<String>,
    pub usage: Option<Usage>,
    /// The server's words, if it ended the answer by an error.
    pub error: Option<String>,
    /// Whether each choice came to an end.
    pub finished: bool,
    pub violations: Vec<Violation>,
}

pub struct Checker {
    expect: Expect,
    checked: Checked,
    identity: Option<[Value; 2]>,
    pieces: Vec<u64>,
    finished: Vec<bool>,
    done: bool,
    /// Usage stands in chunks that have choices: it grows with them.
    continuous: bool,
    chunks: usize,
}

/// Of one stream; what is broken all along need not be kept all along.
const VIOLATIONS_KEPT: usize = 16;
const EXAMPLE_CHARS: usize = 300;

impl Checker {
    pub fn new(expect: Expect) -> Checker {
        Checker {
            expect,
            checked: Checked::default(),
            identity: None,
            pieces: vec![0; expect.choices],
            finished: vec![false; expect.choices],
            done: false,
            continuous: false,
            chunks: 0,
        }
    }

    /// How many chunks have come.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Whether the event brought a piece of the answer.
    pub fn event(&mut self, event: &Event) -> bool {
        let text = match event {
            Event::Data(text) | Event::Stray(text) => text,
        };
        if self.done {
            self.note(ViolationKind::SomethingAfterDone, text);
            return false;
        }
        match event {
            Event::Stray(line) => self.note(ViolationKind::NotAnEvent, line),
            Event::Data(data) if data == "[DONE]" => self.done = true,
            Event::Data(data) => match serde_json::from_str::<Value>(data) {
                Ok(chunk) => return self.chunk(&chunk, data),
                Err(_) => self.note(ViolationKind::NotJson, data),
            },
        }
        false
    }

    fn chunk(&mut self, chunk: &Value, text: &str) -> bool {
        if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
            self.checked.error =
                Some(error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned));
            return false;
        }
        let Some(choices) = chunk["choices"].as_array() else {
            self.note(ViolationKind::NotAChunk, text);
            return false;
        };
        self.chunks += 1;
        self.identify(chunk, text);
        self.usage(chunk, choices.is_empty(), text);
        choices.iter().fold(false, |brought, choice| self.choice(choice, text) | brought)
    }

    fn identify(&mut self, chunk: &Value, text: &str) {
        let identity = ["id", "model"].map(|name| chunk[name].clone());
        match &self.identity {
            None if identity[0].is_string() => self.identity = Some(identity),
            None => self.note(ViolationKind::NotAChunk, text),
            Some(first) if *first != identity => self.note(ViolationKind::IdentityChanged, text),
            Some(_) => {}
        }
    }

    fn choice(&mut self, choice: &Value, text: &str) -> bool {
        let index = choice["index"].as_u64().map_or(usize::MAX, |index| index as usize);
        if index >= self.expect.choices {
            self.note(ViolationKind::UnknownIndex, text);
            return false;
        }
        let brought = self.piece(index, choice);
        if brought && self.finished[index] {
            self.note(ViolationKind::PieceAfterFinish, text);
        }
        self.pieces[index] += u64::from(brought);
        if let Some(reason) = choice["finish_reason"].as_str() {
            if std::mem::replace(&mut self.finished[index], true) {
                self.note(ViolationKind::FinishedTwice, text);
            }
            self.checked.finish_reason = Some(reason.to_owned());
        }
        brought
    }

    /// The first choice's text is kept: it is what a conversation goes on with.
    fn piece(&mut self, index: usize, choice: &Value) -> bool {
        let delta = &choice["delta"];
        let content =
            if self.expect.endpoint == Endpoint::Chat { &delta["content"] } else { &choice["text"] };
        let content = content.as_str().unwrap_or_default();
        if index == 0 {
            self.checked.text.push_str(content);
        }
        let thought = [&delta["reasoning_content"], &delta["reasoning"]];
        let thinks = thought.iter().any(|text| text.as_str().is_some_and(|text| !text.is_empty()));
        let calls = delta["tool_calls"].as_array().filter(|calls| !calls.is_empty());
        for call in calls.into_iter().flatten().filter(|_| index == 0) {
            self.call(call);
        }
        !content.is_empty() || thinks || calls.is_some()
    }

    fn call(&mut self, part: &Value) {
        let index = part["index"].as_u64().unwrap_or(0) as usize;
        // As many calls as one answer can have; a wilder index is the server's nonsense.
        if index >= 128 {
            return self.note(ViolationKind::UnknownIndex, &part.to_string());
        }
        let calls = &mut self.checked.calls;
        if calls.len() <= index {
            calls.resize(index + 1, Call::default());
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        calls[index].id += &text(&part["id"]);
        calls[index].name += &text(&part["function"]["name"]);
        calls[index].arguments += &text(&part["function"]["arguments"]);
    }

    fn usage(&mut self, chunk: &Value, alone: bool, text: &str) {
        let Some(found) = Usage::read(&chunk["usage"]) else { return };
        self.continuous |= !alone;
        let before = self.checked.usage.replace(found);
        if alone && before.is_some() && !self.continuous {
            self.note(ViolationKind::UsageTwice, text);
        }
        let less = before.is_some_and(|before| found.completion_tokens < before.completion_tokens);
        let sum = found.prompt_tokens + found.completion_tokens;
        if less || found.total_tokens.is_some_and(|total| total != sum) {
            self.note(ViolationKind::UsageDoesNotAddUp, text);
        }
    }

    fn note(&mut self, kind: ViolationKind, text: &str) {
        let mut counts = BTreeMap::<_, usize>::new();
        self.checked.violations.iter().for_each(|violation| *counts.entry(violation.kind).or_default() += 1);
        if counts.get(&kind).is_none_or(|count| *count < VIOLATIONS_KEPT) {
            let example = text.chars().take(EXAMPLE_CHARS).collect();
            self.checked.violations.push(Violation { kind, example });
        }
    }

    /// The end of the stream. `whole`: it was not broken off from outside, so that what is missing is the server's fault.
    pub fn end(mut self, whole: bool) -> Checked {
        self.checked.finished = self.finished.iter().all(|finished| *finished);
        if whole && self.checked.error.is_none() {
            self.check_end();
        }
        self.checked
    }

    fn check_end(&mut self) {
        if !self.checked.finished {
            return self.note(ViolationKind::NeverFinished, "the stream ended before a finish_reason");
        }
        if !self.done {
            self.note(ViolationKind::DoneMissing, "the stream ended without [DONE]");
        }
        match self.checked.usage {
            None => self.note(ViolationKind::UsageMissing, "include_usage was asked for"),
            Some(usage) => self.check_tokens(usage),
        }
    }

    /// Every piece is one token at least. One that was cut off may have fewer than max_tokens: servers cut that to what
    /// the context leaves.
    fn check_tokens(&mut self, usage: Usage) {
        let (pieces, tokens) = (self.pieces.iter().sum::<u64>(), usage.completion_tokens);
        if pieces > tokens {
            let words = format!("{pieces} pieces of text, and {tokens} completion_tokens");
            self.note(ViolationKind::UsageIsNotWhatCame, &words);
        }
        let choices = self.expect.choices as u64;
        if let Some(max) = self.expect.max_tokens.filter(|max| tokens > *max * choices) {
            let words = format!("max_tokens {max} of {choices} choices, and {tokens} completion_tokens");
            self.note(ViolationKind::UsageIsNotWhatCame, &words);
        }
    }
}

impl Usage {
    fn read(usage: &Value) -> Option<Usage> {
        Some(Usage {
            prompt_tokens: usage["prompt_tokens"].as_u64()?,
            completion_tokens: usage["completion_tokens"].as_u64()?,
            total_tokens: usage["total_tokens"].as_u64(),
            cached_tokens: usage["prompt_tokens_details"]["cached_tokens"].as_u64(),
        })
    }
}
