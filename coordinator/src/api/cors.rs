//! Which pages of other origins may speak with this server: those that the operator names. Keys travel in
//! a header, never in cookies, so credentials are not allowed. Where there are no keys, others are refused: a browser lets
//! them read no answer, but would send what they ask.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Api;
use super::error::ApiError;

/// None named: browsers let no page of another origin read an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Vec<HeaderValue>);

/// How long a browser may keep what it was told, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE, OPTIONS");
const EXPOSED: HeaderValue = HeaderValue::from_static("x-request-id, retry-after, x-should-retry");
const ANY: HeaderValue = HeaderValue::from_static("*");

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no origin\nhint: a scheme and a host, such as https://chat.example.org, or * for all")]
pub struct NoOrigin(String);

impl Origins {
    pub fn new<'a>(origins: impl IntoIterator<Item = &'a str>) -> Result<Origins, NoOrigin> {
        origins.into_iter().map(origin).collect::<Result<_, _>>().map(Origins)
    }

    /// What `access-control-allow-origin` says to a page of this origin.
    fn allow(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        if self.0.contains(&ANY) {
            return Some(ANY);
        }
        self.0.contains(origin).then(|| origin.clone())
    }
}

/// As browsers write it: without a path, not even a slash.
fn origin(text: &str) -> Result<HeaderValue, NoOrigin> {
    let no_origin = || NoOrigin(text.to_owned());
    let is_origin = |rest: &str| !rest.is_empty() && !rest.contains(['/', '?', '#', ' ', '@']);
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    if text != "*" && !rest.is_some_and(is_origin) {
        return Err(no_origin());
    }
    HeaderValue::from_str(text).map_err(|_| no_origin())
}

/// Without keys: what a browser says that a page of another site asks, or of another port of this one.
pub async fn refuse(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let foreign = foreign(request.headers()).filter(|_| api.settings.keys.is_none());
    match foreign.filter(|origin| api.settings.cors.allow(origin).is_none()) {
        Some(origin) => {
            let origin = String::from_utf8_lossy(origin.as_bytes()).into_owned();
            api.bodies.drop_unread(request).await;
            ApiError::ForeignPage { origin }.into_response()
        }
        None => next.run(request).await,
    }
}

/// The origin of a page that is not this server's. Who follows a link here has none.
fn foreign(headers: &HeaderMap) -> Option<&HeaderValue> {
    let site = headers.get("sec-fetch-site")?;
    headers.get(header::ORIGIN).filter(|_| site == "cross-site" || site == "same-site")
}

pub async fn layer(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let origins = &api.settings.cors;
    if origins.0.is_empty() {
        return next.run(request).await;
    }
    let allowed = request.headers().get(header::ORIGIN).and_then(|origin| origins.allow(origin));
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response =
        if preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if preflight { permit(headers, asked) } else { expose(headers) }
    }
    response
}

/// Every header that the page wants: clients of OpenAI's API send a dozen of their own.
fn permit(headers: &mut HeaderMap, asked: Option<HeaderValue>) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    if let Some(asked) = asked {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
    }
}

fn expose(headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_as_browsers_write_them() {
        assert!(Origins::new(["*", "https://a.example", "http://localhost:5173"]).is_ok());
        for wrong in ["a.example", "https://a.example/", "ftp://a", "https://", "", "null"] {
            assert!(Origins::new([wrong]).is_err(), "{wrong:?}");
        }
    }
}
