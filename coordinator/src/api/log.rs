//! One line for each request, written when everything about it is over, streams included: counts and
//! durations, never a word of a prompt or an answer. The name of the request goes back to the client, and stands in every
//! line that is about it. With `--log-prompts` the beginnings of prompts are written too.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use flotilla_scheduler::ClientId;
use flotilla_shared::TokenId;
use tracing::{Instrument, Span};

use super::Api;
use super::error::ApiError;
use super::metrics::Metrics;
use super::trace::RequestTrace;
use crate::keys::Visit;
use crate::service::Underway;
use crate::tokenizer::Tokenizer;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Of a client's own name for its request; longer ones are replaced.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// Of a prompt that is shown.
const SHOWN_TOKENS_MAX: usize = 256;
const SHOWN_CHARS_MAX: usize = 500;

/// The line to be. Whoever works on the request holds a clone; the last one dropped writes it.
#[derive(Clone)]
pub struct RequestLog(Arc<Entry>);

struct Entry {
    id: HeaderValue,
    method: Method,
    path: String,
    began: Instant,
    facts: Mutex<Facts>,
    /// On whose account, where keys are asked for.
    visit: OnceLock<Visit>,
    /// What a server that stops waits for.
    underway: OnceLock<Underway>,
    metrics: Arc<Metrics>,
    span: Span,
    /// If it is traced.
    trace: Option<RequestTrace>,
    /// As it is routed.
    route: Option<MatchedPath>,
}

/// What is known when the line is written.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    status: Option<u16>,
    error: Option<&'static str>,
    pub stream: bool,
    pub choices: usize,
    /// The queue took all of its choices.
    pub taken_in: bool,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub completion_tokens: usize,
    pub reasoning_tokens: usize,
    /// From the request's arrival.
    first_token: Option<Duration>,
    /// The answer reached its end; else the client left before.
    pub complete: bool,
}

impl RequestLog {
    pub fn note(&self, note: impl FnOnce(&mut Facts)) {
        note(&mut self.0.facts());
    }

    /// `last`: when the sequence's token before this one came.
    pub fn note_token(&self, last: &mut Option<Instant>) {
        let now = Instant::now();
        if let Some(last) = last.replace(now) {
            self.0.metrics.next_token(now - last);
        }
        let mut facts = self.0.facts();
        facts.completion_tokens += 1;
        if facts.first_token.is_none() {
            let after = now - self.0.began;
            facts.first_token = Some(after);
            self.0.metrics.first_token(after);
        }
        drop(facts);
        if let Some(visit) = self.visit() {
            visit.spend_token();
        }
    }

    /// Tokens of an answer that the server wrote.
    pub fn note_added(&self, count: usize) {
        self.0.facts().completion_tokens += count;
        if let Some(visit) = self.visit() {
            (0..count).for_each(|_| visit.spend_token());
        }
    }

    /// The request is on a key's account until all about it is over.
    pub fn begin_visit(&self, visit: Visit) {
        self.0.visit.set(visit).expect("a request has one key");
    }

    pub fn visit(&self) -> Option<&Visit> {
        self.0.visit.get()
    }

    /// Whose request it is; all who have no key are one.
    pub fn client(&self) -> ClientId {
        self.visit().map_or_else(ClientId::default, |visit| visit.key.client)
    }

    /// Held until everything about the request is over.
    pub fn hold(&self, underway: Underway) {
        self.0.underway.set(underway).expect("a request begins once");
    }

    /// The request's spans, if it is traced.
    pub fn trace(&self) -> Option<&RequestTrace> {
        self.0.trace.as_ref()
    }

    /// What lines about the request are written in, so that they carry its name.
    pub fn span(&self) -> &Span {
        &self.0.span
    }

    /// Only where it is asked for.
    pub fn show_prompt(&self, prompt: &[TokenId], tokenizer: &Tokenizer) {
        let beginning = &prompt[..prompt.len().min(SHOWN_TOKENS_MAX)];
        let text = tokenizer.decode(beginning);
        let beginning: String = text.chars().take(SHOWN_CHARS_MAX).collect();
        tracing::info!(request_id = self.0.id(), tokens = prompt.len(), beginning, "prompt");
    }

    pub fn note_error(&self, error: &ApiError) {
        self.0.facts().error = Some(error.code());
    }
}

impl Entry {
    fn id(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }

    fn tell_trace(&self, facts: &Facts, outcome: &'static str) {
        let Some(trace) = &self.trace else { return };
        // Never the path as it was asked for: clients make up any.
        let route = self.route.as_ref().map_or("none", MatchedPath::as_str);
        let status = facts.status.unwrap_or(0);
        let method = known(&self.method);
        let mut span = trace
            .whole(format!("{method} {route}"), self.began)
            .with("http.request.method", method)
            .with("http.route", route)
            .with("http.response.status_code", u64::from(status))
            .with("gen_ai.request.model", self.metrics.model_name.as_str())
            .with("gen_ai.usage.input_tokens", facts.prompt_tokens)
            .with("gen_ai.usage.output_tokens", facts.completion_tokens)
            .with("flotilla.cached_tokens", facts.cached_tokens)
            .with("flotilla.choices", facts.choices)
            .with("flotilla.outcome", outcome)
            .with("flotilla.request_id", self.id());
        span.error = (status >= 500 || facts.error.is_some() && status < 400).then_some(outcome);
        trace.tell(span);
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Probes come every few seconds and say nothing new.
        if self.method == Method::GET {
            return;
        }
        let (facts, took) = (self.facts(), self.began.elapsed());
        if facts.taken_in {
            self.metrics.request(took, facts.prompt_tokens, facts.completion_tokens);
        }
        let outcome = match (facts.error, facts.complete) {
            (Some(code), _) => code,
            (None, true) => "complete",
            (None, false) => "client left",
        };
        self.tell_trace(&facts, outcome);
        tracing::info!(
            request_id = self.id(),
            trace_id = self.trace.as_ref().map(|trace| trace.context().trace.to_string()),
            method = known(&self.method),
            path = self.path,
            key = self.visit.get().map(|visit| visit.key.name.as_str()),
            status = facts.status,
            outcome,
            stream = facts.stream,
            choices = facts.choices,
            prompt_tokens = facts.prompt_tokens,
            cached_tokens = facts.cached_tokens,
            completion_tokens = facts.completion_tokens,
            reasoning_tokens = facts.reasoning_tokens,
            first_token_ms = facts.first_token.map(milliseconds),
            total_ms = milliseconds(took),
            "request"
        );
    }
}

/// Clients make up methods too, and need no key for that: all of those have one name, which is OpenTelemetry's.
fn known(method: &Method) -> &str {
    const METHODS: [Method; 9] = [
        Method::CONNECT,
        Method::DELETE,
        Method::GET,
        Method::HEAD,
        Method::OPTIONS,
        Method::PATCH,
        Method::POST,
        Method::PUT,
        Method::TRACE,
    ];
    if METHODS.contains(method) { method.as_str() } else { "_OTHER" }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Names the request, hands the log to its handler, and notes how it was answered.
pub async fn layer(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let id = client_id(&request).unwrap_or_else(|| own_id(&api));
    let path = request.extensions().get::<MatchedPath>().cloned();
    let trace = match *request.method() {
        // As in the log.
        Method::GET => None,
        _ => RequestTrace::begin(&api.settings.tracer, request.headers()),
    };
    let log = RequestLog(Arc::new(Entry {
        id: id.clone(),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        began: Instant::now(),
        facts: Mutex::default(),
        visit: OnceLock::new(),
        underway: OnceLock::new(),
        metrics: Arc::clone(&api.metrics),
        // As urgent as can be: there for whatever line is written.
        span: tracing::error_span!("request", request_id = id.to_str().unwrap_or_default()),
        trace,
        route: path.clone(),
    }));
    request.extensions_mut().insert(log.clone());
    let mut response = next.run(request).instrument(log.span().clone()).await;
    let status = response.status().as_u16();
    log.note(|facts| facts.status = Some(status));
    api.metrics.answered(path.as_ref().map_or("none", MatchedPath::as_str), status);
    if let Some(error) = response.extensions().get::<ApiError>() {
        log.note_error(error);
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn client_id(request: &Request) -> Option<HeaderValue> {
    let id = request.headers().get(REQUEST_ID)?;
    let fits =
        (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    fits.then(|| id.clone())
}

fn own_id(api: &Api) -> HeaderValue {
    HeaderValue::from_str(&api.ids.name("req_")).expect("hexadecimal digits are a header")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_that_clients_make_up_have_one_name() {
        assert_eq!(known(&Method::POST), "POST");
        for made_up in ["post", "BREW", "PROPFIND"] {
            assert_eq!(known(&Method::from_bytes(made_up.as_bytes()).unwrap()), "_OTHER");
        }
    }
}
