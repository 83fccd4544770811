//! `GET /v1/models` and `GET /v1/models/{id}`: what is served.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;

pub async fn list(State(api): State<Arc<Api>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model(&api)]}))
}

pub async fn retrieve(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    api.check_model(Some(&id))?;
    Ok(Json(model(&api)))
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
