//! What clients ask: greedy and seeded, with and without penalties, and answers that are kept to a form; and what each
//! is answered without a fault.

use crate::dice::Dice;
use crate::support::client::{CHAT, COMPLETIONS, Client, Stream};
use serde_json::{Value, json};
use std::fmt;
use std::time::Duration;
use tokio::time::sleep;

pub struct Requests(Vec<Asked>);

#[derive(Clone)]
pub struct Asked {
    name: &'static str,
    path: &'static str,
    body: Value,
    /// What is said to it without a fault.
    expected: Said,
    /// Before it is asked.
    pause: Duration,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} after {:?}", self.name, self.pause)
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    text: String,
    finish_reason: Option<String>,
    completion_tokens: u64,
}

fn all() -> Vec<(&'static str, &'static str, Value)> {
    let completion = |prompt: &str, tokens: usize, more: Value| {
        let mut body = json!({ "prompt": prompt, "max_tokens": tokens });
        more.as_object().expect("an object").iter().for_each(|(name, value)| body[name] = value.clone());
        body
    };
    let long = "once there were many words of many kinds ".repeat(40);
    let numbers = json!({
        "type": "object",
        "properties": { "n": { "type": "array", "items": { "type": "integer" }, "minItems": 30, "maxItems": 30 } },
        "required": ["n"],
        "additionalProperties": false,
    });
    let form = json!({
        "messages": [{ "role": "user", "content": "Numbers, please" }],
        "max_tokens": 400,
        "seed": 5,
        "response_format": { "type": "json_schema", "json_schema": { "name": "numbers", "schema": numbers } },
    });
    let seeded = json!({ "temperature": 1.0, "seed": 11 });
    let cut = json!({ "temperature": 0.8, "seed": 3, "top_p": 0.9, "top_k": 50 });
    let penalties =
        json!({ "temperature": 0.7, "seed": 4, "presence_penalty": 1.0, "frequency_penalty": 0.5 });
    let greedy = json!({ "temperature": 0 });
    vec![
        ("greedy", COMPLETIONS, completion("Once upon a time", 200, greedy.clone())),
        ("greedy, long prompt", COMPLETIONS, completion(&long, 60, greedy.clone())),
        ("greedy, short", COMPLETIONS, completion("The end", 5, greedy)),
        ("seeded", COMPLETIONS, completion("The quick brown fox", 250, seeded.clone())),
        ("seeded, long prompt", COMPLETIONS, completion(&(long + "and"), 120, seeded)),
        ("seeded, cut", COMPLETIONS, completion("0 1 2 3", 150, cut)),
        ("seeded, penalties", COMPLETIONS, completion("Hello", 180, penalties)),
        ("kept to a form", CHAT, form),
    ]
}

impl Requests {
    pub async fn answered_undisturbed(client: &Client) -> Requests {
        let mut requests = Vec::new();
        for (name, path, body) in all() {
            let mut stream = client.stream(path, with_usage(&body)).await;
            let expected = said(&mut stream).await.expect("nothing is wrong yet");
            assert!(expected.completion_tokens > 0, "{name}: {expected:?}");
            requests.push(Asked { name, path, body, expected, pause: Duration::ZERO });
        }
        Requests(requests)
    }

    pub fn pick(&self, dice: &mut Dice) -> Asked {
        let mut asked = self.0[dice.below(self.0.len() as u64) as usize].clone();
        asked.pause = Duration::from_millis(dice.below(100));
        asked
    }
}

fn with_usage(body: &Value) -> Value {
    let mut body = body.clone();
    body["stream_options"] = json!({ "include_usage": true });
    body
}

/// Asks until it is taken in, and compares; says how often it was told to come again.
pub async fn stream(client: Client, asked: Asked) -> Result<u64, String> {
    sleep(asked.pause).await;
    let mut refused = 0;
    let mut stream = loop {
        match client.try_stream(asked.path, with_usage(&asked.body)).await? {
            Ok(stream) => break stream,
            Err(503) => refused += 1,
            Err(status) => return Err(format!("{}: status {status}", asked.name)),
        }
        sleep(Duration::from_millis(50)).await;
    };
    let found = said(&mut stream).await.map_err(|problem| format!("{}: {problem}", asked.name))?;
    if found != asked.expected {
        return Err(format!("{}: another answer:\n{found:?}\nexpected:\n{:?}", asked.name, asked.expected));
    }
    Ok(refused)
}

async fn said(stream: &mut Stream) -> Result<Said, String> {
    let mut said = Said::default();
    while let Some(chunk) = stream.next().await {
        if !chunk["error"].is_null() {
            return Err(format!("{}", chunk["error"]));
        }
        let choice = &chunk["choices"][0];
        let text = choice["text"].as_str().or(choice["delta"]["content"].as_str());
        let thought = choice["delta"]["reasoning_content"].as_str().or(choice["delta"]["reasoning"].as_str());
        said.text.extend([thought, text].into_iter().flatten());
        if let Some(reason) = choice["finish_reason"].as_str() {
            said.finish_reason = Some(reason.to_owned());
        }
        if let Some(tokens) = chunk["usage"]["completion_tokens"].as_u64() {
            said.completion_tokens = tokens;
        }
    }
    Ok(said)
}
