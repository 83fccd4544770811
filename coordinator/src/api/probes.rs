//! What load balancers, supervisors and people ask: `/health`, `/ready`, `/version`. They need no key.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use crate::driver::Readiness;

/// `/health` and `/ready`: 200 while requests are served; else, and while the server stops, 503 and why not. As vLLM's: a server
/// whose workers are lost is not healthy. (This process is alive if it answers at all.) A full queue is load: whoever takes a
/// loaded server out of a balancer leaves the others with more of it, and where there is one only, nobody serves. It stays
/// ready, and refuses what it has no room for by itself.
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

pub async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
