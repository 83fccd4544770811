//! Whole steps of a group, of ranks that are threads or processes.

use super::driver::{Driver, Kind, STEP_ROWS, blocks};
use super::engine::EngineArgs;
use super::median;
use crate::device::DeviceChoice;
use crate::device::SumArgs;
use crate::local_group::LocalGroup;
use crate::local_workers::{LocalWorkers, WorkerSettings};
use anyhow::Result;
use flotilla_coordinator::fleet::{Formation, Weights};
use flotilla_engine::backend::cpu::DenseWidth;
use flotilla_engine::weights::{Synthetic, WeightSource};
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{Assignment, Epoch, ModelSpec, Plan, Rank, TokenId, WeightOrigin};
use flotilla_worker::Device;
use serde::Serialize;
use std::time::{Duration, Instant};

const SEED: u64 = 1;

#[derive(Debug, Serialize)]
pub struct GroupRates {
    pub ranks: usize,
    /// Of each rank.
    pub threads: usize,
    pub load_seconds: f64,
    pub cases: Vec<CaseRate>,
}

#[derive(Debug, Serialize)]
pub struct CaseRate {
    #[serde(flatten)]
    pub kind: Kind,
    pub tokens_per_second: f64,
    pub step_ms: f64,
    /// Of what the memory's read rate allows, for one sequence without a context.
    pub of_bound: Option<f64>,
}

/// Measures one number of ranks. `read`: bytes a second of all threads together.
pub async fn measure(
    args: &EngineArgs,
    spec: &ModelSpec,
    ranks: usize,
    threads: usize,
    read: Option<f64>,
) -> Result<GroupRates> {
    let cases = cases(args);
    let kv_blocks = blocks(&cases, args.steps, spec);
    let start = Instant::now();
    let (load_seconds, rates) = if args.processes {
        let settings = |coordinator, token| WorkerSettings {
            coordinator,
            token,
            threads,
            memory_bytes: None,
            devices: vec![DeviceChoice::Cpu],
            cpu: args.cpu.clone(),
            sums: SumArgs::default(),
            cache: Default::default(),
            doors: Vec::new(),
        };
        let formation = Formation {
            spec: spec.clone(),
            weights: Weights::Synthetic { seed: SEED },
            ranks,
            plan: (args.stages > 1).then(|| Plan::even(spec, ranks, args.stages)),
            kv_blocks,
            step_tokens_max: STEP_ROWS,
            sampleable: vec![0..spec.vocab as TokenId],
            links: args.links.collective,
            wire: args.links.collective_wire,
            planning: Default::default(),
            regroup_grace: Duration::ZERO,
            board: Default::default(),
        };
        let (group, _workers) = LocalWorkers::form(&formation, settings).await?;
        (start.elapsed(), Driver::new(group, spec).rounds(args.rounds, args.steps, &cases).await?)
    } else {
        let source = Synthetic::new(spec.clone(), SEED);
        let assignment = Assignment {
            epoch: Epoch(1),
            rank: Rank(0),
            spec: spec.clone(),
            plan: Plan::even(spec, ranks, args.stages),
            weights: WeightOrigin::Stream,
            weights_id: source.identity()?,
            kv_blocks,
            step_tokens_max: STEP_ROWS as u32,
            sampleable: vec![0..spec.vocab as TokenId],
            peers: vec![String::new(); ranks],
            links: Default::default(),
            group_key: [0; 32],
            holders: Vec::new(),
        };
        let device = |_| {
            let mut device = DeviceChoice::Cpu.open(threads, &args.cpu, SumArgs::default())?;
            if let Device::Cpu(cpu) = &mut device {
                // Pages that were never written are all the same one, and in the first cache.
                cpu.touch_kv = true;
            }
            Ok(device)
        };
        let devices = (0..ranks).map(device);
        let group = LocalGroup::start(&source, &assignment, devices.collect::<Result<_>>()?)?;
        (start.elapsed(), Driver::new(group, spec).rounds(args.rounds, args.steps, &cases).await?)
    };
    let bound = read.map(|read| read / token_bytes(spec, args.cpu.dense) as f64);
    let cases = cases.into_iter().zip(rates).map(|(kind, seconds)| {
        let seconds = median(seconds);
        let (tokens, steps) = match kind {
            Kind::Decode { sequences, .. } => (sequences * args.steps, args.steps),
            Kind::Prompt { tokens } => (tokens, tokens.div_ceil(STEP_ROWS)),
        };
        let tokens_per_second = tokens as f64 / seconds;
        let is_bound = matches!(kind, Kind::Decode { sequences: 1, depth: 0 });
        CaseRate {
            kind,
            tokens_per_second,
            step_ms: seconds * 1e3 / steps as f64,
            of_bound: bound.filter(|_| is_bound).map(|bound| tokens_per_second / bound),
        }
    });
    Ok(GroupRates { ranks, threads, load_seconds: load_seconds.as_secs_f64(), cases: cases.collect() })
}

fn cases(args: &EngineArgs) -> Vec<Kind> {
    let decode = args.batch.iter().map(|&sequences| Kind::Decode { sequences, depth: 0 });
    let depth = args.depth.iter().filter(|depth| **depth > 0 && !args.processes);
    let depth = depth.map(|depth| Kind::Decode { sequences: 1, depth: depth / BLOCK_TOKENS * BLOCK_TOKENS });
    let prompts = args.prompt.iter().map(|&tokens| Kind::Prompt { tokens });
    decode.chain(depth).chain(prompts).collect()
}

/// Bytes of weights that one row reads.
fn token_bytes(spec: &ModelSpec, dense: DenseWidth) -> u64 {
    use LayerTensor::{
        DownBias, DownBlocks, DownScales, GateUpBias, GateUpBlocks, GateUpScales, KWeight, OWeight, QWeight,
        VWeight,
    };
    let of_experts = [GateUpBlocks, GateUpScales, GateUpBias, DownBlocks, DownScales, DownBias];
    let bytes = |tensor: &TensorId| {
        let info = tensor.info(spec);
        match tensor {
            TensorId::Embed => info.bytes() / spec.vocab as u64,
            TensorId::Layer(_, tensor) if of_experts.contains(tensor) => {
                info.bytes() / spec.experts as u64 * spec.experts_per_token as u64
            }
            TensorId::Unembed if dense == DenseWidth::Int8 => info.bytes() * 34 / 64,
            TensorId::Layer(_, QWeight | KWeight | VWeight | OWeight) if dense == DenseWidth::Int8 => {
                info.bytes() * 34 / 64
            }
            _ => info.bytes(),
        }
    };
    TensorId::all(spec).map(|tensor| bytes(&tensor)).sum()
}
