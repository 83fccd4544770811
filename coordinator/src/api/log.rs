//! One line for each request, written when everything about it is over, streams included: counts and
//! durations, never a word of a prompt or an answer. The name of the request goes back to the client.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;

use super::Api;
use super::error::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Of a client's own name for its request; longer ones are replaced.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The line to be. Whoever works on the request holds a clone; the last one dropped writes it.
#[derive(Clone)]
pub struct RequestLog(Arc<Entry>);

struct Entry {
    id: HeaderValue,
    method: Method,
    path: String,
    began: Instant,
    facts: Mutex<Facts>,
}

/// What is known when the line is written.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    status: Option<u16>,
    error: Option<&'static str>,
    pub stream: bool,
    pub choices: usize,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub completion_tokens: usize,
    pub reasoning_tokens: usize,
    /// From the request's arrival.
    first_token_ms: Option<u64>,
    /// The answer reached its end; else the client left before.
    pub complete: bool,
}

impl RequestLog {
    pub fn note(&self, note: impl FnOnce(&mut Facts)) {
        note(&mut self.0.facts());
    }

    pub fn note_token(&self) {
        let mut facts = self.0.facts();
        facts.completion_tokens += 1;
        if facts.first_token_ms.is_none() {
            facts.first_token_ms = Some(self.0.elapsed_ms());
        }
    }

    pub fn note_error(&self, error: &ApiError) {
        self.0.facts().error = Some(error.code());
    }
}

impl Entry {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Probes come every few seconds and say nothing new.
        if self.method == Method::GET {
            return;
        }
        let facts = self.facts();
        let outcome = match (facts.error, facts.complete) {
            (Some(code), _) => code,
            (None, true) => "complete",
            (None, false) => "client left",
        };
        tracing::info!(
            request = self.id.to_str().unwrap_or_default(),
            method = %self.method,
            path = self.path,
            status = facts.status,
            outcome,
            stream = facts.stream,
            choices = facts.choices,
            prompt_tokens = facts.prompt_tokens,
            cached_tokens = facts.cached_tokens,
            completion_tokens = facts.completion_tokens,
            reasoning_tokens = facts.reasoning_tokens,
            first_token_ms = facts.first_token_ms,
            total_ms = self.elapsed_ms(),
            "request"
        );
    }
}

/// Names the request, hands the log to its handler, and notes how it was answered.
pub async fn layer(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let id = client_id(&request).unwrap_or_else(|| own_id(&api));
    let log = RequestLog(Arc::new(Entry {
        id: id.clone(),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        began: Instant::now(),
        facts: Mutex::default(),
    }));
    request.extensions_mut().insert(log.clone());
    let mut response = next.run(request).await;
    log.note(|facts| facts.status = Some(response.status().as_u16()));
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
