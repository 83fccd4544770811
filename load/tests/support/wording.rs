//! What the scripted server says, in the words of each endpoint.

use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Endpoint {
    Chat,
    Completions,
    Responses,
}

/// Of one answer: so many times the same word, until its tokens run out.
pub struct Wording {
    pub id: String,
    pub endpoint: Endpoint,
    pub prompt_tokens: u64,
    pub tokens: u64,
    /// So many of them come first, and show nothing.
    pub hidden: u64,
    /// Usage stands in every chunk.
    pub continuous: bool,
}

const WORD: &str = " a";

impl Wording {
    /// What comes before the first piece.
    pub fn begin(&self) -> Vec<String> {
        match self.endpoint {
            Endpoint::Responses => vec![self.event(0, "response.created", self.response("in_progress", ""))],
            _ => Vec::new(),
        }
    }

    pub fn pieces(&self) -> u64 {
        self.tokens - self.hidden
    }

    pub fn piece(&self, index: u64) -> String {
        let choice = match self.endpoint {
            Endpoint::Chat => json!({ "index": 0, "delta": { "content": WORD }, "finish_reason": null }),
            Endpoint::Completions => json!({ "index": 0, "text": WORD, "finish_reason": null }),
            Endpoint::Responses => {
                return self.event(index + 1, "response.output_text.delta", json!({ "delta": WORD }));
            }
        };
        let usage = if self.continuous { self.usage(self.hidden + index + 1) } else { Value::Null };
        self.chunk(json!([choice]), usage)
    }

    /// What comes after the last, without `[DONE]`.
    pub fn end(&self) -> Vec<String> {
        let choice = match self.endpoint {
            Endpoint::Chat => json!({ "index": 0, "delta": {}, "finish_reason": "length" }),
            Endpoint::Completions => json!({ "index": 0, "text": "", "finish_reason": "length" }),
            Endpoint::Responses => {
                let response = self.response("incomplete", &self.text());
                return vec![self.event(self.pieces() + 1, "response.incomplete", response)];
            }
        };
        vec![self.chunk(json!([choice]), Value::Null), self.chunk(json!([]), self.usage(self.tokens))]
    }

    /// All of it as one body.
    pub fn whole(&self) -> String {
        let text = self.text();
        let choice = match self.endpoint {
            Endpoint::Chat => {
                json!({ "index": 0, "message": { "content": text }, "finish_reason": "length" })
            }
            Endpoint::Completions => json!({ "index": 0, "text": text, "finish_reason": "length" }),
            Endpoint::Responses => return self.response("incomplete", &text)["response"].to_string(),
        };
        let object = if self.endpoint == Endpoint::Chat { "chat.completion" } else { "text_completion" };
        self.body(object, json!([choice]), self.usage(self.tokens))
    }

    fn text(&self) -> String {
        WORD.repeat(self.pieces() as usize)
    }

    fn usage(&self, tokens: u64) -> Value {
        let (prompt, completion) = match self.endpoint {
            Endpoint::Responses => ("input_tokens", "output_tokens"),
            _ => ("prompt_tokens", "completion_tokens"),
        };
        json!({
            prompt: self.prompt_tokens,
            completion: tokens,
            "total_tokens": self.prompt_tokens + tokens,
        })
    }

    fn chunk(&self, choices: Value, usage: Value) -> String {
        self.body(
            if self.endpoint == Endpoint::Chat { "chat.completion.chunk" } else { "text_completion" },
            choices,
            usage,
        )
    }

    /// `object`: other clients look at it.
    fn body(&self, object: &str, choices: Value, usage: Value) -> String {
        let mut fields = json!({ "id": self.id, "object": object, "created": 1, "model": "scripted" });
        (fields["choices"], fields["usage"]) = (choices, usage);
        fields.to_string()
    }

    fn event(&self, number: u64, name: &str, mut fields: Value) -> String {
        fields["type"] = json!(name);
        fields["sequence_number"] = json!(number);
        fields.to_string()
    }

    fn response(&self, status: &str, text: &str) -> Value {
        let is_over = status != "in_progress";
        let message = json!({ "type": "message", "content": [{ "type": "output_text", "text": text }] });
        json!({ "response": {
            "id": self.id,
            "model": "scripted",
            "status": status,
            "incomplete_details": is_over.then(|| json!({ "reason": "max_output_tokens" })),
            "output": is_over.then_some([message]),
            "usage": is_over.then(|| self.usage(self.tokens)),
        }})
    }
}
