//! `GET /openapi.json`: the document that describes this API, with the version of this build. It is written by
//! hand, in `coordinator/openapi.json`, and not made from the code; `tests/clients` holds it against a server.

use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

/// What stands in the file in place of the version.
const VERSION: &str = r#""version": "0.0.0""#;

static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let version = format!(r#""version": "{}""#, env!("CARGO_PKG_VERSION"));
    include_str!("../../openapi.json").replacen(VERSION, &version, 1)
});

pub async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_document_is_json_with_this_version() {
        let document: Value = serde_json::from_str(&DOCUMENT).unwrap();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(document["openapi"], "3.1.1");
    }
}
