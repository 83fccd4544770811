//! Bodies of requests.

use super::Target;
use crate::prompt::tools;
use crate::stream::Endpoint;
use serde_json::{Value, json};

/// What is said so far, and how the next answer is bound.
#[derive(Debug)]
pub struct Chat<'a> {
    pub messages: &'a [Value],
    pub max_tokens: Option<usize>,
    /// The function is offered: the model must call it, or must not.
    pub tools: Option<bool>,
}

pub fn body(target: &Target, chat: &Chat) -> Value {
    let mut body = json!({ "model": target.model, "stream": !target.whole });
    match target.endpoint {
        Endpoint::Chat => body["messages"] = json!(chat.messages),
        Endpoint::Completions => body["prompt"] = json!(as_text(chat.messages)),
        Endpoint::Responses => {
            body["input"] = json!(chat.messages);
            // What is said is sent with every turn; a load test is nothing that a server should keep.
            body["store"] = json!(false);
        }
    }
    if !target.whole && target.endpoint != Endpoint::Responses {
        body["stream_options"] = json!({ "include_usage": true });
    }
    if let Some(max_tokens) = chat.max_tokens {
        body[target.endpoint.max_tokens()] = json!(max_tokens);
    }
    if let Some(must_call) = chat.tools {
        body["tools"] = tools();
        body["tool_choice"] = json!(if must_call { "required" } else { "none" });
    }
    if target.ignore_eos {
        body["ignore_eos"] = json!(true);
    }
    target.extra.iter().for_each(|(name, value)| body[name] = value.clone());
    body
}

/// A raw completion has no messages: their texts, one after the other.
fn as_text(messages: &[Value]) -> String {
    let texts = messages.iter().filter_map(|message| message["content"].as_str());
    texts.collect::<Vec<_>>().join("\n")
}
