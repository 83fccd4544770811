//! The spans of a request: one for the whole of it, and for each choice the time in the queue, the prompt, and the answer.

use std::time::Instant;

use axum::http::HeaderMap;

use super::metrics::Finished;
use crate::traces::{Context, Kind, Parent, Span, Tracer};

/// A request that is traced.
#[derive(Clone)]
pub struct RequestTrace {
    tracer: Tracer,
    context: Context,
    parent: Option<Parent>,
}

impl RequestTrace {
    /// None: it is not to be told of.
    pub fn begin(tracer: &Tracer, headers: &HeaderMap) -> Option<RequestTrace> {
        if !tracer.is_on() {
            return None;
        }
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let state = header("tracestate").unwrap_or_default();
        let parent = header("traceparent").and_then(|text| Parent::read(text, state));
        let context = tracer.begin(parent.as_ref())?;
        Some(RequestTrace { tracer: tracer.clone(), context, parent })
    }

    pub fn context(&self) -> Context {
        self.context
    }

    /// The whole of it, from `began` to now; its attributes are the caller's.
    pub fn whole(&self, name: String, began: Instant) -> Span {
        let (start, end) = (self.tracer.unix_ns(began), self.tracer.unix_ns(Instant::now()));
        Span {
            name,
            context: self.context,
            parent: self.parent.as_ref().map(|parent| parent.span),
            kind: Kind::Server,
            state: self.parent.as_ref().map(|parent| parent.state.clone()).unwrap_or_default(),
            ..Span::within(self.context, "", (start, end))
        }
    }

    pub fn tell(&self, span: Span) {
        self.tracer.tell(span);
    }

    /// A choice is over.
    pub fn choice(&self, choice: &ChoiceTimes, finished: Finished) {
        let now = Instant::now();
        let within = |name: &str, start: Instant, end: Instant| {
            let span =
                Span::within(self.context, name, (self.tracer.unix_ns(start), self.tracer.unix_ns(end)));
            span.with("flotilla.choice", choice.index)
        };
        let first = choice.first_token.unwrap_or(now);
        let ran = choice.ran.unwrap_or(now).min(first);
        self.tell(within("queue", choice.submitted, ran));
        if choice.ran.is_none() {
            return;
        }
        let prefill = within("prefill", ran, first)
            .with("gen_ai.usage.input_tokens", choice.prompt_tokens)
            .with("flotilla.cached_tokens", choice.cached_tokens);
        self.tell(prefill);
        if let Some(first) = choice.first_token {
            let mut decode = within("decode", first, now)
                .with("gen_ai.usage.output_tokens", choice.generated_tokens)
                .with("gen_ai.response.finish_reason", finished.as_str());
            decode.events.push((self.tracer.unix_ns(first), "first token"));
            self.tell(decode);
        }
    }
}

/// When what happened to a choice.
pub struct ChoiceTimes {
    pub index: usize,
    /// Of several of one prompt the first.
    pub begins_prompt: bool,
    pub submitted: Instant,
    /// It had its first place in a step. None: it is told with the first token, or with the end.
    pub ran: Option<Instant>,
    pub first_token: Option<Instant>,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub generated_tokens: usize,
}
