//! Follows a stream of the Responses API, event by event. One of three events ends it, with the whole response in it, so that
//! what came piece by piece can be compared with what the server says that it was.

use super::answer::{text_of_response, words};
use super::{Checker, ViolationKind};
use serde_json::Value;

impl Checker {
    /// Whether the event brought a piece of the answer.
    pub(super) fn response_event(&mut self, event: &Value, text: &str) -> bool {
        let Some(kind) = event["type"].as_str() else {
            match event.get("error").filter(|error| !error.is_null()) {
                Some(error) => self.checked.error = Some(words(error)),
                None => self.checked.note(ViolationKind::NotAChunk, text),
            }
            return false;
        };
        self.chunks += 1;
        self.number(event, text);
        if let Some(response) = event.get("response") {
            self.identify(response, text);
        }
        match kind {
            "error" => self.checked.error = Some(words(event)),
            "response.completed" | "response.incomplete" | "response.failed" => {
                self.response_end(&event["response"], text);
            }
            "response.output_text.delta" => {
                self.checked.text.push_str(event["delta"].as_str().unwrap_or_default());
                return self.response_piece(event);
            }
            "response.reasoning_text.delta" | "response.reasoning_summary_text.delta" => {
                self.checked.thought = true;
                return self.response_piece(event);
            }
            "response.refusal.delta" | "response.function_call_arguments.delta" => {
                return self.response_piece(event);
            }
            _ => {}
        }
        false
    }

    /// Events are numbered one after the other; a server that numbers none leaves nothing out.
    fn number(&mut self, event: &Value, text: &str) {
        let Some(number) = event["sequence_number"].as_u64() else { return };
        if self.last_number.replace(number).is_some_and(|last| number != last + 1) {
            self.checked.note(ViolationKind::SequenceBroken, text);
        }
    }

    fn response_piece(&mut self, event: &Value) -> bool {
        let brought = event["delta"].as_str().is_some_and(|delta| !delta.is_empty());
        self.pieces[0] += u64::from(brought);
        brought
    }

    fn response_end(&mut self, response: &Value, text: &str) {
        self.done = true;
        self.checked.end_of_response(response);
        self.finished[0] = self.checked.finished;
        if self.checked.usage.is_some_and(|usage| !usage.adds_up()) {
            self.checked.note(ViolationKind::UsageDoesNotAddUp, text);
        }
        if self.checked.finished && text_of_response(response) != self.checked.text {
            self.checked.note(ViolationKind::TextIsNotWhatCame, text);
        }
    }
}
