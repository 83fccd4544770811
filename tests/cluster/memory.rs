//! What loading takes: a worker never holds much more than what it holds in the end.

use crate::support::checkpoint::{config, synth};
use crate::support::client::Client;
use crate::support::server::{Coordinator, TOKEN};
use serde_json::json;

/// A line of /proc/PID/status, in bytes.
fn status(id: u32, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
    let kib: f64 =
        line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse().expect("a number");
    kib * 1024.0
}

/// 480 MB, nearly all of it experts, as in the published models.
#[tokio::test]
async fn loading_takes_little_more_than_what_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("wide");
    let mut config = config();
    config["hidden_size"] = json!(1024);
    config["intermediate_size"] = json!(1024);
    config["num_local_experts"] = json!(64);
    synth(&folder, &config, 1).await;
    for (dense, activations) in [("bf16", "int8x2"), ("int8", "int8x2"), ("bf16", "f32")] {
        let coordinator = Coordinator::start(&folder, 1, &["--kv-tokens", "1024"]).await;
        let more = ["--dense", dense, "--activations", activations];
        let worker = coordinator.worker_with("a", TOKEN, &more);
        Client::new(&coordinator.url).health(200).await;
        let (peak, now) = (status(worker.id(), "VmHWM"), status(worker.id(), "VmRSS"));
        eprintln!("{dense} {activations}: peak {peak:.3e}, in the end {now:.3e}, {:.3}", peak / now);
        assert!(now > 400e6, "{now:.3e} bytes are not the model's");
        assert!(peak <= 1.1 * now, "{dense}, {activations}: {peak:.3e} bytes for {now:.3e}");
    }
}
