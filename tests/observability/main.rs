//! What a running server tells of itself: metrics and the documents, alarms and dashboard that name them, logs, traces,
//! and `flotilla top`.

mod collector;
mod documents;
mod logs;
#[path = "../support/mod.rs"]
mod support;
mod top;
mod traces;

use std::path::PathBuf;
use support::repository;
use support::server::Up;

fn demo() -> PathBuf {
    repository("demo/model")
}

/// The demo model on two workers.
async fn up(more: &[&str]) -> Up {
    Up::start(&demo(), &[&["--workers", "2"], more].concat()).await
}

/// A client that believes those certificates.
fn http(trusted: impl IntoIterator<Item = reqwest::Certificate>) -> reqwest::Client {
    // Fails where it is installed already, by a test beside.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only(trusted);
    builder.build().expect("a client can be made")
}

async fn metrics_of(url: &str) -> String {
    let answer = http([]).get(format!("{url}/metrics")).send().await.expect("the server answers");
    assert_eq!(answer.status(), 200);
    answer.text().await.expect("it is text")
}
