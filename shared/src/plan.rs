//! How a model is cut over devices: made by one pure function, the only place where sizes are divided.
//!
//! A stage is a contiguous range of layers (pipeline parallel; one stage until stages are scheduled);
//! within it every rank has a range of kv heads with their query heads, a rectangle of experts ×
//! intermediate blocks, and a range of the vocabulary (tensor parallel). Shares are uneven on purpose,
//! nothing is padded, and a rank may own none of a kind.

use crate::activations::activation_bytes;
use crate::group::KvBlocks;
use crate::ids::Rank;
use crate::inventory::{BackendKind, Inventory, KvDtype};
use crate::spec::{LayerKind, MXFP4_BLOCK, ModelSpec};
use crate::step::BLOCK_TOKENS;
use crate::tensor::{LayerTensor, TensorId, TensorSlice};
use crate::units::Bytes;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use thiserror::Error;

/// Ranks of one tensor-parallel group at most.
pub const RANKS_MAX: usize = 64;

/// Who holds what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub stages: Vec<Stage>,
}

/// A contiguous range of layers and the ranks that share each of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    pub layers: Range<usize>,
    pub ranks: Vec<RankShare>,
}

/// What one rank owns of every layer of its stage, and of the vocabulary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankShare {
    pub rank: Rank,
    pub backend: BackendKind,
    pub kv: KvDtype,
    /// Heads of the kv cache, each with its group of query heads.
    pub kv_heads: Range<usize>,
    pub experts: ExpertShare,
    /// Rows of the embedding and the unembedding.
    pub vocab: Range<usize>,
}

/// A rectangle of the experts: a slice of every expert (the default), or some experts whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertShare {
    pub experts: Range<usize>,
    /// MXFP4 blocks of 32 along the intermediate dimension.
    pub blocks: Range<usize>,
}

impl ExpertShare {
    pub fn is_empty(&self) -> bool {
        self.experts.is_empty() || self.blocks.is_empty()
    }

    /// Intermediate elements of each owned expert.
    pub fn intermediate(&self) -> usize {
        if self.is_empty() { 0 } else { self.blocks.len() * MXFP4_BLOCK }
    }

    /// Exactly one rank adds the down bias of an expert: the one that owns its first block.
    pub fn adds_down_bias(&self) -> bool {
        !self.is_empty() && self.blocks.start == 0
    }
}

impl RankShare {
    /// Exactly one rank adds the output bias of attention: the one that owns the first head.
    pub fn adds_output_bias(&self) -> bool {
        !self.kv_heads.is_empty() && self.kv_heads.start == 0
    }
}

/// What a rank must have room for beside its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    /// Blocks of KV cache, over all sequences.
    pub kv_blocks: KvBlocks,
    /// Rows of one step at most.
    pub step_tokens_max: usize,
}

/// Why a model cannot be cut over the devices at hand.
#[derive(Debug, Error, PartialEq)]
pub enum PlanError {
    #[error("a plan needs 1 to {RANKS_MAX} ranks, {0} were given")]
    Ranks(usize),
    #[error(
        "the model does not fit: it needs {} over {ranks} ranks (weights {}, KV cache of {kv_tokens} tokens {}, activations {}), \
         the devices offer {}\nhint: add workers, or lower the KV cache",
        Bytes(weights + kv + activations), Bytes(*weights), Bytes(*kv), Bytes(*activations), Bytes(*offered)
    )]
    TooLarge { ranks: usize, weights: u64, kv: u64, kv_tokens: usize, activations: u64, offered: u64 },
    #[error(
        "{cpu} computes on its processor and {cuda} on a card: they cannot be ranks of one group\n\
         hint: start all workers with --device cuda:N, or none"
    )]
    Mixed { cpu: String, cuda: String },
    #[error(
        "rank {rank} ({device}) has {} and even its smallest share needs {}\nhint: leave this device out",
        Bytes(*offered), Bytes(*needed)
    )]
    DeviceTooSmall { rank: Rank, device: String, offered: u64, needed: u64 },
}

impl Plan {
    /// Cuts `spec` by tensor parallelism over `devices`, one rank each, in their order.
    ///
    /// Shares follow the devices' bandwidth (equal where none is known) within the limit of their
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
        let mut weights = bandwidth_weights(devices);
        // A device that is too small for its share gets less, and the others more, until all fit.
        const ROUNDS: usize = 256;
        for _ in 0..ROUNDS {
            let plan = Plan::with_shares(spec, &weights).on(devices);
            let needed: Vec<u64> =
                plan.ranks().map(|share| plan.bytes(spec, share.rank).total(spec, share, demand)).collect();
            let mut fits = true;
            for (weight, (&needed, device)) in weights.iter_mut().zip(needed.iter().zip(devices)) {
                if needed > device.memory_bytes {
                    fits = false;
                    *weight *= (device.memory_bytes as f64 / needed as f64).min(0.99);
                }
            }
            if fits {
                return Ok(plan);
            }
        }
        Err(Plan::misfit(spec, devices, demand))
    }

    /// Cuts by the given relative shares, one rank each; memory is not looked at.
    ///
    /// Each kind is cut on its own, since a layer's phases wait for their slowest rank one by one.
    pub fn with_shares(spec: &ModelSpec, weights: &[f64]) -> Plan {
        let kv_heads = apportion(spec.kv_heads, weights);
        let blocks = apportion(spec.intermediate_blocks(), weights);
        let vocab = apportion(spec.vocab, weights);
        let ranks = kv_heads.into_iter().zip(blocks).zip(vocab).enumerate();
        let ranks = ranks.map(|(rank, ((kv_heads, blocks), vocab))| RankShare {
            rank: Rank(rank as u16),
            backend: BackendKind::default(),
            kv: KvDtype::default(),
            kv_heads,
            experts: ExpertShare { experts: 0..spec.experts, blocks },
            vocab,
        });
        Plan { stages: vec![Stage { layers: 0..spec.layer_count(), ranks: ranks.collect() }] }
    }

    /// The same plan on the backends of `devices`, with their caches, one a rank.
    fn on(mut self, devices: &[Inventory]) -> Plan {
        let ranks = self.stages.iter_mut().flat_map(|stage| &mut stage.ranks);
        ranks
            .zip(devices)
            .for_each(|(share, device)| (share.backend, share.kv) = (device.backend, device.kv));
        self
    }

    /// Checks a plan that came from outside: ranks in order from 0, and every layer, kv head, expert
    /// block and vocabulary row of `spec` owned exactly once. Says what is wrong.
    pub fn check(&self, spec: &ModelSpec) -> Result<(), String> {
        if !self.ranks().enumerate().all(|(at, share)| share.rank.index() == at) {
            return Err("does not number its ranks in order from 0".into());
        }
        covers(self.stages.iter().map(|stage| stage.layers.clone()), spec.layer_count(), "layers")?;
        for stage in &self.stages {
            let shares = || stage.ranks.iter();
            covers(shares().map(|s| s.kv_heads.clone()), spec.kv_heads, "kv heads")?;
            covers(shares().map(|s| s.vocab.clone()), spec.vocab, "vocabulary rows")?;
            let (experts, blocks) = (spec.experts, spec.intermediate_blocks());
            if shares().all(|s| s.experts.experts == (0..experts)) {
                covers(shares().map(|s| s.experts.blocks.clone()), blocks, "expert blocks")?;
            } else if shares().all(|s| s.experts.blocks == (0..blocks)) {
                covers(shares().map(|s| s.experts.experts.clone()), experts, "experts")?;
            } else {
                return Err("cuts experts both whole and in slices".into());
            }
        }
        Ok(())
    }

    pub fn ranks(&self) -> impl Iterator<Item = &RankShare> {
        self.stages.iter().flat_map(|stage| &stage.ranks)
    }

    pub fn rank_count(&self) -> usize {
        self.ranks().count()
    }

    /// The stage and the share of a rank.
    ///
    /// # Panics
    /// If the plan has no such rank.
    pub fn share(&self, rank: Rank) -> (&Stage, &RankShare) {
        let found = self.stages.iter().find_map(|stage| {
            let share = stage.ranks.iter().find(|share| share.rank == rank)?;
            Some((stage, share))
        });
        found.unwrap_or_else(|| panic!("the plan has no rank {rank}"))
    }

    /// Every slice that a rank holds, in the order of the forward; empty ones are left out.
    pub fn slices(&self, spec: &ModelSpec, rank: Rank) -> Vec<TensorSlice> {
        let (stage, share) = self.share(rank);
        let first = stage.layers.start == 0;
        let last = stage.layers.end == spec.layer_count();
        let in_stage = |tensor: &TensorId| match tensor {
            TensorId::Embed => first,
            TensorId::FinalNorm | TensorId::Unembed => last,
            TensorId::Layer(layer, _) => stage.layers.contains(&(*layer as usize)),
        };
        let slices = TensorId::all(spec).filter(in_stage).filter_map(|tensor| share.slice(spec, tensor));
        slices.filter(|slice| !slice.is_empty()).collect()
    }

    /// Bytes that a rank holds, by part.
    pub fn bytes(&self, spec: &ModelSpec, rank: Rank) -> RankBytes {
        let (stage, share) = self.share(rank);
        let of_layer = share.kv_heads.len() * spec.head_dim * 2 * share.kv.element_bytes();
        let per_token = |kind| {
            let layers = spec.layers[stage.layers.clone()].iter().filter(|layer| **layer == kind);
            (layers.count() * of_layer) as u64
        };
        let mut bytes = RankBytes {
            kv_full_per_token: per_token(LayerKind::Full),
            kv_window_per_token: per_token(LayerKind::Window),
            ..RankBytes::default()
        };
        for slice in self.slices(spec, rank) {
            *bytes.part_mut(slice.tensor) += slice.bytes() as u64;
        }
        bytes
    }

    fn misfit(spec: &ModelSpec, devices: &[Inventory], demand: Demand) -> PlanError {
        let kv_tokens = demand.kv_blocks.full as usize * BLOCK_TOKENS;
        let plan = Plan::with_shares(spec, &vec![1.0; devices.len()]).on(devices);
        let bytes: Vec<RankBytes> = plan.ranks().map(|share| plan.bytes(spec, share.rank)).collect();
        let weights = bytes.iter().map(RankBytes::weights).sum();
        let activations = plan.ranks().map(|share| activation_bytes(spec, share, demand)).sum();
        let kv = bytes.iter().map(|b| b.kv(demand.kv_blocks)).sum();
        let offered: u64 = devices.iter().map(|d| d.memory_bytes).sum();
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

impl RankShare {
    /// The part of a tensor that this rank holds; `None` where another rank adds a bias.
    fn slice(&self, spec: &ModelSpec, tensor: TensorId) -> Option<TensorSlice> {
        use LayerTensor::*;
        let cut = |dimension, range| Some(TensorSlice::cut(tensor, spec, dimension, range));
        let TensorId::Layer(_, part) = tensor else {
            return match tensor {
                TensorId::Embed | TensorId::Unembed => cut(0, self.vocab.clone()),
                _ => Some(TensorSlice::whole(tensor, spec)),
            };
        };
        let q_heads = spec.q_heads_of(&self.kv_heads);
        let elements = |heads: &Range<usize>| heads.start * spec.head_dim..heads.end * spec.head_dim;
        let experts = &self.experts;
        // Rows 2j and 2j + 1 of gate_up belong to intermediate element j.
        let gate_up = 2 * MXFP4_BLOCK * experts.blocks.start..2 * MXFP4_BLOCK * experts.blocks.end;
        let of_experts = |dimension: usize, range: Range<usize>| {
            let mut slice = TensorSlice::cut(tensor, spec, dimension, range);
            slice.ranges[0] = experts.experts.clone();
            Some(slice)
        };
        match part {
            AttentionNorm | MlpNorm | RouterWeight | RouterBias => Some(TensorSlice::whole(tensor, spec)),
            QWeight | QBias => cut(0, elements(&q_heads)),
            KWeight | KBias | VWeight | VBias => cut(0, elements(&self.kv_heads)),
            OWeight => cut(1, elements(&q_heads)),
            OBias => self.adds_output_bias().then(|| TensorSlice::whole(tensor, spec)),
            Sinks => cut(0, q_heads),
            GateUpBlocks | GateUpScales | GateUpBias => of_experts(1, gate_up),
            DownBlocks | DownScales => of_experts(2, experts.blocks.clone()),
            DownBias if experts.adds_down_bias() => cut(0, experts.experts.clone()),
            DownBias => None,
        }
    }
}

/// Bytes of one rank's weights by part, and of its KV cache per token in each kind of layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RankBytes {
    pub attention: u64,
    pub experts: u64,
    pub embedding: u64,
    pub unembedding: u64,
    /// Norms and routers: the same on every rank.
    pub replicated: u64,
    /// Of the full layers, and of the window layers.
    pub kv_full_per_token: u64,
    pub kv_window_per_token: u64,
}

impl RankBytes {
    pub fn weights(&self) -> u64 {
        self.attention + self.experts + self.embedding + self.unembedding + self.replicated
    }

    /// KV cache of so many blocks.
    pub fn kv(&self, blocks: KvBlocks) -> u64 {
        let full = self.kv_full_per_token * u64::from(blocks.full);
        let window = self.kv_window_per_token * u64::from(blocks.window);
        (full + window) * BLOCK_TOKENS as u64
    }

    /// All that the rank of `share` takes.
    pub fn total(&self, spec: &ModelSpec, share: &RankShare, demand: Demand) -> u64 {
        self.weights() + self.kv(demand.kv_blocks) + activation_bytes(spec, share, demand)
    }

    fn part_mut(&mut self, tensor: TensorId) -> &mut u64 {
        use LayerTensor::{DownBias, DownBlocks, DownScales, GateUpBias, GateUpBlocks, GateUpScales};
        match tensor {
            _ if tensor.replicated() => &mut self.replicated,
            TensorId::Embed => &mut self.embedding,
            TensorId::Unembed => &mut self.unembedding,
            TensorId::Layer(
                _,
                GateUpBlocks | GateUpScales | GateUpBias | DownBlocks | DownScales | DownBias,
            ) => &mut self.experts,
            _ => &mut self.attention,
        }
    }
}

/// The ranges, in order, must tile 0..units.
fn covers(ranges: impl Iterator<Item = Range<usize>>, units: usize, what: &str) -> Result<(), String> {
    let mut next = 0;
    for range in ranges {
        if range.start != next || range.end < range.start {
            return Err(format!("gives {what} {}..{} where {next} comes next", range.start, range.end));
        }
        next = range.end;
    }
    if next == units { Ok(()) } else { Err(format!("covers {next} of {units} {what}")) }
}

/// Relative shares by bandwidth; equal unless every device knows its own.
fn bandwidth_weights(devices: &[Inventory]) -> Vec<f64> {
    let known = devices.iter().all(|d| d.bandwidth.is_finite() && d.bandwidth > 0.0);
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
