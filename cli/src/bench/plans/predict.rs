//! What the planner is told of this machine, and what it says of a plan.

use super::cases::Case;
use crate::bench::driver::{Kind, STEP_ROWS};
use crate::bench::median;
use anyhow::{Context, Result};
use flotilla_engine::backend::cpu::kernels::Precision;
use flotilla_engine::backend::cpu::measure::{Bench, Compute};
use flotilla_planner::model::predict_prefill;
use flotilla_planner::{Fleet, Link, Work, predict_step};
use flotilla_shared::{Inventory, KvDtype, ModelSpec};

const BYTES: usize = 512 << 20;
const ROUNDS: usize = 5;

/// This machine by the number of threads that are busy: they share its memory.
pub struct Machine(Vec<Bench>);

/// Of one of several threads.
#[derive(Clone, Copy)]
pub struct ThreadRates {
    pub bytes_per_s: f64,
    pub compute: Compute,
}

impl Machine {
    pub fn new(cores: usize) -> Result<Machine> {
        let benches = (1..=cores).map(|threads| Bench::new(threads, BYTES, true));
        Ok(Machine(benches.collect::<Result<_, _>>().context("cannot take memory to measure with")?))
    }

    pub fn cores(&self) -> usize {
        self.0.len()
    }

    /// By busy threads, from one on.
    pub fn rates(&self, precision: Precision) -> Vec<ThreadRates> {
        let rates = self.0.iter().enumerate().map(|(at, bench)| {
            let threads = (at + 1) as f64;
            let compute = bench.compute(precision);
            ThreadRates {
                bytes_per_s: median((0..ROUNDS).map(|_| bench.read()).collect()) / threads,
                compute: Compute { dense: compute.dense / threads, experts: compute.experts / threads },
            }
        });
        rates.collect()
    }
}

/// What a rank reads a second, which shares memory with the others while they are busy too.
fn bytes_per_s(rates: &[ThreadRates], case: &Case, kind: &Kind, rank: usize) -> f64 {
    let alone = case.alone(kind, rank);
    let of = |busy: usize| rates[busy - 1].bytes_per_s;
    1.0 / (alone / of(1) + (1.0 - alone) / of(case.busy_with(kind, rank)))
}

/// Of a token of each sequence, or of a prompt; and which part of it is sums and hand-over.
pub fn seconds(
    spec: &ModelSpec,
    case: &Case,
    kind: &Kind,
    steps: usize,
    rates: &[ThreadRates],
    between: Link,
) -> (f64, f64) {
    let ranks = case.plan.rank_count();
    let device = |rank| Inventory {
        name: format!("worker-{rank:02}"),
        device: "cpu".into(),
        memory_bytes: u64::MAX,
        bandwidth: bytes_per_s(rates, case, kind, rank),
        compute: rates[case.busy_with(kind, rank) - 1].compute.dense,
        expert_compute: rates[case.busy_with(kind, rank) - 1].compute.experts,
        threads: 1,
        backend: Default::default(),
        kv: KvDtype::F16,
    };
    let fleet = Fleet {
        devices: (0..ranks).map(device).collect(),
        hosts: (0..ranks as u16).collect(),
        within: between,
        between,
        ways: Default::default(),
        within_cards: None,
        int8: false,
        costs: Default::default(),
    };
    let devices: Vec<usize> = (0..ranks).collect();
    let (seconds, step) = match *kind {
        Kind::Decode { sequences, .. } => {
            let lanes = case.plan.stages.len().min(sequences);
            let work = Work::decode(sequences.div_ceil(lanes), steps.div_ceil(2));
            let step = predict_step(spec, &fleet, &case.plan, &devices, work);
            (step.period_s(lanes), step)
        }
        Kind::Prompt { tokens } => {
            let prefill = predict_prefill(spec, &fleet, &case.plan, &devices, tokens, STEP_ROWS);
            (prefill.seconds, prefill.step)
        }
    };
    let sums: f64 = step.stages.iter().map(|stage| stage.sums_s).sum();
    (seconds, sums + step.hand_overs_s.iter().sum::<f64>() + step.return_s)
}
