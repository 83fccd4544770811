//! Every way in which a request can fail, and how each looks to a client of OpenAI's API: status,
//! `{"error": {message, type, param, code}}`, and when to come back.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flotilla_scheduler::Rejection;
use serde_json::{Value, json};

use super::fields::{FieldError, Problem};
use crate::driver::{Failure, NotDissolved, Readiness, Refusal};
use crate::guide::{Fault, FormError};
use crate::keys::Exceeded;

#[derive(Clone, Debug, thiserror::Error)]
pub enum ApiError {
    #[error("the body is not valid JSON: {what} (line {line}, column {column})")]
    BadJson { what: String, line: usize, column: usize },
    #[error("{0}")]
    Field(#[from] FieldError),
    /// Well written, and cannot be followed.
    #[error("{0}\nhint: a smaller or simpler form is answered")]
    FormTooComplex(FormError),
    #[error("{0}\nhint: no text is of this form")]
    FormUnsatisfiable(FormError),
    #[error("{}", .0.what)]
    Compiling(FormError),
    #[error("the model {name:?} is not served here; {served:?} is")]
    UnknownModel { name: String, served: String },
    /// The first words are OpenAI's: clients look for them, and shorten the conversation.
    #[error(
        "This model's maximum context length is {context_tokens_max} tokens. However, the prompt has \
         {prompt_tokens} tokens, and one must be left for the answer"
    )]
    ContextLength { prompt_tokens: usize, context_tokens_max: usize },
    #[error(
        "This model's maximum context length is {context_tokens_max} tokens. However, the prompt has {bytes} bytes, \
         and a token has at most {token_bytes_max}"
    )]
    ContextBytes { bytes: usize, context_tokens_max: usize, token_bytes_max: usize },
    #[error(
        "the prompts of all choices together have {tokens} tokens, of at most {tokens_max} in one request\n\
         hint: send the prompts in several requests, or ask for fewer choices"
    )]
    PromptsTooLarge { tokens: usize, tokens_max: usize },
    #[error("the body is larger than {bytes_max} bytes")]
    BodyTooLarge { bytes_max: usize },
    #[error(
        "the body holds more than {values_max} values, of which a list or an object counts as four\n\
         hint: send prompts as text, or fewer of them in one request"
    )]
    TooManyValues { values_max: usize },
    #[error("the body did not arrive within {seconds} seconds")]
    BodyTooSlow { seconds: u64 },
    #[error("nothing more of the body arrived for {seconds} seconds")]
    BodyStopped { seconds: u64 },
    #[error("the server is reading as many bodies as it has room for, and had none within {seconds} seconds")]
    NoRoom { seconds: u64 },
    #[error("the body could not be read: {0}")]
    BodyBroken(String),
    #[error("there is nothing at {path}")]
    UnknownRoute { path: String },
    #[error("{method} is not a method of {path}")]
    WrongMethod { method: Method, path: String },
    #[error("a key is needed here\nhint: send the header Authorization: Bearer KEY")]
    NoKey,
    #[error("this key is not known here\nhint: ask the operator of this server for one")]
    WrongKey,
    #[error("the key {key:?} has reached a limit: {exceeded}")]
    OverLimit { key: String, exceeded: Exceeded },
    #[error(
        "pages of {origin} may not ask this server\n\
         hint: --cors-origin names those whose pages may; where there are keys (--api-keys) these say who may"
    )]
    ForeignPage { origin: String },
    #[error("the server has as many connections as it takes")]
    NoPlace,
    #[error(
        "the queue, of {waiting_max} requests, has no room for this one: it is full, or this key has its share of it"
    )]
    QueueFull { waiting_max: usize },
    #[error(
        "the server is stopping: it finishes what is under way, and begins nothing new\n\
         hint: ask again in a while; another may have taken its place"
    )]
    Draining,
    #[error("{0}")]
    NotReady(Readiness),
    #[error("{0}")]
    Failed(#[from] Failure),
    #[error(
        "the request was not done in the time that it may take here\nhint: ask for fewer tokens, or come back when less is going on"
    )]
    Deadline,
    #[error(
        "no response {id:?} is stored\n\
         hint: responses are kept in memory for a while, for the key that made them, by this server and not another \
         behind the same address"
    )]
    ResponseNotFound { id: String },
    #[error(
        "no previous response {id:?} is stored\n\
         hint: responses are kept in memory for a while, for the key that made them, by this server and not another \
         behind the same address, and not with \"store\": false; send the conversation as input instead"
    )]
    PreviousNotFound { id: String },
    #[error("{path}: no item {id:?} is stored\nhint: send the item itself")]
    ItemNotFound { path: String, id: String },
    #[error(
        "this takes the key of an administrator\n\
         hint: one with admin = true in the server's key file; without --api-keys nobody may"
    )]
    NotAdmin,
    #[error("{number:?} is no number of a replica\nhint: they are counted from 0, as in GET /v1/cluster")]
    NoReplica { number: String },
    #[error("{0}")]
    NotDissolved(#[from] NotDissolved),
    #[error("the server made a mistake: {0}")]
    Internal(String),
}

/// When a client refused for want of room, or of workers, should try again.
const RETRY_AFTER_S: u32 = 1;
const RETRY_AFTER_LOADING_S: u32 = 5;
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const MESSAGE_CHARS_MAX: usize = 1000;

impl ApiError {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadJson { .. } | Self::Field(_) | Self::ContextLength { .. } | Self::BodyBroken(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::ContextBytes { .. } | Self::PromptsTooLarge { .. } => StatusCode::BAD_REQUEST,
            Self::FormTooComplex(_)
            | Self::FormUnsatisfiable(_)
            | Self::Failed(Failure::FormExhausted(_)) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::UnknownModel { .. } | Self::UnknownRoute { .. } => StatusCode::NOT_FOUND,
            Self::ResponseNotFound { .. } | Self::PreviousNotFound { .. } | Self::ItemNotFound { .. } => {
                StatusCode::NOT_FOUND
            }
            Self::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAdmin | Self::ForeignPage { .. } => StatusCode::FORBIDDEN,
            Self::NoReplica { .. } | Self::NotDissolved(NotDissolved::NoSuch { .. }) => StatusCode::NOT_FOUND,
            Self::NotDissolved(_) => StatusCode::CONFLICT,
            Self::BodyTooSlow { .. } | Self::BodyStopped { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge { .. } | Self::TooManyValues { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NoKey | Self::WrongKey => StatusCode::UNAUTHORIZED,
            Self::QueueFull { .. } | Self::OverLimit { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Failed(Failure::StepsFail(_) | Failure::LosesWorkers(_)) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::NotReady(_)
            | Self::Draining
            | Self::Failed(_)
            | Self::Deadline
            | Self::Compiling(_)
            | Self::NoPlace
            | Self::NoRoom { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// OpenAI's `error.type`.
    fn kind(&self) -> &'static str {
        match self.status() {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "service_unavailable_error",
            StatusCode::INTERNAL_SERVER_ERROR => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// OpenAI's `error.code`, where there is one; else a word of ours.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadJson { .. } => "invalid_json",
            Self::Field(error) => match error.problem {
                Problem::Missing | Problem::Absent(_) => "missing_required_parameter",
                Problem::Unknown => "unknown_parameter",
                Problem::Unexpected { .. } | Problem::Invalid(_) => "invalid_value",
                Problem::NotSupported { .. } => "unsupported_value",
            },
            Self::FormTooComplex(_) => "grammar_too_complex",
            Self::FormUnsatisfiable(_) => "grammar_unsatisfiable",
            Self::UnknownModel { .. } => "model_not_found",
            Self::ContextLength { .. } | Self::ContextBytes { .. } => "context_length_exceeded",
            Self::PromptsTooLarge { .. } => "prompts_too_large",
            Self::NoRoom { .. } => "no_room",
            Self::NoPlace => "connections_full",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::TooManyValues { .. } => "too_many_values",
            Self::BodyTooSlow { .. } | Self::BodyStopped { .. } => "body_too_slow",
            Self::BodyBroken(_) => "body_broken",
            Self::UnknownRoute { .. } => "not_found",
            Self::WrongMethod { .. } => "method_not_allowed",
            Self::ForeignPage { .. } => "foreign_page",
            Self::NoKey => "missing_api_key",
            Self::WrongKey => "invalid_api_key",
            Self::OverLimit { .. } => "rate_limit_exceeded",
            Self::QueueFull { .. } | Self::Compiling(_) => "queue_full",
            Self::NotReady(_) => "not_ready",
            Self::Draining => "draining",
            Self::Failed(Failure::FormExhausted(_)) => "grammar_exhausted",
            Self::Failed(Failure::StepsFail(_)) => "steps_fail",
            Self::Failed(Failure::LosesWorkers(_)) => "workers_lost",
            Self::Failed(_) => "interrupted",
            Self::Deadline => "deadline_exceeded",
            Self::ResponseNotFound { .. } => "response_not_found",
            Self::PreviousNotFound { .. } => "previous_response_not_found",
            Self::ItemNotFound { .. } => "item_not_found",
            Self::NotAdmin => "not_admin",
            Self::NoReplica { .. } | Self::NotDissolved(NotDissolved::NoSuch { .. }) => "replica_not_found",
            Self::NotDissolved(NotDissolved::Last { .. }) => "replica_is_last",
            Self::NotDissolved(_) => "replica_not_serving",
            Self::Internal(_) => "internal_error",
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Field(error) => Some(error.path.as_str()).filter(|path| !path.is_empty()),
            Self::FormTooComplex(error) | Self::FormUnsatisfiable(error) => Some(&error.path),
            Self::UnknownModel { .. } => Some("model"),
            Self::PromptsTooLarge { .. } => Some("prompt"),
            Self::ResponseNotFound { .. } => Some("response_id"),
            Self::PreviousNotFound { .. } => Some("previous_response_id"),
            Self::ItemNotFound { path, .. } => Some(path),
            _ => None,
        }
    }

    fn retry_after_s(&self) -> Option<u32> {
        match self {
            Self::QueueFull { .. } | Self::Compiling(_) | Self::NoPlace | Self::NoRoom { .. } => {
                Some(RETRY_AFTER_S)
            }
            // Another try would go the same way.
            Self::Failed(Failure::FormExhausted(_) | Failure::StepsFail(_) | Failure::LosesWorkers(_)) => {
                None
            }
            Self::OverLimit { exceeded, .. } => Some(room_after_s(exceeded)),
            Self::NotReady(_) | Self::Draining | Self::Failed(_) | Self::Deadline => {
                Some(RETRY_AFTER_LOADING_S)
            }
            _ => None,
        }
    }

    /// OpenAI's clients try every status from 500 on again by themselves, unless this header forbids it.
    fn forbids_retry(&self) -> bool {
        match self {
            Self::Failed(Failure::FormExhausted(_) | Failure::StepsFail(_) | Failure::LosesWorkers(_)) => {
                true
            }
            // It has had all the time that there is, and would want it again: whoever asked may know of less to ask
            // for, or wait until less is going on, as `Retry-After` says.
            Self::Deadline => true,
            _ => false,
        }
    }

    pub fn to_json(&self) -> Value {
        json!({"error": {
            "message": shortened(&self.to_string()),
            "type": self.kind(),
            "param": self.param().map(shortened),
            "code": self.code(),
        }})
    }
}

/// Whole seconds, after which there is room.
fn room_after_s(exceeded: &Exceeded) -> u32 {
    match exceeded {
        Exceeded::Requests { wait, .. } | Exceeded::Tokens { wait, .. } => {
            wait.as_secs_f64().ceil().max(1.0) as u32
        }
        Exceeded::Concurrent { .. } => RETRY_AFTER_S,
    }
}

/// An error names what was sent, which may be megabytes.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(MESSAGE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.to_json())).into_response();
        if let Some(seconds) = self.retry_after_s() {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.forbids_retry() {
            response.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if response.status() == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(self, Self::Draining) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<serde_json::Error> for ApiError {
    fn from(error: serde_json::Error) -> ApiError {
        let (line, column) = (error.line(), error.column());
        // serde_json puts the place behind the words; here it is told apart.
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or_default().to_owned();
        ApiError::BadJson { what, line, column }
    }
}

impl From<FormError> for ApiError {
    fn from(error: FormError) -> ApiError {
        match error.fault {
            Fault::Malformed => {
                let FormError { path, what, .. } = error;
                ApiError::Field(FieldError { path, problem: Problem::Invalid(what) })
            }
            Fault::TooComplex => ApiError::FormTooComplex(error),
            Fault::Unsatisfiable => ApiError::FormUnsatisfiable(error),
            Fault::Busy => ApiError::Compiling(error),
            Fault::Server => ApiError::Internal(error.what),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        match refusal {
            Refusal::NotReady(readiness) => ApiError::NotReady(readiness),
            Refusal::Rejected(Rejection::QueueFull { waiting_max }) => ApiError::QueueFull { waiting_max },
            Refusal::Rejected(Rejection::PromptTooLong { tokens, tokens_max }) => {
                ApiError::ContextLength { prompt_tokens: tokens, context_tokens_max: tokens_max + 1 }
            }
            Refusal::Rejected(rejection) => ApiError::Internal(format!("{rejection:?}")),
            Refusal::GuideLost => ApiError::Failed(Failure::GuideLost),
            Refusal::FormExhausted(exhausted) => ApiError::Failed(Failure::FormExhausted(exhausted)),
            Refusal::Stopped => ApiError::Failed(Failure::Stopped),
        }
    }
}
