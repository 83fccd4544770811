//! The ways to cut a model: over devices by their memory and bandwidth, or by shares that somebody else chose.

use super::fitting::Fitting;
use super::{ExpertShare, Plan, PlanError, RANKS_MAX, RankShare, Stage};
use crate::ids::Rank;
use crate::inventory::{BackendKind, Inventory, KvDtype, comparable};
use crate::plan::{Demand, RankBytes};
use crate::spec::ModelSpec;
use crate::step::BLOCK_TOKENS;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How experts are divided over the ranks of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// Every rank has a slice of every expert.
    #[default]
    Slices,
    /// Every rank has some experts whole.
    Whole,
}

/// How one stage is cut: its layers, and each rank's relative share of every kind.
#[derive(Clone, Debug, PartialEq)]
pub struct StageCut {
    pub layers: usize,
    pub placement: Placement,
    pub kv_heads: Vec<f64>,
    /// Of expert blocks, or of whole experts.
    pub experts: Vec<f64>,
    pub vocab: Vec<f64>,
}

impl StageCut {
    /// The same shares of every kind.
    pub fn even(layers: usize, weights: &[f64]) -> StageCut {
        let (kv_heads, experts, vocab) = (weights.to_vec(), weights.to_vec(), weights.to_vec());
        StageCut { layers, placement: Placement::Slices, kv_heads, experts, vocab }
    }

    fn ranks(&self, spec: &ModelSpec, first: usize) -> Vec<RankShare> {
        let (experts, blocks) = (spec.experts, spec.intermediate_blocks());
        let experts: Vec<ExpertShare> = match self.placement {
            Placement::Slices => apportion(blocks, &self.experts)
                .into_iter()
                .map(|blocks| ExpertShare { experts: 0..experts, blocks })
                .collect(),
            Placement::Whole => apportion(experts, &self.experts)
                .into_iter()
                .map(|experts| ExpertShare { experts, blocks: 0..blocks })
                .collect(),
        };
        let kv_heads = apportion(spec.kv_heads, &self.kv_heads);
        let vocab = apportion(spec.vocab, &self.vocab);
        let ranks = kv_heads.into_iter().zip(experts).zip(vocab).enumerate();
        let ranks = ranks.map(|(at, ((kv_heads, experts), vocab))| RankShare {
            rank: Rank((first + at) as u16),
            backend: BackendKind::default(),
            kv: KvDtype::default(),
            kv_heads,
            experts,
            vocab,
        });
        ranks.collect()
    }
}

impl Plan {
    /// Cuts `spec` by tensor parallelism over `devices`, one rank each, in their order.
    ///
    /// Shares follow the devices' bandwidth (equal where these cannot be compared) within the limit of their
    /// memory, which must also hold the rank's part of the KV cache and a step's activations.
    pub fn tensor_parallel(
        spec: &ModelSpec,
        devices: &[Inventory],
        demand: Demand,
    ) -> Result<Plan, PlanError> {
        if devices.is_empty() || devices.len() > RANKS_MAX {
            return Err(PlanError::Ranks(devices.len()));
        }
        let of =
            |kind| devices.iter().find(|device| device.backend == kind).map(|device| device.name.clone());
        if let (Some(cpu), Some(cuda)) = (of(BackendKind::Cpu), of(BackendKind::Cuda)) {
            return Err(PlanError::Mixed { cpu, cuda });
        }
        let fitting = Fitting { spec, devices, demand };
        let weights = bandwidth_weights(devices);
        if let Some(plan) = fitting.by_one_share(weights.clone()) {
            return Ok(plan);
        }
        let misfit = Plan::misfit(spec, devices, demand);
        let plan = if misfit.is_of_cuts() { fitting.by_kinds(&weights) } else { None };
        plan.ok_or(misfit)
    }

    /// Cuts by the given relative shares, one stage, one rank each; memory is not looked at.
    ///
    /// Each kind is cut on its own, since a layer's phases wait for their slowest rank one by one.
    pub fn with_shares(spec: &ModelSpec, weights: &[f64]) -> Plan {
        Plan::with_stages(spec, &[StageCut::even(spec.layer_count(), weights)])
    }

    /// Cuts into stages of so many layers, each by shares of its own; ranks are numbered through. Memory is
    /// not looked at.
    pub fn with_stages(spec: &ModelSpec, cuts: &[StageCut]) -> Plan {
        let (mut layer, mut rank) = (0, 0);
        let stages = cuts.iter().map(|cut| {
            let layers = layer..layer + cut.layers;
            let ranks = cut.ranks(spec, rank);
            (layer, rank) = (layers.end, rank + ranks.len());
            Stage { layers, ranks }
        });
        Plan { stages: stages.collect() }
    }

    /// Cuts into `stages` stages of about equal numbers of layers and of ranks, which have equal shares.
    pub fn even(spec: &ModelSpec, ranks: usize, stages: usize) -> Plan {
        let stages = vec![1.0; stages];
        let cuts = apportion(spec.layer_count(), &stages).into_iter().zip(apportion(ranks, &stages));
        let cuts = cuts.map(|(layers, ranks)| StageCut::even(layers.len(), &vec![1.0; ranks.len()]));
        Plan::with_stages(spec, &cuts.collect::<Vec<_>>())
    }

    /// This plan on `devices`, one a rank, if they have the memory.
    pub fn fitting(self, spec: &ModelSpec, devices: &[Inventory], demand: Demand) -> Result<Plan, PlanError> {
        let plan = self.on(devices);
        let fits = |(share, device): (&RankShare, &Inventory)| {
            plan.total_bytes(spec, share.rank, demand) <= device.memory_bytes
        };
        if plan.ranks().zip(devices).all(fits) { Ok(plan) } else { Err(Plan::misfit(spec, devices, demand)) }
    }

    /// The same plan on the backends of `devices`, with their caches, one a rank.
    pub fn on(mut self, devices: &[Inventory]) -> Plan {
        let ranks = self.stages.iter_mut().flat_map(|stage| &mut stage.ranks);
        ranks
            .zip(devices)
            .for_each(|(share, device)| (share.backend, share.kv) = (device.backend, device.kv));
        self
    }

    /// Why `spec` does not fit on `devices`: what it needs and what they offer.
    pub fn misfit(spec: &ModelSpec, devices: &[Inventory], demand: Demand) -> PlanError {
        let kv_tokens = demand.kv_blocks.full as usize * BLOCK_TOKENS;
        let plan = Plan::with_shares(spec, &vec![1.0; devices.len()]).on(devices);
        let bytes: Vec<RankBytes> = plan.ranks().map(|share| plan.bytes(spec, share.rank)).collect();
        let weights = bytes.iter().map(RankBytes::weights).sum();
        let activations = plan.ranks().map(|share| plan.activation_bytes(spec, share.rank, demand)).sum();
        let kv = bytes.iter().map(|b| b.kv(demand.kv_blocks)).sum();
        let offered = devices.iter().fold(0u64, |sum, d| sum.saturating_add(d.memory_bytes));
        let replicated = bytes[0].replicated;
        let small = devices.iter().position(|d| d.memory_bytes < replicated);
        match small {
            Some(rank) if offered >= weights + kv + activations => PlanError::DeviceTooSmall {
                rank: Rank(rank as u16),
                device: devices[rank].name.clone(),
                offered: devices[rank].memory_bytes,
                needed: replicated,
            },
            _ => PlanError::TooLarge { ranks: devices.len(), weights, kv, kv_tokens, activations, offered },
        }
    }
}

/// Relative shares by bandwidth; equal where these say nothing of each other.
fn bandwidth_weights(devices: &[Inventory]) -> Vec<f64> {
    let known = comparable(devices);
    devices.iter().map(|d| if known { d.bandwidth } else { 1.0 }).collect()
}

/// Cuts `units` whole units into contiguous ranges as close to `weights` as whole units allow:
/// largest remainder, the lower rank first on ties.
pub fn apportion(units: usize, weights: &[f64]) -> Vec<Range<usize>> {
    let total: f64 = weights.iter().sum();
    let share = |weight: f64| {
        if total > 0.0 { units as f64 * weight / total } else { 0.0 }
    };
    let mut counts: Vec<usize> = weights.iter().map(|&w| share(w).floor() as usize).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    let remainder = |rank: usize| share(weights[rank]) - share(weights[rank]).floor();
    by_remainder.sort_by(|&a, &b| remainder(b).total_cmp(&remainder(a)).then(a.cmp(&b)));
    let left = units - counts.iter().sum::<usize>().min(units);
    for &rank in by_remainder.iter().cycle().take(left) {
        counts[rank] += 1;
    }
    let mut start = 0;
    let ranges = counts.into_iter().map(|count| {
        let range = start..start + count;
        start = range.end;
        range
    });
    ranges.collect()
}
