//! The API of OpenAI over one model. Each endpoint reads its request, hands prompts to the driver as
//! tokens, and words what comes back; nothing here schedules, and nothing past here speaks HTTP.
//!
//! The way of a request: [`body`] → [`fields`] → `chat`/`completions` (request) → harmony →
//! [`generate`] → [`reader`] → [`answer`].

mod answer;
mod body;
mod chat;
mod completions;
mod content;
mod ending;
mod error;
mod fields;
mod generate;
mod ids;
mod log;
mod logprobs;
mod models;
mod neutral;
mod options;
mod page;
mod reader;
mod sampling;
mod stop;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use flotilla_shared::TokenId;

use crate::driver::DriverHandle;
use crate::harmony::Harmony;
use crate::service::Settings;
pub use body::BodyLimits;
use error::ApiError;
use ids::Ids;

/// What every endpoint works with.
pub struct Api {
    settings: Settings,
    harmony: Harmony,
    driver: DriverHandle,
    ids: Ids,
    stop_tokens: Vec<TokenId>,
    started_unix_s: u64,
}

impl Api {
    pub fn new(settings: Settings, harmony: Harmony, driver: DriverHandle) -> Api {
        let started_unix_s = (settings.unix_seconds)();
        let stop_tokens = stop_tokens(&settings, &harmony);
        Api { settings, harmony, driver, ids: Ids::default(), stop_tokens, started_unix_s }
    }

    fn check_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        let served = &self.settings.model_name;
        match name {
            Some(name) if name != served => {
                Err(ApiError::UnknownModel { name: name.to_owned(), served: served.clone() })
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Harmony's own, whatever the checkpoint's configuration says, and those that it names.
fn stop_tokens(settings: &Settings, harmony: &Harmony) -> Vec<TokenId> {
    let special = harmony.special();
    let mut tokens = vec![special.return_, special.call, special.end_of_text];
    tokens.extend(&settings.eos_tokens);
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

pub fn router(api: Api) -> Router {
    let api = Arc::new(api);
    Router::new()
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/models", get(models::list))
        // A model's name may hold a slash.
        .route("/v1/models/{*id}", get(models::retrieve))
        .route("/health", get(models::health))
        .merge(page::routes())
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&api), log::layer))
        .with_state(api)
}

async fn unknown_route(request: Request) -> ApiError {
    ApiError::UnknownRoute { path: request.uri().path().to_owned() }
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::WrongMethod { method: request.method().clone(), path: request.uri().path().to_owned() }
}
