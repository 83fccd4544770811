//! What load balancers, supervisors and people ask: `/health`, `/ready`, `/version`. They need no key.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use crate::driver::Readiness;

/// 200 while requests are served; else, and while the server stops, 503 and why not. As vLLM's: a server whose workers are lost is not
/// healthy. (This process is alive if it answers at all.)
pub async fn health(State(api): State<Arc<Api>>) -> Result<Json<Value>, ApiError> {
    if api.settings.drain.has_begun() {
        return Err(ApiError::Draining);
    }
    match api.replicas.readiness() {
        Readiness::Ready { epoch } => {
            Ok(Json(json!({"status": "ready", "model": api.settings.model_name, "epoch": epoch.0})))
        }
        readiness => Err(ApiError::NotReady(readiness)),
    }
}

/// 200 while one more request would be taken in: a group serves and the queue has room.
pub async fn ready(State(api): State<Arc<Api>>) -> Response {
    if api.settings.drain.has_begun() {
        return ApiError::Draining.into_response();
    }
    let load = api.stats().load;
    if load.sequences_waiting >= api.settings.waiting_max {
        return ApiError::Busy { waiting: load.sequences_waiting }.into_response();
    }
    health(State(api)).await.into_response()
}

pub async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
