//! `flotilla plan --ranks`: equal or given shares of one stage, in bytes; nothing is known of speed.

use super::PlanArgs;
use super::table::{PARTS, parts};
use anyhow::{Result, ensure};
use flotilla_shared::plan::{PlanError, RANKS_MAX, RankBytes};
use flotilla_shared::units::Bytes;
use flotilla_shared::{BackendKind, Demand, Inventory, KvBlocks, KvDtype, ModelSpec, Plan};
use serde_json::json;

const KV_TOKENS: usize = 16384;

pub fn run(args: &PlanArgs, spec: &ModelSpec) -> Result<()> {
    let devices = devices(args)?;
    let kv_tokens = args.kv_tokens.unwrap_or(KV_TOKENS);
    let kv_blocks = KvBlocks::for_tokens(kv_tokens, spec.window, args.sequences, args.step_tokens);
    let demand = Demand { kv_blocks, step_tokens_max: args.step_tokens, logit_rows_max: args.sequences };
    let plan = Plan::tensor_parallel(spec, &devices, demand)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&document(spec, &plan, demand))?);
        return Ok(());
    }
    let weights: u64 = plan.ranks().map(|share| plan.bytes(spec, share.rank).weights()).sum();
    println!(
        "{}: {} layers, {} experts, {} of weights over {} {}",
        args.model,
        spec.layer_count(),
        spec.experts,
        Bytes(weights),
        plan.rank_count(),
        if plan.rank_count() == 1 { "rank" } else { "ranks" }
    );
    println!("{:<5} {PARTS}", "rank");
    for share in plan.ranks() {
        println!("{:<5} {}", share.rank.index(), parts(spec, &plan, share, demand));
    }
    println!("KV cache: {kv_tokens} tokens, {} bytes an element", kv(args).element_bytes());
    Ok(())
}

/// The plan as workers get it, and its bytes by rank.
pub fn document(spec: &ModelSpec, plan: &Plan, demand: Demand) -> serde_json::Value {
    let bytes: Vec<RankBytes> = plan.ranks().map(|share| plan.bytes(spec, share.rank)).collect();
    let activations = plan.ranks().map(|share| plan.activation_bytes(spec, share.rank, demand));
    json!({ "plan": plan, "bytes": bytes, "activations": activations.collect::<Vec<u64>>(), "demand": demand })
}

fn kv(args: &PlanArgs) -> KvDtype {
    if args.backend == BackendKind::Cuda { KvDtype::Bf16 } else { args.kv_dtype }
}

fn devices(args: &PlanArgs) -> Result<Vec<Inventory>> {
    if args.shares.is_empty() && args.ranks > RANKS_MAX {
        return Err(PlanError::Ranks(args.ranks).into());
    }
    let shares = if args.shares.is_empty() { vec![1.0; args.ranks] } else { args.shares.clone() };
    ensure!(
        shares.iter().all(|share| share.is_finite() && *share > 0.0),
        "--shares must be positive numbers"
    );
    let memory = &args.memory_gb;
    ensure!(
        memory.len() <= 1 || memory.len() == shares.len(),
        "--memory-gb has {} values for {} ranks\nhint: give one, or one a rank",
        memory.len(),
        shares.len()
    );
    ensure!(memory.iter().all(|gb| gb.is_finite() && *gb > 0.0), "--memory-gb must be positive numbers");
    let devices = shares.iter().enumerate().map(|(rank, share)| Inventory {
        name: format!("rank {rank}"),
        backend: args.backend,
        kv: kv(args),
        device: "any".into(),
        memory_bytes: memory.get(rank).or(memory.first()).map_or(u64::MAX, |gb| (gb * 1e9) as u64),
        bandwidth: *share,
        compute: 0.0,
        expert_compute: 0.0,
        threads: 1,
    });
    Ok(devices.collect())
}
