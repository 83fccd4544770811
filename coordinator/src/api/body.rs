//! A request's body: bounded in bytes and in time, then JSON.

use std::time::Duration;

use axum::body::Body;
use futures::StreamExt;
use serde_json::Value;

use super::error::ApiError;

#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    pub bytes_max: usize,
    pub wait: Duration,
}

/// Of a body that is too large, so much is read and thrown away, in multiples of what is allowed: most
/// clients send everything before they read the answer, and would else see a broken connection.
const DISCARD_FACTOR: usize = 8;

pub async fn read_json(body: Body, limits: BodyLimits) -> Result<Value, ApiError> {
    let bytes = tokio::time::timeout(limits.wait, read(body, limits.bytes_max))
        .await
        .map_err(|_| ApiError::BodyTooSlow { seconds: limits.wait.as_secs() })??;
    // serde_json stops at a depth of 128.
    Ok(serde_json::from_slice(&bytes)?)
}

async fn read(body: Body, bytes_max: usize) -> Result<Vec<u8>, ApiError> {
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut bytes_read = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ApiError::BodyBroken(error.to_string()))?;
        bytes_read += chunk.len();
        if bytes_read <= bytes_max {
            bytes.extend_from_slice(&chunk);
        } else if bytes_read > bytes_max.saturating_mul(DISCARD_FACTOR) {
            break;
        } else {
            bytes = Vec::new();
        }
    }
    if bytes_read > bytes_max { Err(ApiError::BodyTooLarge { bytes_max }) } else { Ok(bytes) }
}
