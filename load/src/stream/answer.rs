//! What was asked for, and what an answer was, whether it came as a stream or as one body.

use super::{Violation, ViolationKind};
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    Chat,
    Completions,
    Responses,
}

impl Endpoint {
    /// Behind `/v1/`.
    pub fn path(self) -> &'static str {
        match self {
            Endpoint::Chat => "chat/completions",
            Endpoint::Completions => "completions",
            Endpoint::Responses => "responses",
        }
    }

    /// The field that says how many tokens an answer may have.
    pub fn max_tokens(self) -> &'static str {
        match self {
            Endpoint::Chat | Endpoint::Completions => "max_tokens",
            Endpoint::Responses => "max_output_tokens",
        }
    }
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    pub endpoint: Endpoint,
    pub choices: usize,
    pub max_tokens: Option<u64>,
}

impl Expect {
    /// By a request with this body.
    pub fn of(endpoint: Endpoint, body: &Value) -> Expect {
        let choices = match endpoint {
            Endpoint::Chat | Endpoint::Completions => body["n"].as_u64().unwrap_or(1) as usize,
            Endpoint::Responses => 1,
        };
        Expect { endpoint, choices, max_tokens: body[endpoint.max_tokens()].as_u64() }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
    /// Of the completion's tokens, those of reasoning.
    pub reasoning_tokens: Option<u64>,
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
    /// Whether reasoning was shown, a piece of it at least.
    pub thought: bool,
    /// In the server's words: of a response its status, or why it is incomplete.
    pub finish_reason: Option<String>,
    pub usage: Option<Usage>,
    /// The server's words, if it ended the answer by an error.
    pub error: Option<String>,
    /// Whether each choice came to an end.
    pub finished: bool,
    pub violations: Vec<Violation>,
}

/// Of one answer; what is broken all along need not be kept all along.
const VIOLATIONS_KEPT: usize = 16;
const EXAMPLE_CHARS: usize = 300;

impl Checked {
    pub(super) fn note(&mut self, kind: ViolationKind, text: &str) {
        let before = self.violations.iter().filter(|violation| violation.kind == kind).count();
        if before < VIOLATIONS_KEPT {
            let example = text.chars().take(EXAMPLE_CHARS).collect();
            self.violations.push(Violation { kind, example });
        }
    }

    /// How a response of the Responses API ended, as its last object tells.
    pub(super) fn end_of_response(&mut self, response: &Value) {
        let status = response["status"].as_str();
        let reason = response["incomplete_details"]["reason"].as_str();
        if let Some(error) = response.get("error").filter(|error| !error.is_null()) {
            self.error = Some(words(error));
        } else if status == Some("failed") {
            self.error = Some("the response failed, without a word why".to_owned());
        }
        self.finished = matches!(status, Some("completed" | "incomplete"));
        self.finish_reason = reason.or(status).map(str::to_owned);
        self.usage = Usage::read(&response["usage"]);
        self.calls = calls_of_response(response);
    }

    /// Once it is whole. `pieces` came one by one, and every one is a token at least. One that was cut off may have fewer than
    /// max_tokens: servers cut that to what the context leaves.
    pub(super) fn check_usage(&mut self, expect: &Expect, pieces: u64) {
        let Some(usage) = self.usage else {
            return self.note(ViolationKind::UsageMissing, "the answer does not say its tokens");
        };
        let tokens = usage.completion_tokens;
        if pieces > tokens {
            let words = format!("{pieces} pieces of text, and {tokens} tokens by the server's count");
            self.note(ViolationKind::UsageIsNotWhatCame, &words);
        }
        let choices = expect.choices as u64;
        if let Some(max) = expect.max_tokens.filter(|max| tokens > *max * choices) {
            let words = format!("{max} tokens of {choices} choices were allowed, and {tokens} came");
            self.note(ViolationKind::UsageIsNotWhatCame, &words);
        }
    }
}

impl Usage {
    /// By the names of chat and completions, or by those of responses.
    pub(super) fn read(usage: &Value) -> Option<Usage> {
        let of = |names: [&str; 2]| names.into_iter().find_map(|name| usage[name].as_u64());
        let detail = |details: [&str; 2], name| details.into_iter().find_map(|of| usage[of][name].as_u64());
        Some(Usage {
            prompt_tokens: of(["prompt_tokens", "input_tokens"])?,
            completion_tokens: of(["completion_tokens", "output_tokens"])?,
            total_tokens: usage["total_tokens"].as_u64(),
            cached_tokens: detail(["prompt_tokens_details", "input_tokens_details"], "cached_tokens"),
            reasoning_tokens: detail(
                ["completion_tokens_details", "output_tokens_details"],
                "reasoning_tokens",
            ),
        })
    }

    pub(super) fn adds_up(&self) -> bool {
        self.total_tokens.is_none_or(|total| total == self.prompt_tokens + self.completion_tokens)
    }
}

/// What an error says, as OpenAI words it, or as it is.
pub(super) fn words(error: &Value) -> String {
    error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned)
}

/// The texts of a response's messages, one after the other.
pub(super) fn text_of_response(response: &Value) -> String {
    let parts = items(response, "message").filter_map(|item| item["content"].as_array()).flatten();
    parts.filter(|part| part["type"] == "output_text").filter_map(|part| part["text"].as_str()).collect()
}

fn calls_of_response(response: &Value) -> Vec<Call> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let call = |item: &Value| Call {
        id: text(&item["call_id"]),
        name: text(&item["name"]),
        arguments: text(&item["arguments"]),
    };
    items(response, "function_call").map(call).collect()
}

fn items<'a>(response: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    response["output"].as_array().into_iter().flatten().filter(move |item| item["type"] == kind)
}
