//! Who asks: `Authorization: Bearer KEY`, where there is a key file. What a key may use is counted from
//! here to the end of the request, which the request's log marks.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Api;
use super::error::ApiError;
use super::log::RequestLog;
use crate::keys::{Key, Keyring, Visit};

/// Of what takes work: prompts are read, and answers made.
pub async fn ask(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    enter(&api, request, next, |key| {
        key.visit().map_err(|exceeded| ApiError::OverLimit { key: key.name.clone(), exceeded })
    })
    .await
}

/// Of what only looks, or puts away: a page that watches the cluster leaves its key's requests for asking.
pub async fn look(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    enter(&api, request, next, |key| Ok(key.look())).await
}

async fn enter(
    api: &Api,
    request: Request,
    next: Next,
    visit: impl FnOnce(&Arc<Key>) -> Result<Visit, ApiError>,
) -> Response {
    let Some(keys) = &api.settings.keys else {
        return next.run(request).await;
    };
    match key(keys, request.headers()).and_then(|key| visit(&key)) {
        Ok(visit) => {
            let log = request.extensions().get::<RequestLog>();
            log.expect("every request has a log").begin_visit(visit);
            next.run(request).await
        }
        Err(error) => {
            api.bodies.drop_unread(request).await;
            error.into_response()
        }
    }
}

fn key(keys: &Keyring, headers: &HeaderMap) -> Result<Arc<Key>, ApiError> {
    let given = headers.get(header::AUTHORIZATION).ok_or(ApiError::NoKey)?;
    bearer(given.as_bytes()).and_then(|secret| keys.find(secret)).ok_or(ApiError::WrongKey)
}

/// The scheme's name may be written in any case.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, secret) = header.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(secret.trim_ascii())
}
