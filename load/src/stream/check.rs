//! Follows one streamed answer, and notes what must not be. Chunks of chat and completions are taken apart here, events of the
//! Responses API in `responses.rs`.

use super::answer::{Endpoint, words};
use super::{Call, Checked, Event, Expect, Usage, ViolationKind};
use serde_json::Value;

pub struct Checker {
    pub(super) expect: Expect,
    pub(super) checked: Checked,
    identity: Option<[Value; 2]>,
    pub(super) pieces: Vec<u64>,
    pub(super) finished: Vec<bool>,
    /// What ends a stream has come.
    pub(super) done: bool,
    /// Usage stands in chunks that have choices: it grows with them.
    continuous: bool,
    /// Of one choice, tokens as they were counted with the first piece and with the last, where they were.
    first_and_last: Option<(Option<u64>, Option<u64>)>,
    pub(super) chunks: usize,
    /// Of an event, where they are numbered.
    pub(super) last_number: Option<u64>,
}

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
            first_and_last: None,
            chunks: 0,
            last_number: None,
        }
    }

    /// How many chunks have come.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Tokens that came after the first piece, up to the last. None: the server did not count as it went.
    pub fn tokens_between(&self) -> Option<u64> {
        let (first, last) = self.first_and_last?;
        Some(last?.saturating_sub(first?))
    }

    /// Whether the event brought a piece of the answer.
    pub fn event(&mut self, event: &Event) -> bool {
        let text = match event {
            Event::Data(text) | Event::Stray(text) => text,
        };
        let is_done = text == "[DONE]" && matches!(event, Event::Data(_));
        // Some servers send it behind the event that ends a response; OpenAI does not.
        if is_done && self.expect.endpoint == Endpoint::Responses {
            return false;
        }
        if self.done {
            self.note(ViolationKind::SomethingAfterDone, text);
            return false;
        }
        match event {
            Event::Stray(line) => self.note(ViolationKind::NotAnEvent, line),
            Event::Data(_) if is_done => self.done = true,
            Event::Data(data) => match serde_json::from_str::<Value>(data) {
                Ok(event) if self.expect.endpoint == Endpoint::Responses => {
                    return self.response_event(&event, data);
                }
                Ok(chunk) => return self.chunk(&chunk, data),
                Err(_) => self.note(ViolationKind::NotJson, data),
            },
        }
        false
    }

    fn chunk(&mut self, chunk: &Value, text: &str) -> bool {
        if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
            self.checked.error = Some(words(error));
            return false;
        }
        let Some(choices) = chunk["choices"].as_array() else {
            self.note(ViolationKind::NotAChunk, text);
            return false;
        };
        self.chunks += 1;
        self.identify(chunk, text);
        self.usage(chunk, choices.is_empty(), text);
        let brought = choices.iter().fold(false, |brought, choice| self.choice(choice, text) | brought);
        if brought && self.expect.choices == 1 {
            let counted = Usage::read(&chunk["usage"]).map(|usage| usage.completion_tokens);
            let (first, _) = self.first_and_last.unwrap_or((counted, None));
            self.first_and_last = Some((first, counted));
        }
        brought
    }

    pub(super) fn identify(&mut self, chunk: &Value, text: &str) {
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
        self.checked.thought |= thinks;
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
        if less || !found.adds_up() {
            self.note(ViolationKind::UsageDoesNotAddUp, text);
        }
    }

    fn note(&mut self, kind: ViolationKind, text: &str) {
        self.checked.note(kind, text);
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
        self.checked.check_usage(&self.expect, self.pieces.iter().sum());
    }
}
