//! Bodies of requests.

use super::Target;
use crate::prompt::function;
use crate::stream::Endpoint;
use serde_json::{Value, json};

/// What is said so far, as messages of a chat whatever the endpoint is, and how the next answer is bound.
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
            body["input"] = chat.messages.iter().flat_map(items).collect();
            // What is said is sent with every turn; a load test is nothing that a server should keep.
            body["store"] = json!(false);
        }
    }
    if !target.whole && target.endpoint != Endpoint::Responses {
        body["stream_options"] = json!({ "include_usage": true });
        if target.counts_as_it_goes() {
            body["stream_options"]["continuous_usage_stats"] = json!(true);
        }
    }
    if let Some(max_tokens) = chat.max_tokens {
        body[target.endpoint.max_tokens()] = json!(max_tokens);
    }
    if let Some(must_call) = chat.tools {
        body["tools"] = json!([offered(target.endpoint)]);
        body["tool_choice"] = json!(if must_call { "required" } else { "none" });
    }
    if target.ignore_eos {
        body["ignore_eos"] = json!(true);
    }
    target.extra.iter().for_each(|(name, value)| body[name] = value.clone());
    body
}

fn offered(endpoint: Endpoint) -> Value {
    match endpoint {
        Endpoint::Responses => {
            let mut tool = function();
            tool["type"] = json!("function");
            tool
        }
        Endpoint::Chat | Endpoint::Completions => json!({ "type": "function", "function": function() }),
    }
}

/// A message in the words of the Responses API, where calls and their results stand by themselves.
fn items(message: &Value) -> Vec<Value> {
    if message["role"] == "tool" {
        let (call_id, output) = (&message["tool_call_id"], &message["content"]);
        return vec![json!({ "type": "function_call_output", "call_id": call_id, "output": output })];
    }
    let Some(calls) = message["tool_calls"].as_array() else { return vec![message.clone()] };
    let called = calls.iter().map(|call| {
        let (name, arguments) = (&call["function"]["name"], &call["function"]["arguments"]);
        json!({ "type": "function_call", "call_id": call["id"], "name": name, "arguments": arguments })
    });
    let said = message["content"].as_str().filter(|text| !text.is_empty());
    let said = said.map(|text| json!({ "role": message["role"], "content": text }));
    said.into_iter().chain(called).collect()
}

/// A raw completion has no messages: their texts, one after the other.
fn as_text(messages: &[Value]) -> String {
    let texts = messages.iter().filter_map(|message| message["content"].as_str());
    texts.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_results_are_items_of_their_own_for_responses() {
        let function = json!({ "name": "f", "arguments": "{}" });
        let calls = json!([{ "id": "c1", "type": "function", "function": function }]);
        let called = json!({ "type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}" });
        let silent = json!({ "role": "assistant", "content": "", "tool_calls": calls });
        assert_eq!(items(&silent), std::slice::from_ref(&called));
        let says = json!({ "role": "assistant", "content": "so", "tool_calls": calls });
        assert_eq!(items(&says), [json!({ "role": "assistant", "content": "so" }), called]);
        let told = json!({ "role": "tool", "tool_call_id": "c1", "content": "rain" });
        assert_eq!(
            items(&told),
            [json!({ "type": "function_call_output", "call_id": "c1", "output": "rain" })]
        );
        let user = json!({ "role": "user", "content": "hello" });
        assert_eq!(items(&user), [user]);
    }

    #[test]
    fn what_is_offered_is_the_same_by_both_ways() {
        let (chat, responses) = (offered(Endpoint::Chat), offered(Endpoint::Responses));
        assert_eq!((&chat["type"], &responses["type"]), (&json!("function"), &json!("function")));
        for field in ["name", "description", "parameters"] {
            assert_eq!(chat["function"][field], responses[field]);
        }
    }
}
