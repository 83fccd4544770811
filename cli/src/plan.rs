//! `flotilla plan`: who would hold what, without a cluster.

use crate::device::kv_dtype;
use crate::model::config_text;
use anyhow::{Context, Result, ensure};
use clap::Args;
use flotilla_shared::activations::activation_bytes;
use flotilla_shared::plan::RankBytes;
use flotilla_shared::units::Bytes;
use flotilla_shared::{BackendKind, Demand, Inventory, KvBlocks, KvDtype, ModelSpec, Plan};
use serde_json::json;

/// Print how a model is cut over ranks, with bytes per rank.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// gpt-oss-120b, gpt-oss-20b, or the config.json of a checkpoint
    #[arg(long, default_value = "gpt-oss-120b")]
    model: String,
    /// Equal devices
    #[arg(long, default_value_t = 4)]
    ranks: usize,
    /// Relative shares by rank instead, such as 24,16,12
    #[arg(long, value_delimiter = ',', conflicts_with = "ranks")]
    shares: Vec<f64>,
    /// Memory of each device in GB (10^9 bytes); one for all, or one a rank
    #[arg(long, value_delimiter = ',')]
    memory_gb: Vec<f64>,
    /// Tokens of KV cache that must fit as well
    #[arg(long, default_value_t = 16384)]
    kv_tokens: usize,
    /// Rows of one step at most, whose activations must fit as well
    #[arg(long, default_value_t = 512)]
    step_tokens: usize,
    /// Sequences that run at once, whose windows must fit as well
    #[arg(long, default_value_t = 64)]
    sequences: usize,
    /// What computes
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
    let devices = args.devices()?;
    let kv_blocks = KvBlocks::for_tokens(args.kv_tokens, spec.window, args.sequences, args.step_tokens);
    let demand = Demand { kv_blocks, step_tokens_max: args.step_tokens };
    let plan = Plan::tensor_parallel(&spec, &devices, demand)?;
    let bytes: Vec<RankBytes> = plan.ranks().map(|share| plan.bytes(&spec, share.rank)).collect();
    let activations: Vec<u64> = plan.ranks().map(|share| activation_bytes(&spec, share, demand)).collect();
    if args.json {
        let document = json!({ "plan": plan, "bytes": bytes, "activations": activations, "demand": demand });
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print_table(args, &spec, demand, &plan, &bytes, &activations);
    }
    Ok(())
}

impl PlanArgs {
    fn kv(&self) -> KvDtype {
        if self.backend == BackendKind::Cuda { KvDtype::Bf16 } else { self.kv_dtype }
    }

    fn devices(&self) -> Result<Vec<Inventory>> {
        let shares = if self.shares.is_empty() { vec![1.0; self.ranks] } else { self.shares.clone() };
        ensure!(
            shares.iter().all(|share| share.is_finite() && *share > 0.0),
            "--shares must be positive numbers"
        );
        let memory = &self.memory_gb;
        ensure!(
            memory.len() <= 1 || memory.len() == shares.len(),
            "--memory-gb has {} values for {} ranks\nhint: give one, or one a rank",
            memory.len(),
            shares.len()
        );
        ensure!(memory.iter().all(|gb| gb.is_finite() && *gb > 0.0), "--memory-gb must be positive numbers");
        let devices = shares.iter().enumerate().map(|(rank, share)| Inventory {
            name: format!("rank {rank}"),
            backend: self.backend,
            kv: self.kv(),
            device: "any".into(),
            memory_bytes: memory.get(rank).or(memory.first()).map_or(u64::MAX, |gb| (gb * 1e9) as u64),
            bandwidth: *share,
            compute: 0.0,
            threads: 1,
        });
        Ok(devices.collect())
    }
}

fn print_table(
    args: &PlanArgs,
    spec: &ModelSpec,
    demand: Demand,
    plan: &Plan,
    bytes: &[RankBytes],
    activations: &[u64],
) {
    let weights: u64 = bytes.iter().map(RankBytes::weights).sum();
    println!(
        "{}: {} layers, {} experts, {} of weights over {} ranks",
        args.model,
        spec.layer_count(),
        spec.experts,
        Bytes(weights),
        plan.rank_count()
    );
    println!(
        "{:<5} {:>8} {:>9} {:>15} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>11}",
        "rank",
        "kv heads",
        "blocks",
        "vocabulary",
        "attention",
        "experts",
        "embeddings",
        "replicated",
        "weights",
        "KV cache",
        "activations"
    );
    for ((share, bytes), activations) in plan.ranks().zip(bytes).zip(activations) {
        let range = |range: &std::ops::Range<usize>| format!("{}..{}", range.start, range.end);
        println!(
            "{:<5} {:>8} {:>9} {:>15} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>11}",
            share.rank,
            range(&share.kv_heads),
            range(&share.experts.blocks),
            range(&share.vocab),
            Bytes(bytes.attention),
            Bytes(bytes.experts),
            Bytes(bytes.embedding + bytes.unembedding),
            Bytes(bytes.replicated),
            Bytes(bytes.weights()),
            Bytes(bytes.kv(demand.kv_blocks)),
            Bytes(*activations),
        );
    }
    println!("KV cache: {} tokens, {} bytes an element", args.kv_tokens, args.kv().element_bytes());
}

fn backend(text: &str) -> Result<BackendKind, String> {
    match text {
        "cpu" => Ok(BackendKind::Cpu),
        "cuda" => Ok(BackendKind::Cuda),
        _ => Err("expected cpu or cuda".into()),
    }
}
