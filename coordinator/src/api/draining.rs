//! While the server stops nothing new is begun: 503, whatever connection it comes over. What was begun before is held
//! by its log until its last byte.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Api;
use super::error::ApiError;
use super::log::RequestLog;

pub async fn layer(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let Some(underway) = api.settings.drain.enter() else {
        api.bodies.drop_unread(request).await;
        return ApiError::Draining.into_response();
    };
    request.extensions().get::<RequestLog>().expect("every request has a log").hold(underway);
    next.run(request).await
}
