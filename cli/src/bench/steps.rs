//! Whole steps of a group, of ranks that are threads or processes.

use super::driver::{Driver, Kind, STEP_ROWS, blocks};
use super::engine::EngineArgs;
use super::median;
use crate::device::DeviceChoice;
use crate::device::SumArgs;
use crate::local_group::LocalGroup;
use crate::local_workers::{LocalWorkers, WorkerSettings};
use anyhow::Result;
use flotilla_coordinator::fleet::{Formation, RemoteGroup, Weights};
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
    /// Bytes a second that the bound counts with, in each round: of the weights where they lie, or, of processes, of other memory.
    pub read: Vec<Option<f64>>,
    pub cases: Vec<CaseRate>,
}

#[derive(Debug, Serialize)]
pub struct CaseRate {
    #[serde(flatten)]
    pub kind: Kind,
    pub tokens_per_second: f64,
    pub step_ms: f64,
    /// Of each round.
    pub seconds: Vec<f64>,
    /// Of what the memory's read rate allows, for one sequence without a context.
    pub of_bound: Option<f64>,
}

/// Measures one number of ranks. `read`: bytes a second that all threads together read of other memory than the weights'.
pub async fn measure(
    args: &EngineArgs,
    spec: &ModelSpec,
    ranks: usize,
    threads: usize,
    read: Option<f64>,
) -> Result<GroupRates> {
    let kinds = cases(args);
    let start = Instant::now();
    let (load, rounds, read) = if args.processes {
        let (group, _workers) = processes(args, spec, ranks, threads, &kinds).await?;
        let load = start.elapsed();
        let mut driver = Driver::as_served(group, spec);
        (load, driver.rounds(args.rounds, args.steps, &kinds).await?, vec![read; args.rounds])
    } else {
        let group = local(args, spec, ranks, threads, &kinds)?;
        let load = start.elapsed();
        let (rounds, read) = beside_read(&mut Driver::as_served(group, spec), args, &kinds).await?;
        (load, rounds, read)
    };
    let bytes = token_bytes(spec, args.cpu.dense) as f64;
    let cases = kinds.into_iter().zip(rounds).map(|(kind, seconds)| {
        let (tokens, steps) = match kind {
            Kind::Decode { sequences, .. } => (sequences * args.steps, args.steps),
            Kind::Prompt { tokens } => (tokens, tokens.div_ceil(STEP_ROWS)),
        };
        let of_bound = seconds.iter().zip(&read).filter(|_| kind == BOUND);
        let of_bound = of_bound.map(|(seconds, read)| Some(bytes * tokens as f64 / seconds / (*read)?));
        let of_bound = of_bound.collect::<Option<Vec<_>>>().filter(|rounds| !rounds.is_empty()).map(median);
        let typical = median(seconds.clone());
        let (tokens_per_second, step_ms) = (tokens as f64 / typical, typical * 1e3 / steps as f64);
        CaseRate { kind, tokens_per_second, step_ms, seconds, of_bound }
    });
    let cases = cases.collect();
    Ok(GroupRates { ranks, threads, load_seconds: load.as_secs_f64(), read, cases })
}

/// The case that is compared with its bound.
const BOUND: Kind = Kind::Decode { sequences: 1, depth: 0 };

/// Seconds of each case in each round, and in each what the weights were read with, where they lie: before and after the case
/// that is compared with it. Memory differs from one piece to the next by what is beneath a virtual machine.
async fn beside_read(
    driver: &mut Driver<'_, LocalGroup>,
    args: &EngineArgs,
    cases: &[Kind],
) -> Result<(Vec<Vec<f64>>, Vec<Option<f64>>)> {
    let (mut seconds, mut read) = (vec![Vec::new(); cases.len()], Vec::new());
    driver.warm(args.steps).await?;
    for _ in 0..args.rounds {
        let mut rates = Vec::new();
        for (kind, seconds) in cases.iter().zip(&mut seconds) {
            let is_bound = *kind == BOUND;
            if is_bound {
                rates.extend(driver.group().read_rate().await?);
            }
            seconds.push(driver.measure(kind, args.steps).await?);
            if is_bound {
                rates.extend(driver.group().read_rate().await?);
            }
        }
        read.push((!rates.is_empty()).then(|| rates.iter().sum::<f64>() / rates.len() as f64));
    }
    Ok((seconds, read))
}

/// Ranks as processes, as they are served.
async fn processes(
    args: &EngineArgs,
    spec: &ModelSpec,
    ranks: usize,
    threads: usize,
    cases: &[Kind],
) -> Result<(RemoteGroup, LocalWorkers)> {
    let settings = |coordinator, token| WorkerSettings {
        coordinator,
        token,
        threads,
        memory_bytes: None,
        memory_shared: None,
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
        kv_blocks: blocks(cases, args.steps, spec),
        step_tokens_max: STEP_ROWS,
        logit_rows_max: 64,
        sampleable: vec![0..spec.vocab as TokenId],
        links: args.links.collective,
        wire: args.links.collective_wire,
        planning: Default::default(),
        regroup_grace: Duration::ZERO,
        return_grace: None,
        step_timeout: Duration::ZERO,
        board: Default::default(),
    };
    LocalWorkers::form(&formation, settings).await
}

/// Ranks as threads of this process.
fn local(
    args: &EngineArgs,
    spec: &ModelSpec,
    ranks: usize,
    threads: usize,
    cases: &[Kind],
) -> Result<LocalGroup> {
    let source = Synthetic::new(spec.clone(), SEED);
    let assignment = Assignment {
        epoch: Epoch(1),
        rank: Rank(0),
        spec: spec.clone(),
        plan: Plan::even(spec, ranks, args.stages),
        weights: WeightOrigin::Stream,
        weights_id: source.identity()?,
        kv_blocks: blocks(cases, args.steps, spec),
        step_tokens_max: STEP_ROWS as u32,
        logit_rows_max: 64,
        sampleable: vec![0..spec.vocab as TokenId],
        peers: vec![String::new(); ranks],
        links: Default::default(),
        group_key: [0; 32],
        holders: Vec::new(),
        lends: false,
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
    LocalGroup::start(&source, &assignment, devices.collect::<Result<_>>()?)
}

pub(super) fn cases(args: &EngineArgs) -> Vec<Kind> {
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
