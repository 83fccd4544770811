//! What fits into a rank's memory, by the same account as `Plan::total_bytes`.

use crate::model::{Layers, Sizes, StageModel, Units};
use flotilla_shared::activations::activation_bytes;
use flotilla_shared::ids::Rank;
use flotilla_shared::plan::ExpertShare;
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{Demand, RankShare};

/// Memory of one device in a stage of so many layers.
#[derive(Clone, Copy)]
pub(crate) struct Room<'a> {
    pub model: &'a StageModel<'a>,
    pub demand: Demand,
    pub layers: Layers,
    pub device: usize,
}

impl Room<'_> {
    /// At most what the plan counts; the biases that one rank adds are counted for every rank.
    pub fn needed(&self, units: Units) -> u64 {
        let Sizes { head_bytes, block_bytes, replicated_bytes, bias_bytes, row_bytes, .. } = self.model.sizes;
        let (layers, ends) = (self.layers.count() as u64, self.layers);
        let last = if ends.last { self.model.sizes.final_norm_bytes } else { 0 };
        let blocks = (units.experts * units.blocks) as u64;
        let vocabularies = u64::from(ends.first) + u64::from(ends.last);
        layers * (replicated_bytes + bias_bytes + units.kv_heads as u64 * head_bytes + blocks * block_bytes)
            + last
            + vocabularies * units.vocab as u64 * row_bytes
            + self.cache_bytes(units.kv_heads)
            + self.activations(units)
    }

    fn cache_bytes(&self, kv_heads: usize) -> u64 {
        let element = self.model.fleet.devices[self.device].kv.element_bytes() as u64;
        let blocks = self.demand.kv_blocks;
        let positions = (self.layers.full as u64 * u64::from(blocks.full)
            + self.layers.window as u64 * u64::from(blocks.window))
            * BLOCK_TOKENS as u64;
        kv_heads as u64 * self.model.sizes.key_elements * element * positions
    }

    fn activations(&self, units: Units) -> u64 {
        let device = &self.model.fleet.devices[self.device];
        let share = RankShare {
            rank: Rank(0),
            backend: device.backend,
            kv: device.kv,
            kv_heads: 0..units.kv_heads,
            experts: ExpertShare { experts: 0..units.experts, blocks: 0..units.blocks },
            vocab: 0..if self.layers.last { units.vocab } else { 0 },
        };
        activation_bytes(self.model.spec, &share, self.demand)
    }

    /// The most of one kind, up to `whole`, beside `units` of the others.
    pub fn most(&self, units: Units, whole: usize, with: impl Fn(Units, usize) -> Units) -> usize {
        let needed = |count| self.needed(with(units, count));
        let memory = self.model.fleet.devices[self.device].memory_bytes;
        let all = needed(whole);
        if all <= memory {
            return whole;
        }
        let one = needed(1);
        if one > memory {
            return 0;
        }
        // What is needed grows nearly evenly from the first unit on: it is close to where a line meets the memory.
        let part = (memory - one) as f64 / (all - one) as f64;
        let guess = 1 + (part * (whole - 1) as f64) as usize;
        let (mut fits, mut too_many, mut stride) = (1, whole, 1);
        if needed(guess) <= memory {
            fits = guess
        } else {
            too_many = guess
        }
        while too_many - fits > 1 {
            let near = if fits == guess { fits + stride } else { too_many.saturating_sub(stride) };
            let middle = near.clamp(fits + 1, too_many - 1);
            if needed(middle) <= memory {
                fits = middle
            } else {
                too_many = middle
            }
            stride *= 4;
        }
        fits
    }
}
