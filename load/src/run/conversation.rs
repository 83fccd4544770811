//! One conversation: its turns, one after the other, with the server's answers between.

use super::{Asking, Live};
use crate::client::{Answer, Chat, Clock, body};
use crate::prompt::{Script, TOOL_RESULT, Turn};
use crate::record::{Outcome, Record};
use crate::span;
use crate::stream::Expect;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep_until;

/// What all requests of a run share.
pub struct Scene<'a> {
    pub asking: &'a Asking,
    pub clock: Clock,
    pub live: &'a Live,
    /// Becomes true when the run is ended from outside.
    pub stop: watch::Receiver<bool>,
}

impl Scene<'_> {
    /// Whether it came before the run was ended.
    pub async fn unless_stopped<T>(&self, comes: impl Future<Output = T>) -> bool {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            Ok(_) = stop.wait_for(|stop| *stop) => false,
            _ = comes => true,
        }
    }

    /// Waits until the clock shows so much; false if the run was ended before.
    async fn reach(&self, due_us: u64) -> bool {
        let is_now = self.clock.us() >= due_us && !*self.stop.borrow();
        is_now || self.unless_stopped(sleep_until(self.clock.at(due_us).into())).await
    }

    /// Every request of it that was sent. A failed one ends it.
    pub async fn converse(&self, number: u64, script: Script, due_us: u64) -> Vec<Record> {
        let mut talk =
            Talk { number, messages: Vec::new(), due_us, tools: script.tools, records: Vec::new() };
        for turn in &script.turns {
            talk.messages.extend(turn.messages.iter().cloned());
            if !self.turn(&mut talk, turn).await {
                break;
            }
        }
        talk.records
    }

    /// One turn, which is two requests if a function is called.
    async fn turn(&self, talk: &mut Talk, turn: &Turn) -> bool {
        if !self.request(talk, turn, talk.tools.then_some(true)).await {
            return false;
        }
        let calls = talk.messages.last().and_then(|message| message["tool_calls"].as_array()).cloned();
        // One that was cut off cannot be followed.
        let reason = talk.records.last().and_then(|record| record.finish_reason.as_deref());
        let whole = !matches!(reason, Some("length" | "max_output_tokens"));
        let Some(calls) = calls.filter(|_| talk.tools && whole) else { return true };
        for call in &calls {
            talk.messages.push(json!({ "role": "tool", "tool_call_id": call["id"], "content": TOOL_RESULT }));
        }
        let after = Turn { prompt_tokens: None, ..turn.clone() };
        self.request(talk, &after, Some(false)).await
    }

    async fn request(&self, talk: &mut Talk, turn: &Turn, tools: Option<bool>) -> bool {
        if !self.reach(talk.due_us).await {
            return false;
        }
        let chat = Chat { messages: &talk.messages, max_tokens: turn.max_tokens, tools };
        let body = body(&self.asking.target, &chat);
        self.live.sent();
        let mut answer = Answer { sent_us: self.clock.us(), ..Answer::default() };
        let mut stop = self.stop.clone();
        let stopped = tokio::select! {
            biased;
            Ok(_) = stop.wait_for(|stop| *stop) => true,
            () = self.asking.target.ask(&body, self.clock, self.live, &mut answer) => false,
        };
        if stopped {
            answer.ended_us = self.clock.us();
        }
        self.live.ended(!stopped && answer.failure.is_none());
        let choices = Expect::of(self.asking.target.endpoint, &body).choices;
        talk.hear(answer, turn, choices, stopped, span::us(self.asking.think))
    }
}

struct Talk {
    number: u64,
    messages: Vec<Value>,
    due_us: u64,
    tools: bool,
    records: Vec<Record>,
}

impl Talk {
    /// Notes what came, and goes on from there. Whether it can.
    fn hear(&mut self, answer: Answer, turn: &Turn, choices: usize, stopped: bool, think_us: u64) -> bool {
        let usage = answer.checked.usage;
        // Counted by the server, and never sent.
        let hidden = usage.and_then(|usage| usage.reasoning_tokens).filter(|_| !answer.checked.thought);
        let hidden_tokens = hidden.unwrap_or(0);
        let outcome = match answer.failure {
            _ if stopped => Outcome::Stopped,
            Some((kind, words)) => Outcome::Failed { kind, words },
            None => Outcome::Done,
        };
        self.records.push(Record {
            conversation: self.number,
            turn: self.records.len(),
            due_us: self.due_us,
            sent_us: answer.sent_us,
            ended_us: answer.ended_us,
            pieces_us: answer.pieces_us,
            prompt_tokens_wanted: turn.prompt_tokens.map(|tokens| tokens as u64),
            prompt_tokens: usage.map(|usage| usage.prompt_tokens),
            cached_tokens: usage.and_then(|usage| usage.cached_tokens),
            completion_tokens: usage.map(|usage| usage.completion_tokens),
            hidden_tokens,
            tokens_between: answer.tokens_between,
            choices: choices as u64,
            finish_reason: answer.checked.finish_reason,
            outcome: outcome.clone(),
            violations: answer.checked.violations,
        });
        self.due_us = answer.ended_us + think_us;
        let mut said = json!({ "role": "assistant", "content": answer.checked.text });
        if !answer.checked.calls.is_empty() {
            let calls = answer.checked.calls.iter().map(|call| {
                let function = json!({ "name": call.name, "arguments": call.arguments });
                json!({ "id": call.id, "type": "function", "function": function })
            });
            said["tool_calls"] = calls.collect();
        }
        self.messages.push(said);
        outcome == Outcome::Done
    }
}
