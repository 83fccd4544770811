//! Whole steps of a group, driven by hand as the scheduler would: decode of several sequences, prompts in chunks, and
//! decode deep in a context, whose cache is said to be there and is read, but was never computed.

use super::{EngineArgs, median};
use crate::device::DeviceChoice;
use crate::device::SumArgs;
use crate::local_group::LocalGroup;
use crate::local_workers::{LocalWorkers, WorkerSettings, random_token};
use anyhow::Result;
use flotilla_coordinator::fleet::{Fleet, Formation, Progress, Weights};
use flotilla_coordinator::group::Group;
use flotilla_engine::backend::cpu::DenseWidth;
use flotilla_engine::weights::{Synthetic, WeightSource};
use flotilla_shared::step::{Admission, BLOCK_TOKENS, SequenceWork};
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{
    Assignment, BlockId, Epoch, KvBlocks, ModelSpec, Plan, Rank, SequenceId, StepId, StepPlan, TokenId,
    WeightOrigin,
};
use flotilla_worker::Device;
use serde::Serialize;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Rows of one step at most, as served.
const STEP_ROWS: usize = 512;
const SEED: u64 = 1;

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase", tag = "what")]
pub enum Kind {
    Decode { sequences: usize, depth: usize },
    Prompt { tokens: usize },
}

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
    let need = |blocks: fn(&Kind, usize, &ModelSpec) -> usize| {
        cases.iter().map(|kind| blocks(kind, args.steps, spec)).max().unwrap_or(1) as u32
    };
    let kv_blocks = KvBlocks { full: need(full_blocks), window: need(window_blocks) };
    let start = Instant::now();
    let (load_seconds, rates) = if args.processes {
        let token = random_token();
        let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), &token, None, None).await?;
        let settings = WorkerSettings {
            coordinator: fleet.address(),
            token,
            threads,
            memory_bytes: None,
            devices: vec![DeviceChoice::Cpu],
            cpu: args.cpu.clone(),
            sums: SumArgs::default(),
            cache: Default::default(),
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
        let (progress, _) = watch::channel(Progress::Waiting { joined: 0, wanted: ranks });
        let mut workers = LocalWorkers::spawn(ranks, settings)?;
        let group = tokio::select! {
            group = fleet.form(Epoch(1), &formation, false, &progress) => group?,
            (_, died) = workers.first_death() => return Err(died),
        };
        (start.elapsed(), Driver::new(group, spec).rounds(args, &cases).await?)
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
        (start.elapsed(), Driver::new(group, spec).rounds(args, &cases).await?)
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

fn full_blocks(kind: &Kind, steps: usize, _: &ModelSpec) -> usize {
    match *kind {
        Kind::Decode { sequences, depth } => sequences * (depth + steps).div_ceil(BLOCK_TOKENS),
        Kind::Prompt { tokens } => tokens.div_ceil(BLOCK_TOKENS),
    }
}

fn window_blocks(kind: &Kind, steps: usize, spec: &ModelSpec) -> usize {
    match *kind {
        Kind::Decode { sequences, depth } => {
            sequences * ((depth + steps).div_ceil(BLOCK_TOKENS) - gone(depth, spec))
        }
        Kind::Prompt { tokens } => tokens.div_ceil(BLOCK_TOKENS),
    }
}

/// Blocks of a window layer that a row at `depth` no longer sees.
fn gone(depth: usize, spec: &ModelSpec) -> usize {
    (depth + 1).saturating_sub(spec.window) / BLOCK_TOKENS
}

/// A group, and what it has been sent.
struct Driver<'a, G> {
    group: G,
    spec: &'a ModelSpec,
    step: StepId,
    sequence: u64,
    release: Vec<SequenceId>,
}

impl<'a, G: Group> Driver<'a, G> {
    fn new(group: G, spec: &'a ModelSpec) -> Self {
        Driver { group, spec, step: StepId(0), sequence: 0, release: Vec::new() }
    }

    /// Seconds of each case in each round, after one that does not count.
    async fn rounds(mut self, args: &EngineArgs, cases: &[Kind]) -> Result<Vec<Vec<f64>>> {
        let mut seconds = vec![Vec::new(); cases.len()];
        self.measure(&Kind::Decode { sequences: 1, depth: 0 }, args.steps).await?;
        for _ in 0..args.rounds {
            for (kind, seconds) in cases.iter().zip(&mut seconds) {
                seconds.push(self.measure(kind, args.steps).await?);
            }
        }
        Ok(seconds)
    }

    async fn measure(&mut self, kind: &Kind, steps: usize) -> Result<f64> {
        match *kind {
            Kind::Decode { sequences, depth } => self.decode(sequences, depth, steps).await,
            Kind::Prompt { tokens } => self.prompt(tokens).await,
        }
    }

    async fn decode(&mut self, sequences: usize, depth: usize, steps: usize) -> Result<f64> {
        let ids = self.take(sequences);
        let full = (depth + steps).div_ceil(BLOCK_TOKENS);
        let gone = gone(depth, self.spec);
        let blocks = |at: usize, count: usize| (at * count..(at + 1) * count).map(|id| BlockId(id as u32));
        let admit =
            ids.iter().map(|id| Admission { sequence: *id, cached: depth as u32, ..Admission::default() });
        let (admit, start) = (admit.collect::<Vec<_>>(), Instant::now());
        for step in 0..steps {
            let work = ids.iter().enumerate().map(|(at, id)| SequenceWork {
                sequence: *id,
                position: (depth + step) as u32,
                tokens: vec![self.token(at * steps + step)],
                ahead: step > 0,
                blocks: if step == 0 { blocks(at, full).collect() } else { Vec::new() },
                window_blocks: if step == 0 { blocks(at, full - gone).collect() } else { Vec::new() },
                window_gone: gone as u32,
                sample: true,
                ..SequenceWork::default()
            });
            let work = work.collect();
            self.run(if step == 0 { admit.clone() } else { Vec::new() }, work).await?;
        }
        let seconds = start.elapsed().as_secs_f64();
        self.release = ids;
        Ok(seconds)
    }

    async fn prompt(&mut self, tokens: usize) -> Result<f64> {
        let ids = self.take(1);
        let blocks: Vec<_> = (0..tokens.div_ceil(BLOCK_TOKENS)).map(|id| BlockId(id as u32)).collect();
        let start = Instant::now();
        for from in (0..tokens).step_by(STEP_ROWS) {
            let end = tokens.min(from + STEP_ROWS);
            let new = || if from == 0 { blocks.clone() } else { Vec::new() };
            let work = SequenceWork {
                sequence: ids[0],
                position: from as u32,
                tokens: (from..end).map(|at| self.token(at)).collect(),
                blocks: new(),
                window_blocks: new(),
                sample: end == tokens,
                ..SequenceWork::default()
            };
            let admission = Admission { sequence: ids[0], ..Admission::default() };
            self.run(if from == 0 { vec![admission] } else { Vec::new() }, vec![work]).await?;
        }
        let seconds = start.elapsed().as_secs_f64();
        self.release = ids;
        Ok(seconds)
    }

    fn take(&mut self, count: usize) -> Vec<SequenceId> {
        let first = self.sequence;
        self.sequence += count as u64;
        (first..self.sequence).map(SequenceId).collect()
    }

    /// Tokens all over the vocabulary.
    fn token(&self, at: usize) -> TokenId {
        (at * 7919 % self.spec.vocab) as TokenId
    }

    async fn run(&mut self, admit: Vec<Admission>, work: Vec<SequenceWork>) -> Result<()> {
        self.step.0 += 1;
        let release = std::mem::take(&mut self.release);
        let plan = StepPlan { epoch: Epoch(1), step: self.step, release, admit, work };
        self.group.send(&plan)?;
        self.group.outcome().await?;
        Ok(())
    }
}
