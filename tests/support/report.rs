//! `flotilla verify --json`, read and judged anew: a test that believed the report's own `pass` would not
//! see a verify that compares nothing.

use super::program::{Ran, run};
use flotilla_shared::Plan;
use safetensors::SafeTensors;
use serde::Deserialize;
use std::path::Path;

#[derive(Debug, Deserialize)]
pub struct Report {
    pub ranks: u16,
    pub stages: usize,
    pub processes: bool,
    pub activations: String,
    pub pass: bool,
    pub prompts: Vec<Figures>,
}

#[derive(Debug, Deserialize)]
pub struct Figures {
    pub key: String,
    pub rows: usize,
    /// None: not finite, for which JSON has no word.
    pub max_abs: Option<f64>,
    pub kl_mean: Option<f64>,
    pub kl_max: Option<f64>,
    pub greedy_equal: usize,
    pub greedy_total: usize,
    pub experts_equal: usize,
    pub experts_total: usize,
    pub faults: Vec<String>,
}

/// Whether ranks are threads of verify, or processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranks {
    Threads(u16),
    Processes(u16),
}

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<GoldenPrompt>,
}

#[derive(Deserialize)]
struct GoldenPrompt {
    key: String,
    prompt: Vec<u32>,
    greedy: Vec<u32>,
}

/// Runs verify on a checkpoint folder.
pub async fn verify(dir: &Path, ranks: Ranks) -> Ran {
    verify_with(dir, ranks, &[]).await
}

pub async fn verify_with(dir: &Path, ranks: Ranks, flags: &[&str]) -> Ran {
    let (count, processes) = match ranks {
        Ranks::Threads(count) => (count, None),
        Ranks::Processes(count) => (count, Some("--processes")),
    };
    let dir = dir.to_str().expect("test paths are UTF-8");
    let args = ["verify", dir, "--json", "--ranks", &count.to_string()].map(str::to_owned);
    let flags = processes.iter().chain(flags).map(|flag| (*flag).to_owned());
    run(args.into_iter().chain(flags)).await
}

/// Verify passes, and every figure of its report is one that may pass.
pub async fn expect_golden(dir: &Path, ranks: Ranks) {
    judge(dir, ranks, 1, verify(dir, ranks).await);
}

/// The same where the model is cut as `plan` says.
pub async fn expect_golden_plan(dir: &Path, plan: &Plan, ranks: Ranks) {
    let file = tempfile::NamedTempFile::new().expect("a file for a plan");
    serde_json::to_writer(&file, plan).expect("a plan can be written");
    let path = file.path().to_str().expect("test paths are UTF-8").to_owned();
    let mut args = vec!["verify".to_owned(), dir.to_str().expect("test paths are UTF-8").to_owned()];
    args.extend(["--json", "--plan-file", &path].map(str::to_owned));
    if let Ranks::Processes(_) = ranks {
        args.push("--processes".to_owned());
    }
    judge(dir, ranks, plan.stages.len(), run(args).await);
}

fn judge(dir: &Path, ranks: Ranks, stages: usize, ran: Ran) {
    let report: Report = serde_json::from_str(ran.expect_status(0).stdout.as_str()).expect("a report");
    let told = match (report.ranks, report.processes) {
        (count, false) => Ranks::Threads(count),
        (count, true) => Ranks::Processes(count),
    };
    assert_eq!((told, report.stages), (ranks, stages), "{report:#?}");
    assert_eq!((report.activations.as_str(), report.pass), ("f32", true), "{report:#?}");
    let golden = std::fs::read_to_string(dir.join("golden.json")).expect("golden.json can be read");
    let golden: Golden = serde_json::from_str(&golden).expect("golden.json has prompts");
    let tensors = std::fs::read(dir.join("golden.safetensors")).expect("golden.safetensors can be read");
    let tensors = SafeTensors::deserialize(&tensors).expect("golden.safetensors is one");
    assert!(!golden.prompts.is_empty());
    assert_eq!(report.prompts.len(), golden.prompts.len(), "{report:#?}");
    for (figures, prompt) in report.prompts.iter().zip(&golden.prompts) {
        check(figures, prompt, &tensors);
    }
}

/// Every row, greedy token and set of experts was compared, and none is past the limits of f32.
#[track_caller]
fn check(figures: &Figures, golden: &GoldenPrompt, tensors: &SafeTensors<'_>) {
    let shape = |name: &str| tensors.tensor(&format!("{}.{name}", golden.key)).unwrap().shape().to_vec();
    let rows = shape("positions")[0];
    let experts = shape("router_experts")[..2].iter().product::<usize>();
    assert!(rows > 0 && experts > 0 && !golden.greedy.is_empty(), "the golden file tests nothing");
    assert_eq!((&figures.key, figures.rows), (&golden.key, rows), "{figures:#?}");
    assert_eq!((figures.greedy_equal, figures.greedy_total), (golden.greedy.len(), golden.greedy.len()));
    assert_eq!((figures.experts_equal, figures.experts_total), (experts, experts), "{figures:#?}");
    // Longer sequences have the angles of the reference itself in f32.
    let sequence = golden.prompt.len() + golden.greedy.len() - 1;
    let limit = if sequence <= 400 { 1e-4 } else { 1e-3 };
    // No two orders of summation agree on every bit of every logit: 0 would be a comparison with itself.
    let [Some(max_abs), Some(kl_mean), Some(kl_max)] = [figures.max_abs, figures.kl_mean, figures.kl_max]
    else {
        panic!("not finite: {figures:#?}")
    };
    assert!(max_abs > 0.0 && max_abs <= limit, "{figures:#?}");
    assert!((0.0..=1e-7).contains(&kl_max) && kl_mean.abs() <= 1e-7, "{figures:#?}");
    assert!(figures.faults.is_empty(), "{figures:#?}");
}
