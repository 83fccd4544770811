//! Ctrl-C ends a run with the report of what is done.

use crate::path;
use crate::scripted::{Script, Scripted};
use crate::support::server::{Running, send_signal};
use flotilla_load::report::Report;
use std::time::Duration;
use tokio::time::sleep;

#[tokio::test]
async fn an_interrupted_run_tells_what_it_has() {
    let server = Scripted::start(Script { itl: Duration::from_millis(5), ..Script::quick() }).await;
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    let args = ["bench", "serve", "--url", &server.url, "--duration", "10m", "--max-tokens", "20"];
    let mut process = Running::start(&[&args[..], &["--json", path(&json)]].concat());
    while server.asked() < 12 {
        assert!(!process.has_ended(), "{}", process.said());
        sleep(Duration::from_millis(10)).await;
    }
    send_signal("INT", process.id().into());
    assert!(process.ended().await.success(), "{}", process.said());
    let report: Report = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert!(report.summary.done >= 4 && report.summary.stopped > 0, "{:?}", report.summary);
    assert_eq!((report.summary.failed, &report.settings["ended_by_hand"]), (0, &true.into()));
    assert!(process.said().contains("not awaited"), "{}", process.said());
}
