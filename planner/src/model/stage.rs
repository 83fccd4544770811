//! The time of one stage of a step: each phase as its slowest rank, and the sums between.

use super::routing::{distinct_experts, slowest_whole_s};
use super::sizes::Sizes;
use super::spread::Spread;
use super::sums::{all_reduce_s, gather_s};
use super::work::Work;
use crate::fleet::{Fleet, Rates};
use flotilla_shared::plan::Placement;
use flotilla_shared::{LayerKind, ModelSpec, RankShare, Stage};
use serde::Serialize;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// What a rank holds, in whole units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Units {
    pub kv_heads: usize,
    pub experts: usize,
    pub blocks: usize,
    pub vocab: usize,
}

impl Units {
    pub fn of(share: &RankShare) -> Units {
        Units {
            kv_heads: share.kv_heads.len(),
            experts: share.experts.experts.len(),
            blocks: share.experts.blocks.len(),
            vocab: share.vocab.len(),
        }
    }
}

/// The layers of a stage, and whether it is the first, the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Layers {
    pub full: usize,
    pub window: usize,
    pub first: bool,
    pub last: bool,
}

impl Layers {
    pub fn of(spec: &ModelSpec, range: std::ops::Range<usize>) -> Layers {
        let (first, last) = (range.start == 0, range.end == spec.layer_count());
        let layers = &spec.layers[range];
        let full = layers.iter().filter(|layer| **layer == LayerKind::Full).count();
        Layers { full, window: layers.len() - full, first, last }
    }

    pub fn count(&self) -> usize {
        self.full + self.window
    }
}

/// Seconds of one step in one stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StageTime {
    /// By rank: its own part of each phase, without waiting.
    pub ranks: Vec<RankTime>,
    /// Of the slowest rank, layer by layer.
    pub attention_s: f64,
    pub experts_s: f64,
    /// Of the unembedding.
    pub vocabulary_s: f64,
    /// All-reduces, and the gathering of what was sampled.
    pub sums_s: f64,
    /// What is not bytes, operations or sums.
    pub fixed_s: f64,
}

impl StageTime {
    pub fn total_s(&self) -> f64 {
        self.attention_s + self.experts_s + self.vocabulary_s + self.sums_s + self.fixed_s
    }
}

/// Seconds of one step on one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct RankTime {
    pub attention_s: f64,
    pub experts_s: f64,
    pub vocabulary_s: f64,
}

/// What every stage's time is made of, for one kind of step.
pub(crate) struct StageModel<'a> {
    pub spec: &'a ModelSpec,
    pub fleet: &'a Fleet,
    /// By device of the fleet.
    pub rates: Vec<Rates>,
    pub sizes: Sizes,
    pub work: Work,
    /// Experts that the step touches.
    pub touched: f64,
    /// Expected maxima that are known: by the experts of each rank, and the bits of what one takes it.
    whole_s: RefCell<BTreeMap<Vec<(usize, u64)>, f64>>,
}

impl<'a> StageModel<'a> {
    pub fn new(spec: &'a ModelSpec, fleet: &'a Fleet, work: Work) -> StageModel<'a> {
        let touched = distinct_experts(spec.experts, spec.experts_per_token, work.rows);
        StageModel {
            spec,
            fleet,
            rates: fleet.rates(),
            sizes: Sizes::of(spec),
            work,
            touched,
            whole_s: RefCell::default(),
        }
    }

    /// Attention of one layer with so many kv heads: their weights, and the keys and values that are seen.
    pub fn attention_s(&self, device: usize, kv_heads: usize, kind: LayerKind) -> f64 {
        let (work, sizes, heads) = (&self.work, &self.sizes, kv_heads as f64);
        let keys = work.keys(kind, self.spec.window) as f64;
        let element = self.fleet.devices[device].kv.element_bytes() as f64;
        let cache = work.sequences as f64 * keys * sizes.key_elements as f64 * element;
        let macs = work.rows as f64 * (sizes.head_macs as f64 + keys * sizes.key_macs as f64);
        self.rates[device].dense.time_s(heads * (sizes.head_bytes as f64 + cache), 2.0 * heads * macs)
    }

    /// The router of one layer: every rank computes all of it.
    pub fn router_s(&self, device: usize) -> f64 {
        let sizes = &self.sizes;
        let ops = 2 * self.work.rows as u64 * sizes.router_macs;
        self.rates[device].dense.time_s(sizes.router_bytes as f64, ops as f64)
    }

    /// One block of every expert of one layer.
    pub fn block_s(&self, device: usize) -> f64 {
        let routes = (self.work.rows * self.spec.experts_per_token) as f64;
        let sizes = &self.sizes;
        self.rates[device]
            .experts
            .time_s(self.touched * sizes.block_bytes as f64, 2.0 * routes * sizes.block_macs as f64)
    }

    /// One whole expert of one layer that is touched.
    pub fn expert_s(&self, device: usize) -> f64 {
        self.block_s(device) * self.spec.intermediate_blocks() as f64 / self.touched
    }

    /// The logits of one row of the vocabulary.
    pub fn vocabulary_row_s(&self, device: usize) -> f64 {
        let ops = 2 * self.work.logit_rows * self.spec.hidden;
        self.rates[device].dense.time_s(self.sizes.row_bytes as f64, ops as f64)
    }

    fn rank(&self, device: usize, units: Units, layers: Layers) -> RankTime {
        let count = layers.count() as f64;
        let attention = |kind| self.attention_s(device, units.kv_heads, kind);
        let held = units.experts as f64 / self.spec.experts as f64;
        let experts = self.router_s(device) + held * units.blocks as f64 * self.block_s(device);
        RankTime {
            attention_s: layers.full as f64 * attention(LayerKind::Full)
                + layers.window as f64 * attention(LayerKind::Window),
            experts_s: count * experts,
            vocabulary_s: if layers.last { units.vocab as f64 * self.vocabulary_row_s(device) } else { 0.0 },
        }
    }

    /// The experts of one layer, without the router, where ranks hold them whole.
    pub fn whole_s(&self, devices: &[usize], counts: &[usize]) -> f64 {
        let unit_s: Vec<f64> = devices.iter().map(|&device| self.expert_s(device)).collect();
        let key = counts.iter().zip(&unit_s).map(|(&count, unit_s)| (count, unit_s.to_bits())).collect();
        let mut known = self.whole_s.borrow_mut();
        let slowest_s = *known.entry(key).or_insert_with(|| slowest_whole_s(counts, &unit_s, self.touched));
        self.fleet.costs.whole_factor * slowest_s
    }

    /// All-reduces of the stage, and the gathering of tokens.
    pub fn sums_s(&self, ranks: &Spread, layers: Layers) -> f64 {
        let sums = 2 * layers.count() + usize::from(layers.first);
        let gather = if layers.last { gather_s(self.fleet, ranks, self.work.logit_rows) } else { 0.0 };
        sums as f64 * all_reduce_s(self.fleet, ranks, self.work.rows * self.spec.hidden) + gather
    }

    pub fn fixed_s(&self, devices: &[usize], layers: Layers) -> f64 {
        let fixed = devices.iter().map(|&device| {
            let costs = self.fleet.costs.of(self.fleet.devices[device].backend);
            costs.step_s + layers.count() as f64 * costs.layer_s
        });
        fixed.fold(0.0, f64::max)
    }

    /// `devices` and `units` by rank.
    pub fn stage(
        &self,
        devices: &[usize],
        units: &[Units],
        placement: Placement,
        layers: Layers,
    ) -> StageTime {
        let ranks: Vec<RankTime> =
            devices.iter().zip(units).map(|(&device, &units)| self.rank(device, units, layers)).collect();
        let slowest = |part: &dyn Fn(&RankTime) -> f64| ranks.iter().map(part).fold(0.0, f64::max);
        let experts_s = match placement {
            Placement::Slices => slowest(&|rank| rank.experts_s),
            Placement::Whole => {
                let counts: Vec<usize> = units.iter().map(|units| units.experts).collect();
                let router = devices.iter().map(|&device| self.router_s(device)).fold(0.0, f64::max);
                layers.count() as f64 * (router + self.whole_s(devices, &counts))
            }
        };
        let spread = Spread::of(self.fleet, devices);
        StageTime {
            attention_s: slowest(&|rank| rank.attention_s),
            experts_s,
            vocabulary_s: slowest(&|rank| rank.vocabulary_s),
            sums_s: self.sums_s(&spread, layers),
            fixed_s: self.fixed_s(devices, layers),
            ranks,
        }
    }
}

/// How a stage of a plan divides its experts.
pub(crate) fn placement_of(spec: &ModelSpec, stage: &Stage) -> Placement {
    match stage.ranks.iter().all(|share| share.experts.experts == (0..spec.experts)) {
        true => Placement::Slices,
        false => Placement::Whole,
    }
}
