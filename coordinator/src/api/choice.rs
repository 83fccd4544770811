//! One choice: the tokens of its sequence, read one by one, as updates.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_scheduler::FinishReason;
use flotilla_shared::TokenId;
use flotilla_shared::step::Logprobs;
use futures::stream::{Stream, StreamExt, unfold};

use super::Api;
use super::error::ApiError;
use super::generate::{Ended, Finish, Update, Usage};
use super::log::RequestLog;
use super::metrics::Finished;
use super::reader::{Delta, Reader};
use super::trace::ChoiceTimes;
use crate::driver::{TokenEvent, TokenStream};

pub struct Choice {
    /// None once the choice has ended.
    tokens: Option<TokenStream>,
    reader: Box<dyn Reader>,
    usage: Usage,
    ready: VecDeque<Update>,
    last_token: Option<Instant>,
    times: ChoiceTimes,
    log: RequestLog,
    api: Arc<Api>,
}

impl Choice {
    pub fn new(
        api: &Arc<Api>,
        tokens: TokenStream,
        reader: Box<dyn Reader>,
        times: ChoiceTimes,
        log: RequestLog,
    ) -> Choice {
        Choice {
            tokens: Some(tokens),
            reader,
            usage: Usage { prompt_tokens: times.prompt_tokens, ..Usage::default() },
            ready: VecDeque::new(),
            last_token: None,
            times,
            log,
            api: Arc::clone(api),
        }
    }

    pub fn updates(self, index: usize) -> Pin<Box<dyn Stream<Item = (usize, Update)> + Send>> {
        unfold(self, |mut choice| async { choice.next().await.map(|update| (update, choice)) })
            .map(move |update| (index, update))
            .boxed()
    }

    async fn next(&mut self) -> Option<Update> {
        while self.ready.is_empty() {
            match self.tokens.as_mut()?.next().await {
                TokenEvent::Token { token, logprobs, cached_tokens } => {
                    self.usage.cached_tokens = cached_tokens;
                    self.on_token(token, logprobs);
                }
                TokenEvent::Finished { reason: FinishReason::Deadline, usage } => {
                    self.queued(usage.queued);
                    self.fail(ApiError::Deadline, Finished::deadline);
                }
                TokenEvent::Finished { reason, usage } => {
                    self.queued(usage.queued);
                    self.usage.cached_tokens = usage.cached_tokens;
                    self.end(reason == FinishReason::Length);
                }
                TokenEvent::Failed(failure) => self.fail(failure.into(), Finished::error),
            }
        }
        self.ready.pop_front()
    }

    fn queued(&mut self, queued: Duration) {
        self.api.metrics.queued(queued);
        self.times.ran = Some(self.times.submitted + queued);
    }

    fn fail(&mut self, error: ApiError, finished: Finished) {
        self.close(finished);
        self.ready.push_back(Update::Failed(error));
    }

    fn on_token(&mut self, token: TokenId, logprobs: Option<Logprobs>) {
        self.usage.completion_tokens += 1;
        self.log.note_token(&mut self.last_token);
        self.times.first_token = self.times.first_token.or(self.last_token);
        let deltas = self.reader.push(token, logprobs);
        self.give(deltas);
        if self.reader.done() {
            self.end(false);
        }
    }

    fn give(&mut self, deltas: Vec<Delta>) {
        self.usage.reasoning_tokens = self.reader.reasoning_tokens();
        let usage = self.usage;
        self.ready.extend(deltas.into_iter().map(|delta| Update::Delta { delta, usage }));
    }

    /// Drops the token stream, which cancels the sequence if it is not done.
    fn close(&mut self, finished: Finished) {
        if self.tokens.take().is_some() {
            self.api.metrics.finished(finished);
            if let Some(trace) = self.log.trace() {
                self.times.cached_tokens = self.usage.cached_tokens;
                self.times.generated_tokens = self.usage.completion_tokens;
                trace.choice(&self.times, finished);
            }
        }
    }

    fn end(&mut self, at_length: bool) {
        self.close(if at_length { Finished::length } else { Finished::stop });
        let deltas = self.reader.finish();
        self.give(deltas);
        let finish = match self.reader.calls() {
            _ if at_length && !self.reader.done() => Finish::Length,
            0 => Finish::Stop,
            _ => Finish::ToolCalls,
        };
        let usage = self.usage;
        self.log.note(|facts| {
            facts.cached_tokens += usage.cached_tokens;
            facts.reasoning_tokens += usage.reasoning_tokens;
        });
        self.ready.push_back(Update::Ended(Ended { finish, usage }));
    }
}

/// A client that left before the end.
impl Drop for Choice {
    fn drop(&mut self) {
        self.close(Finished::abort);
    }
}
