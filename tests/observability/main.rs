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

async fn metrics_of(url: &str) -> String {
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().expect("a client");
    let answer = http.get(format!("{url}/metrics")).send().await.expect("the server answers");
    assert_eq!(answer.status(), 200);
    answer.text().await.expect("it is text")
}
