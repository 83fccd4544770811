//! A chat's answer in OpenAI's words. Reasoning goes by two names, since clients are divided:
//! `reasoning_content` (DeepSeek's, vLLM's until lately) and `reasoning` (OpenRouter's, vLLM's).

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::Api;
use crate::api::answer::Wording;
use crate::api::generate::Ended;
use crate::api::logprobs::{self, Likelihood};
use crate::api::reader::Delta;

pub struct ChatWording {
    pub api: Arc<Api>,
    /// Whether the client asked for logprobs.
    pub logprobs: bool,
}

impl Wording for ChatWording {
    const OBJECT: &'static str = "chat.completion";
    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";

    fn choice(&self, index: usize, deltas: Vec<Delta>, ended: Ended) -> Value {
        let likelihoods = deltas.iter().flat_map(|delta| match delta {
            Delta::Content { logprobs, .. } => logprobs.as_slice(),
            _ => &[],
        });
        let likelihoods: Vec<Likelihood> = likelihoods.cloned().collect();
        json!({
            "index": index,
            "message": self.message(deltas),
            "logprobs": self.logprobs(&likelihoods),
            "finish_reason": ended.finish.as_str(),
        })
    }

    fn opening(&self, index: usize) -> Option<Value> {
        Some(entry(index, json!({"role": "assistant", "content": ""}), None))
    }

    fn delta(&self, index: usize, delta: Delta) -> Value {
        let delta = match delta {
            Delta::Reasoning(text) => json!({"reasoning_content": text, "reasoning": text}),
            Delta::Content { text, logprobs } => {
                let mut entry = entry(index, json!({"content": text}), None);
                entry["logprobs"] = self.logprobs(&logprobs);
                return entry;
            }
            Delta::Call { call, name } => json!({"tool_calls": [{
                "index": call,
                "id": self.call_id(),
                "type": "function",
                "function": {"name": name, "arguments": ""},
            }]}),
            Delta::Arguments { call, text } => json!({"tool_calls": [{
                "index": call,
                "function": {"arguments": text},
            }]}),
        };
        entry(index, delta, None)
    }

    fn closing(&self, index: usize, ended: Ended) -> Value {
        entry(index, json!({}), Some(ended.finish.as_str()))
    }
}

impl ChatWording {
    fn logprobs(&self, likelihoods: &[Likelihood]) -> Value {
        if self.logprobs { logprobs::chat(self.api.harmony.tokenizer(), likelihoods) } else { Value::Null }
    }

    fn message(&self, deltas: Vec<Delta>) -> Value {
        let (mut reasoning, mut content) = (String::new(), String::new());
        let mut calls: Vec<(String, String)> = Vec::new();
        for delta in deltas {
            match delta {
                Delta::Reasoning(text) => reasoning.push_str(&text),
                Delta::Content { text, .. } => content.push_str(&text),
                Delta::Call { name, .. } => calls.push((name, String::new())),
                Delta::Arguments { call, text } => calls[call].1.push_str(&text),
            }
        }
        let reasoning = Some(reasoning).filter(|text| !text.is_empty());
        // OpenAI's message has null where calls took the place of content.
        let content = Some(content).filter(|text| !text.is_empty() || calls.is_empty());
        let mut message = json!({
            "role": "assistant",
            "content": content,
            "refusal": null,
            "reasoning_content": reasoning,
            "reasoning": reasoning,
        });
        if !calls.is_empty() {
            message["tool_calls"] = calls.into_iter().map(|call| self.call(call)).collect();
        }
        message
    }

    fn call(&self, (name, arguments): (String, String)) -> Value {
        json!({
            "id": self.call_id(),
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        })
    }

    fn call_id(&self) -> String {
        self.api.ids.name("call_")
    }
}

fn entry(index: usize, delta: Value, finish_reason: Option<&str>) -> Value {
    json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": finish_reason})
}
