//! The web pages: a chat at `/`, the cluster at `/cluster`, and under `/web/` what they are made of. The files
//! are part of the program, as they are written: nothing is built, and nothing is loaded from elsewhere. The
//! pages are clients of the API like any other; there is no route for them alone.
//!
//! They need no key: there is nothing secret in them.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::error::ApiError;

/// Text of a model is shown on these pages, so this says twice what their scripts keep to anyway: no script
/// but our files, no markup out of strings, no request to anyone else.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    // Asked for again each time, and answered by 304: a new version of the program is seen at once.
    (header::CACHE_CONTROL, "no-cache"),
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

struct File {
    /// Below `coordinator/web/`.
    path: &'static str,
    bytes: &'static [u8],
}

macro_rules! files {
    ($($path:literal),+ $(,)?) => {
        &[$(File { path: $path, bytes: include_bytes!(concat!("../../web/", $path)) }),+]
    };
}

const FILES: &[File] = files![
    "base.css",
    "chat.css",
    "cluster.css",
    "cluster.html",
    "icon.svg",
    "index.html",
    "js/answer.js",
    "js/chat.js",
    "js/client.js",
    "js/cluster.js",
    "js/cluster/drawings.js",
    "js/cluster/facts.js",
    "js/cluster/rates.js",
    "js/cluster/workers.js",
    "js/composer.js",
    "js/dom.js",
    "js/markdown/blocks.js",
    "js/markdown/emphasis.js",
    "js/markdown/inline.js",
    "js/markdown/render.js",
    "js/markdown/stream.js",
    "js/markdown/tables.js",
    "js/message.js",
    "js/panels.js",
    "js/problem.js",
    "js/request.js",
    "js/server-state.js",
    "js/settings.js",
    "js/sidebar.js",
    "js/sse.js",
    "js/store.js",
    "js/thread.js",
    "js/words-en.js",
    "js/words-fr.js",
    "js/words.js",
    "message.css",
];

/// Of each of [`FILES`], what tells whether a browser has it already.
static TAGS: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| FILES.iter().map(tag).collect());

fn tag(file: &File) -> HeaderValue {
    let hash = blake3::hash(file.bytes).to_hex();
    HeaderValue::from_str(&format!("\"{}\"", &hash[..32])).expect("hex is a header's text")
}

pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/", get(|headers: HeaderMap| async move { answer("index.html", &headers) }))
        .route("/cluster", get(|headers: HeaderMap| async move { answer("cluster.html", &headers) }))
        .route("/web/{*path}", get(part))
}

/// What a page is made of; the pages themselves have addresses of their own.
async fn part(Path(path): Path<String>, headers: HeaderMap) -> Response {
    if path.ends_with(".html") { unknown(&path) } else { answer(&path, &headers) }
}

fn answer(path: &str, headers: &HeaderMap) -> Response {
    let Ok(index) = FILES.binary_search_by(|file| file.path.cmp(path)) else {
        return unknown(path);
    };
    let (file, tag) = (&FILES[index], &TAGS[index]);
    let mut response = if has(headers, tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, content_type(file.path))], file.bytes).into_response()
    };
    let fixed = HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value)));
    response.headers_mut().extend(fixed);
    response.headers_mut().insert(header::ETAG, tag.clone());
    response
}

fn unknown(path: &str) -> Response {
    ApiError::UnknownRoute { path: format!("/web/{path}") }.into_response()
}

/// Whether the browser's copy is this one. Proxies that compress make a strong tag weak; the text is the same.
fn has(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = known.flat_map(|list| list.split(','));
    tags.any(|known| known.trim().trim_start_matches("W/").as_bytes() == tag.as_bytes())
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use super::*;

    fn text(response: &Response, name: HeaderName) -> &str {
        response.headers()[name].to_str().unwrap()
    }

    /// A file that is not listed would be missing only in the browser.
    #[test]
    fn every_file_of_the_folder_is_served_and_in_order() {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("web");
        let mut there = BTreeSet::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    there.insert(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        let served: Vec<String> = FILES.iter().map(|file| file.path.to_owned()).collect();
        assert_eq!(served, there.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn a_browser_that_has_a_file_is_not_sent_it_again() {
        let first = answer("base.css", &HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(text(&first, header::CONTENT_TYPE), "text/css; charset=utf-8");
        let tag = text(&first, header::ETAG).to_owned();
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}")] {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, known.parse().unwrap());
            let again = answer("base.css", &headers);
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{known}");
            assert_eq!(text(&again, header::ETAG), tag);
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, "\"other\"".parse().unwrap());
        assert_eq!(answer("base.css", &headers).status(), StatusCode::OK);
    }

    #[test]
    fn pages_are_shut_against_what_a_model_writes() {
        let page = answer("index.html", &HeaderMap::new());
        let policy = text(&page, header::CONTENT_SECURITY_POLICY);
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(text(&page, header::X_CONTENT_TYPE_OPTIONS), "nosniff");
        for file in FILES.iter().filter(|file| file.path.ends_with(".html")) {
            let html = std::str::from_utf8(file.bytes).unwrap();
            assert!(!html.contains("style=") && !html.contains(" on"), "inline code in {}", file.path);
            assert!(!html.contains("//"), "an address elsewhere in {}", file.path);
        }
    }

    #[tokio::test]
    async fn what_is_not_there_is_not_found() {
        for path in ["", "nothing.js", "../Cargo.toml", "index.html"] {
            let response = part(Path(path.to_owned()), HeaderMap::new()).await;
            assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
        }
    }
}
