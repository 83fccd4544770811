//! The demo model answers as demo/expected.json says, over the API. Without the model this fails: a test
//! that passes by not running shows nothing.
//!
//! expected.json is a list; each entry has `messages` (or `prompt`, one user message), perhaps `tools` and
//! `reasoning_effort`, and what must come: `expect_final` (the whole answer), `expect_contains` (a part
//! of it), or `expect_tool_call` (`name`, and `arguments` as JSON). `current_date` is the day that the model
//! was told, the same for all.

mod support;

use serde::Deserialize;
use serde_json::{Value, json};
use support::client::{CHAT, Client};
use support::repository;
use support::server::Up;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    messages: Option<Vec<Value>>,
    prompt: Option<String>,
    tools: Option<Value>,
    reasoning_effort: Option<String>,
    current_date: String,
    /// Harmony as sampled then; the API does not show it.
    #[serde(rename = "greedy_text")]
    _greedy_text: Option<String>,
    /// Least distance of the first logit from the second, in f32.
    #[serde(rename = "min_margin")]
    _min_margin: f64,
    expect_final: Option<String>,
    expect_contains: Option<String>,
    expect_tool_call: Option<ToolCall>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolCall {
    name: String,
    arguments: Value,
}

impl Case {
    fn body(&self) -> Value {
        let messages = match (&self.messages, &self.prompt) {
            (Some(messages), None) => json!(messages),
            (None, Some(prompt)) => json!([{ "role": "user", "content": prompt }]),
            _ => panic!("either messages or a prompt: {self:?}"),
        };
        let mut body = json!({ "messages": messages, "temperature": 0 });
        for (field, value) in
            [("tools", json!(self.tools)), ("reasoning_effort", json!(self.reasoning_effort))]
        {
            if !value.is_null() {
                body[field] = value;
            }
        }
        body
    }

    /// What is wrong with the answer's choice.
    fn fault(&self, choice: &Value) -> Option<String> {
        let content = choice["message"]["content"].as_str().unwrap_or_default();
        let mut expectations = Vec::new();
        if let Some(text) = &self.expect_final {
            expectations.push((content.trim() == text.trim(), format!("the answer {text:?}")));
        }
        if let Some(text) = &self.expect_contains {
            expectations.push((content.contains(text), format!("an answer with {text:?}")));
        }
        if let Some(call) = &self.expect_tool_call {
            let function = &choice["message"]["tool_calls"][0]["function"];
            let arguments = function["arguments"].as_str().unwrap_or_default();
            let arguments = serde_json::from_str::<Value>(arguments).unwrap_or_default();
            let is_it = function["name"] == *call.name && arguments == call.arguments;
            expectations.push((is_it && choice["finish_reason"] == "tool_calls", format!("{call:?}")));
        } else {
            expectations.push((choice["finish_reason"] == "stop", "an end by itself".to_owned()));
        }
        assert!(self.expect_tool_call.is_some() || expectations.len() > 1, "nothing is expected of {self:?}");
        let missed = expectations.into_iter().find(|(met, _)| !met)?;
        Some(format!("expected {}, found {choice}", missed.1))
    }
}

#[tokio::test]
async fn the_demo_model_answers_as_expected() {
    let expected = std::fs::read_to_string(repository("demo/expected.json")).expect("demo/expected.json");
    let cases: Vec<Case> = serde_json::from_str(&expected).expect("demo/expected.json is a list of cases");
    assert!(!cases.is_empty());
    // The date is part of every prompt, so the answers belong to one.
    let date = &cases[0].current_date;
    assert!(cases.iter().all(|case| case.current_date == *date), "one server tells one date");
    for (workers, stages) in [("1", "1"), ("2", "1"), ("3", "1"), ("4", "2"), ("3", "3")] {
        let more = ["--workers", workers, "--stages", stages, "--current-date", date];
        let up = Up::start(&repository("demo/model"), &more).await;
        let client = Client::new(&up.url);
        let mut faults = Vec::new();
        for case in &cases {
            let answer = client.expect(CHAT, case.body()).await;
            faults.extend(case.fault(&answer["choices"][0]).map(|fault| format!("{case:?}\n{fault}")));
        }
        let count = faults.len();
        assert!(
            faults.is_empty(),
            "{workers} workers in {stages} stages, {count} of {}:\n{}",
            cases.len(),
            faults.join("\n\n")
        );
    }
}
