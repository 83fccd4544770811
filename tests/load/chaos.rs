//! Faults on a schedule: a worker killed, one stopped, one cut off, while clients read their streams.

use crate::bench;
use crate::support::checkpoint::endless;
use crate::support::server::Up;

#[tokio::test]
async fn faults_pause_streams_and_break_none() {
    let model = endless().await;
    let up = Up::start(model.path(), &["--workers", "2", "--collective", "tcp"]).await;
    let faults = "1s:kill,5s:stop 1500ms,9s:cut";
    let load = ["--clients", "3", "--duration", "12s", "--max-tokens", "400", "--prompt-tokens", "40"];
    let (ran, report) = bench(&up.url, &[&load[..], &["--chaos", faults, "--ignore-eos"]].concat()).await;
    let words = || format!("{}\n{}", ran.stdout, up.process.said());
    let happened: Vec<_> = report.chaos.iter().map(|seen| seen.fault.as_str()).collect();
    assert_eq!(happened, ["kill", "stop 1.5s", "cut"], "{}", words());
    assert_eq!(report.settings["chaos"], "1s:kill,5s:stop 1.5s,9s:cut");
    assert!(report.chaos.iter().all(|seen| seen.streams_in_flight > 0), "{}", words());
    // A worker that is stopped for so long is missed by all.
    assert!(report.chaos[1].longest_pause_s >= 1.0 && report.chaos[1].streams_paused > 0, "{}", words());
    // Who asks while there is no group is told to come again; no stream that had begun may break.
    let errors = &report.summary.errors;
    assert!(errors.keys().all(|kind| kind == "status_503"), "{errors:?}: {}", words());
    assert!(report.summary.done > 0 && report.summary.violations.is_empty(), "{}", words());
    let now = up.process.said();
    assert!(now.contains("a worker ended, starting another in its place"), "{now}");
}
