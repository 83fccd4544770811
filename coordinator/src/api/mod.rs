//! The API of OpenAI over one model. Each endpoint reads its request, hands prompts to the driver as
//! tokens, and words what comes back; nothing here schedules, and nothing past here speaks HTTP.
//!
//! The way of a request: [`body`] → [`fields`] → `chat`/`completions` (request) → harmony →
//! [`generate`] → [`reader`] → [`answer`].

mod answer;
mod auth;
mod body;
mod chat;
mod choice;
mod cluster;
mod completions;
mod content;
mod cors;
mod dissolve;
mod draining;
mod effort;
mod encoding;
mod ending;
mod error;
mod fields;
mod form;
mod generate;
mod ids;
mod log;
mod logprobs;
mod metrics;
mod models;
mod neutral;
mod onward;
mod openapi;
mod options;
mod page;
mod probes;
mod reader;
mod responses;
mod sampling;
mod stop;
mod surrogates;
mod tokenize;
mod trace;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use flotilla_shared::TokenId;

use crate::driver::Stats;
use crate::guide::Guides;
use crate::harmony::Harmony;
use crate::router::ReplicaRouter;
use crate::service::Settings;
use body::Bodies;
pub use body::BodyLimits;
pub use cors::{NoOrigin, Origins};
use encoding::Desks;
use error::ApiError;
use ids::Ids;
use metrics::Metrics;
pub use responses::StoreLimits;

/// For fuzzers: a body as each endpoint reads it.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_body(body: serde_json::Value) {
    let _ = chat::request::ChatRequest::read(body.clone());
    let _ = completions::read(body.clone(), usize::MAX);
    let _ = responses::request::ResponsesRequest::read(body);
}

/// What every endpoint works with.
pub struct Api {
    settings: Settings,
    harmony: Harmony,
    replicas: ReplicaRouter,
    guides: Guides,
    ids: Ids,
    desks: Desks,
    bodies: Bodies,
    metrics: Arc<Metrics>,
    responses: responses::Store,
    stop_tokens: Vec<TokenId>,
    /// No token stands for more.
    token_bytes_max: usize,
    started_unix_s: u64,
}

impl Api {
    pub fn new(settings: Settings, harmony: Harmony, replicas: ReplicaRouter) -> Api {
        let started_unix_s = (settings.unix_seconds)();
        let stop_tokens = stop_tokens(&settings, &harmony);
        let tokenizer = harmony.tokenizer();
        let pieces = tokenizer.piece_ids().filter_map(|id| tokenizer.decode_bytes(id));
        let token_bytes_max = pieces.map(<[u8]>::len).max().unwrap_or(0);
        let metrics = Arc::new(Metrics::new(&settings, &replicas));
        Api {
            guides: Guides::within(harmony.clone(), settings.limits.compile_time),
            harmony,
            replicas,
            ids: Ids::default(),
            desks: Desks::default(),
            bodies: Bodies::new(settings.limits.body),
            metrics,
            responses: responses::Store::new(settings.limits.responses),
            stop_tokens,
            token_bytes_max,
            started_unix_s,
            settings,
        }
    }

    /// How busy the driver is, and what it has done.
    fn stats(&self) -> Stats {
        self.replicas.stats()
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

/// For requests that have a place, and for those of guests, who may look how the server is.
pub fn routers(api: Api) -> (Router, Router) {
    let api = Arc::new(api);
    let all = guarded(&api).merge(open()).fallback(unknown_route);
    let reserve = probes().fallback(no_place);
    (seen(all, &api), seen(reserve, &api))
}

/// What is true of every request.
fn seen(router: Router<Arc<Api>>, api: &Arc<Api>) -> Router {
    router
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(api), cors::refuse))
        .layer(from_fn_with_state(Arc::clone(api), log::layer))
        .layer(from_fn_with_state(Arc::clone(api), cors::layer))
        .with_state(Arc::clone(api))
}

/// What needs a key, where there are keys.
fn guarded(api: &Arc<Api>) -> Router<Arc<Api>> {
    asking()
        .route_layer(from_fn_with_state(Arc::clone(api), auth::ask))
        .merge(looking().route_layer(from_fn_with_state(Arc::clone(api), auth::look)))
        .route_layer(from_fn_with_state(Arc::clone(api), draining::layer))
}

/// What counts among the requests that a key may make.
fn asking() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/responses", post(responses::create))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
}

/// What does not.
fn looking() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/models", get(models::list))
        // A model's name may hold a slash.
        .route("/v1/models/{*id}", get(models::retrieve))
        .route("/v1/cluster", get(cluster::tell))
        .route("/v1/cluster/replicas/{number}/dissolve", post(dissolve::dissolve))
        .merge(responses::stored_routes())
}

/// What machines and people look at without a key: it tells of no request.
fn open() -> Router<Arc<Api>> {
    probes().route("/openapi.json", get(openapi::document)).merge(page::routes())
}

fn probes() -> Router<Arc<Api>> {
    Router::new()
        .route("/health", get(probes::health))
        .route("/ready", get(probes::health))
        .route("/version", get(probes::version))
        .route("/metrics", get(metrics::tell))
}

async fn no_place(State(api): State<Arc<Api>>, request: Request) -> ApiError {
    api.bodies.drop_unread(request).await;
    ApiError::NoPlace
}

async fn unknown_route(State(api): State<Arc<Api>>, request: Request) -> ApiError {
    let path = request.uri().path().to_owned();
    api.bodies.drop_unread(request).await;
    ApiError::UnknownRoute { path }
}

async fn wrong_method(State(api): State<Arc<Api>>, request: Request) -> ApiError {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    api.bodies.drop_unread(request).await;
    ApiError::WrongMethod { method, path }
}
