//! One choice: the tokens of its sequence, read one by one, as updates.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_scheduler::{FinishReason, Rejection};
use flotilla_shared::TokenId;
use flotilla_shared::step::Logprobs;
use futures::stream::{Stream, StreamExt, unfold};

use super::Api;
use super::error::ApiError;
use super::generate::{Ended, Finish, Update, Usage};
use super::log::RequestLog;
use super::metrics::Finished;
use super::onward::Onward;
use super::reader::{Delta, Reader};
use super::trace::ChoiceTimes;
use crate::driver::{Refusal, TokenEvent, TokenStream};
use crate::guide::Guide;

pub struct Choice {
    /// None once the choice has ended.
    tokens: Option<TokenStream>,
    /// While it may have to go on.
    onward: Option<Onward>,
    /// A guide that is followed from behind.
    watch: Option<Box<dyn Guide>>,
    went_on: bool,
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
        (onward, watch): (Option<Onward>, Option<Box<dyn Guide>>),
        reader: Box<dyn Reader>,
        times: ChoiceTimes,
        log: RequestLog,
    ) -> Choice {
        Choice {
            tokens: Some(tokens),
            onward,
            watch,
            went_on: false,
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
                TokenEvent::Token { token, logprobs, cached_tokens, queued } => {
                    self.queued(queued);
                    self.cached(cached_tokens);
                    let permitted = self.permits(token);
                    if permitted {
                        self.on_token(token, logprobs);
                    }
                    if !permitted || self.comes_to_bound_text() {
                        self.go_on_guided().await;
                    }
                }
                TokenEvent::Finished { reason: FinishReason::Deadline, .. } => {
                    self.fail(ApiError::Deadline, Finished::deadline);
                }
                TokenEvent::Finished { reason, usage } => {
                    self.queued(usage.queued);
                    self.cached(usage.cached_tokens);
                    if !self.go_on(reason).await {
                        self.end(reason == FinishReason::Length);
                    }
                }
                TokenEvent::Failed(failure) => self.fail(failure.into(), Finished::error),
            }
        }
        self.ready.pop_front()
    }

    /// What it waits before it goes on is told between two tokens.
    fn queued(&mut self, queued: Duration) {
        if self.times.ran.is_none() {
            self.api.metrics.queued(queued);
            self.times.ran = Some(self.times.submitted + queued);
        }
    }

    /// A prompt counts once in the log and in traces too, and as soon as it is known: not all come to their end. What it
    /// thought before it went on is found again, and is no part of the prompt.
    fn cached(&mut self, cached_tokens: usize) {
        if self.went_on {
            return;
        }
        let more = cached_tokens.saturating_sub(self.usage.cached_tokens);
        self.usage.cached_tokens = cached_tokens;
        if more > 0 && self.times.begins_prompt {
            self.log.note(|facts| facts.cached_tokens += more);
        }
    }

    /// Whether there is more to come of an answer that ended in its thought.
    async fn go_on(&mut self, reason: FinishReason) -> bool {
        let FinishReason::StopToken(end) = reason else { return false };
        let onward = self.onward.take().filter(|_| self.reader.only_thought());
        let next = onward.and_then(|onward| onward.answer(&self.api.harmony, end, Instant::now()));
        let Some(generation) = next else { return false };
        let said = generation.said.unwrap_or(0);
        match self.api.replicas.submit(generation).await {
            Ok(tokens) => self.tokens = Some(tokens),
            Err(refusal) => {
                let _span = self.log.span().enter();
                tracing::warn!(%refusal, "the answer ended in its thought, and could not go on");
                return false;
            }
        }
        self.went_on = true;
        self.log.note_added(said - self.usage.completion_tokens);
        self.usage.completion_tokens = said;
        self.reader.open_answer();
        true
    }

    /// Whether the guide that is followed from behind has nothing against it.
    fn permits(&mut self, token: TokenId) -> bool {
        let Some(watch) = &mut self.watch else { return true };
        let permits = watch.mask().is_ok_and(|mask| mask.is_none_or(|mask| mask.allows(token)));
        if permits {
            watch.advance(token);
        }
        permits
    }

    /// Whether the guide that is followed from behind is to be asked before the next token, if there is one.
    fn comes_to_bound_text(&self) -> bool {
        let binds = self.watch.as_ref().is_some_and(|watch| watch.binds());
        binds && self.tokens.is_some() && self.onward.as_ref().is_some_and(Onward::has_room)
    }

    /// Once more from what was said: nobody hears of a token that may not come, nor of what was sampled ahead.
    async fn go_on_guided(&mut self) {
        let (Some(onward), Some(guide)) = (self.onward.take(), self.watch.take()) else { return };
        let Some(generation) = onward.guided(guide, Instant::now()) else {
            return self.fail(ApiError::Deadline, Finished::deadline);
        };
        self.went_on = true;
        match self.api.replicas.submit(generation).await {
            Ok(tokens) => self.tokens = Some(tokens),
            // The group's cache is full with what was said, and less than the context.
            Err(Refusal::Rejected(Rejection::PromptTooLong { .. })) => self.end(true),
            Err(refusal) => self.fail(refusal.into(), Finished::error),
        }
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
        self.onward = self.onward.take().filter(|_| self.watch.is_some() || self.reader.only_thought());
        if let Some(onward) = &mut self.onward {
            onward.push(token);
        }
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
            if self.times.ran.is_none() {
                self.api.metrics.queued(self.times.submitted.elapsed());
            }
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
        self.log.note(|facts| facts.reasoning_tokens += usage.reasoning_tokens);
        self.ready.push_back(Update::Ended(Ended { finish, usage }));
    }
}

/// A client that left before the end.
impl Drop for Choice {
    fn drop(&mut self) {
        self.close(Finished::abort);
    }
}
