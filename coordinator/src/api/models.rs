//! `GET /v1/models`, `GET /v1/models/{id}` and `GET /health`: what is served, and whether it is.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use crate::driver::Readiness;

pub async fn list(State(api): State<Arc<Api>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model(&api)]}))
}

pub async fn retrieve(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    api.check_model(Some(&id))?;
    Ok(Json(model(&api)))
}

/// 200 while requests are served; else 503, and why not.
pub async fn health(State(api): State<Arc<Api>>) -> Response {
    match api.driver.readiness() {
        Readiness::Ready { epoch } => {
            Json(json!({"status": "ready", "model": api.settings.model_name, "epoch": epoch.0}))
                .into_response()
        }
        readiness => ApiError::NotReady(readiness).into_response(),
    }
}

/// As vLLM has it, with the length of the context.
fn model(api: &Api) -> Value {
    json!({
        "id": api.settings.model_name,
        "object": "model",
        "created": api.started_unix_s,
        "owned_by": "flotilla",
        "max_model_len": api.settings.context_tokens_max,
    })
}
