//! `flotilla bench serve` and `compare` as their users run them, against real servers and a scripted one.

mod chaos;
mod figures;
mod files;
#[path = "../../load/tests/support/scripted.rs"]
mod scripted;
mod stop;
#[path = "../support/mod.rs"]
mod support;

use flotilla_load::report::Report;
use std::path::Path;
use support::program::{Ran, run};

/// `flotilla bench serve --url URL ARGS --json FILE`, and the report of it.
async fn bench(url: &str, args: &[&str]) -> (Ran, Report) {
    let dir = tempfile::tempdir().expect("a folder");
    let json = dir.path().join("report.json");
    let fixed = ["bench", "serve", "--url", url, "--json", path(&json)];
    let ran = run([&fixed, args].concat()).await;
    ran.expect_status(0);
    let text = std::fs::read_to_string(&json).expect("the report is written");
    (ran, serde_json::from_str(&text).expect("it is a report"))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}
