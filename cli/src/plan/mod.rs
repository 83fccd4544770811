//! `flotilla plan`: who would hold what, and how fast that would be, without a cluster.

mod chosen;
mod cut;
mod devices;
mod svg;
mod table;

use crate::device::kv_dtype;
use crate::fit;
use crate::model::config_text;
use crate::sizes;
use anyhow::{Context, Result};
use clap::Args;
use devices::Devices;
use flotilla_planner::{Aim, Link};
use flotilla_shared::{BackendKind, KvDtype, ModelSpec, PlanError};
use std::path::PathBuf;

/// Flags of plans that are not of --devices. They go with nothing that requires it: of what requires a flag that others
/// exclude, clap says nothing.
const OF_RANKS: [&str; 4] = ["ranks", "shares", "memory_gb", "backend"];

/// Print how a model is cut over devices: bytes by rank, and, of --devices, the fastest way and its predicted speed.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// gpt-oss-120b, gpt-oss-20b, or a checkpoint's folder or config.json
    #[arg(long, default_value = "gpt-oss-120b")]
    model: String,
    /// What there is, to choose the fastest plan for: groups as 2x24GB@936GB/s[/71TFLOPS], cpu:64GB@40GB/s, or names as
    /// 4xrtx3090; commas between groups, semicolons between hosts
    #[arg(long, conflicts_with_all = OF_RANKS)]
    devices: Option<Devices>,
    /// Between devices of one host: shm, pcie3, pcie4, pcie5 or nvlink [default: of cards pcie4, of CPUs shm]
    #[arg(long, requires = "devices", conflicts_with_all = OF_RANKS)]
    link: Option<Link>,
    /// Between hosts: 1gbe, 10gbe, 25gbe or 100gbe
    #[arg(long, requires = "devices", conflicts_with_all = OF_RANKS, default_value = "10gbe")]
    between: Link,
    /// What must be fast: latency (a token of one sequence), or throughput:N (N sequences at once)
    #[arg(long, requires = "devices", conflicts_with_all = OF_RANKS, default_value = "latency")]
    goal: Aim,
    /// Tokens that each sequence has behind it [default: 8192, or the model's context if that is shorter]
    #[arg(long, requires = "devices", conflicts_with_all = OF_RANKS, value_parser = sizes::tokens)]
    context: Option<usize>,
    /// Stages at most: 1 for plans that are one stage [default: no limit]
    #[arg(long, requires = "devices", conflicts_with_all = OF_RANKS)]
    stages_max: Option<usize>,
    /// Write a picture of the plan
    #[arg(long, requires = "devices", conflicts_with_all = OF_RANKS, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Equal devices, cut alike
    #[arg(long, default_value_t = 4)]
    ranks: usize,
    /// Relative shares by rank instead, such as 24,16,12
    #[arg(long, value_delimiter = ',', conflicts_with = "ranks")]
    shares: Vec<f64>,
    /// Memory of each device in GB (10^9 bytes); one for all, or one a rank
    #[arg(long, value_delimiter = ',')]
    memory_gb: Vec<f64>,
    /// Tokens of KV cache that must fit as well [default: 16384; with --devices the context of every sequence of the goal]
    #[arg(long, value_parser = sizes::tokens)]
    kv_tokens: Option<usize>,
    /// Rows of one step at most, whose activations must fit as well
    #[arg(long, default_value_t = 512)]
    step_tokens: usize,
    /// Sequences that run at once, whose windows must fit as well
    #[arg(long, default_value_t = 64)]
    sequences: usize,
    /// What computes, of --ranks
    #[arg(long, value_parser = backend, default_value = "cpu")]
    backend: BackendKind,
    /// What the KV cache holds on the CPU: f16 (2 bytes an element, as on a card), or f32
    #[arg(long, value_parser = kv_dtype, default_value = "f16")]
    kv_dtype: KvDtype,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(args: &PlanArgs) -> Result<()> {
    let spec = ModelSpec::from_config_json(&config_text(&args.model, None)?)
        .with_context(|| format!("in {}", args.model))?;
    match &args.devices {
        Some(devices) => chosen::run(args, &spec, devices),
        None => cut::run(args, &spec).map_err(|error| fit::advise(error, means_of_ranks)),
    }
}

fn means_of_ranks(error: &PlanError) -> &'static str {
    match error.is_of_activations() {
        true => "raise --ranks or --memory-gb, or lower --step-tokens",
        false => "raise --ranks or --memory-gb, or lower --kv-tokens",
    }
}

fn backend(text: &str) -> Result<BackendKind, String> {
    match text {
        "cpu" => Ok(BackendKind::Cpu),
        "cuda" => Ok(BackendKind::Cuda),
        _ => Err("expected cpu or cuda".into()),
    }
}
