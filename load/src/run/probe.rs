//! Before the run: a few requests that find out how the server counts, and whether it knows `ignore_eos`.

use super::{Live, Plan, run};
use crate::chance::Chance;
use crate::client::{Answer, Chat, Clock, Target, body};
use crate::prompt::{Prompts, user};
use crate::record::ErrorKind;
use crate::stream::Endpoint;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::watch;

/// What was asked before anything was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub requests: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// The server refuses it, and it is left out.
    pub ignore_eos_refused: bool,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the server did not answer a first request as it should ({kind}): {words}\nhint: is {url} the server's address, without /v1, and {model} a model of it?"
)]
pub struct ProbeError {
    kind: String,
    words: String,
    url: String,
    model: String,
}

const IGNORE_EOS: &str = "ignore_eos";
const FEW_WORDS: usize = 32;
const MANY_WORDS: usize = 96;
/// OpenAI's Responses API takes no smaller limit.
const RESPONSE_TOKENS: usize = 16;

/// Asks, and learns. The target's `ignore_eos` and `continuous_usage` are taken back where they are refused.
pub async fn probe(target: &mut Target, prompts: &mut Prompts) -> Result<Probe, ProbeError> {
    let mut probe = Probe::default();
    let Prompts::Synthetic(synthetic) = prompts else {
        ask(target, "hello", None, &mut probe).await?;
        return Ok(probe);
    };
    let counts: &[usize] = if synthetic.writer.is_exact() { &[FEW_WORDS] } else { &[FEW_WORDS, MANY_WORDS] };
    let mut found = Vec::new();
    for &count in counts {
        let text = synthetic.writer.text(count, &mut Chance::of(u64::MAX, count as u64));
        // What is offered stands in the prompt too.
        let tools = synthetic.tools.then_some(true);
        if let Some(tokens) = ask(target, &text, tools, &mut probe).await? {
            found.push((count, tokens));
        }
    }
    synthetic.writer.learn(&found);
    Ok(probe)
}

/// The tokens that the server counts in a prompt.
async fn ask(
    target: &mut Target,
    text: &str,
    tools: Option<bool>,
    probe: &mut Probe,
) -> Result<Option<u64>, ProbeError> {
    let max_tokens = if target.endpoint == Endpoint::Responses { RESPONSE_TOKENS } else { 1 };
    let chat = Chat { messages: &[user(text)], max_tokens: Some(max_tokens), tools };
    let mut answer = send(target, &chat, probe).await;
    while let Some(failure) = answer.failure.as_ref().filter(|failure| take_back(target, failure)) {
        probe.ignore_eos_refused |= failure.1.contains(IGNORE_EOS);
        answer = send(target, &chat, probe).await;
    }
    match answer.failure {
        None => Ok(answer.checked.usage.map(|usage| usage.prompt_tokens)),
        Some((kind, words)) => Err(ProbeError {
            kind: kind.to_string(),
            words,
            url: target.url.clone(),
            model: target.model.clone(),
        }),
    }
}

/// What the server does not know is asked for no more; whether there was any of it.
fn take_back(target: &mut Target, (kind, words): &(ErrorKind, String)) -> bool {
    if target.ignore_eos && words.contains(IGNORE_EOS) {
        target.ignore_eos = false;
        return true;
    }
    // Not every server says what it does not know.
    let refuses = matches!(kind, ErrorKind::Status(400 | 422));
    refuses && std::mem::take(&mut target.continuous_usage)
}

async fn send(target: &Target, chat: &Chat<'_>, probe: &mut Probe) -> Answer {
    let mut answer = Answer::default();
    target.ask(&body(target, chat), Clock::start(), &Live::default(), &mut answer).await;
    probe.count(&answer);
    answer
}

impl Probe {
    fn count(&mut self, answer: &Answer) {
        let usage = answer.checked.usage.unwrap_or_default();
        self.requests += 1;
        self.prompt_tokens += usage.prompt_tokens;
        self.completion_tokens += usage.completion_tokens;
    }
}

/// Conversations as the run has them, before it; they count as asked before.
pub async fn warm_up(plan: Plan, live: Arc<Live>, stop: watch::Receiver<bool>, probe: &mut Probe) {
    for record in run(plan, Clock::start(), live, stop).await.records {
        probe.requests += 1;
        probe.prompt_tokens += record.prompt_tokens.unwrap_or(0);
        probe.completion_tokens += record.completion_tokens.unwrap_or(0);
    }
}
