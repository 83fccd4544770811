//! Tensor parallelism within the devices' memory: who has too much gets less, and the others more, until all fit. First by
//! one share of everything; where that ends nowhere, by shares of each kind, for few heads over some ranks come out so
//! uneven that who has one more must have fewer experts.

use super::{Demand, Plan, StageCut};
use crate::inventory::Inventory;
use crate::spec::ModelSpec;
use std::slice;

/// Each is a cut of the whole model: a plan that is to be found is found in a few dozen.
const ROUNDS: usize = 256;
/// A share gets less by so much at least.
const KEPT_MOST: f64 = 0.99;

/// Devices in which a model is to fit.
#[derive(Clone, Copy)]
pub struct Fitting<'a> {
    pub spec: &'a ModelSpec,
    pub devices: &'a [Inventory],
    pub demand: Demand,
}

impl Fitting<'_> {
    /// Each rank has about the same share of heads, experts and vocabulary.
    pub fn by_one_share(self, mut weights: Vec<f64>) -> Option<Plan> {
        for _ in 0..ROUNDS {
            let plan = Plan::with_shares(self.spec, &weights).on(self.devices);
            let mut fits = true;
            for (weight, (needed, memory)) in weights.iter_mut().zip(self.needed(&plan)) {
                if needed > memory {
                    fits = false;
                    *weight *= (memory as f64 / needed as f64).min(KEPT_MOST);
                }
            }
            if fits {
                return Some(plan);
            }
        }
        None
    }

    /// Of a rank that does not fit, what is cut finest gets less: of the vocabulary where that is enough, else of the experts
    /// too, and of the heads only where they alone are too much.
    pub fn by_kinds(self, weights: &[f64]) -> Option<Plan> {
        let mut cut = StageCut::even(self.spec.layer_count(), weights);
        for _ in 0..ROUNDS {
            let plan = Plan::with_stages(self.spec, slice::from_ref(&cut)).on(self.devices);
            let mut fits = true;
            for (at, (share, (needed, memory))) in plan.ranks().zip(self.needed(&plan)).enumerate() {
                let Some(excess) = needed.checked_sub(memory).filter(|excess| *excess > 0) else { continue };
                fits = false;
                let bytes = plan.bytes(self.spec, share.rank);
                let vocab = bytes.embedding + bytes.unembedding;
                let shrink = |weight: &mut f64, part: u64| *weight *= 1.0 - excess as f64 / part as f64;
                if excess < vocab {
                    shrink(&mut cut.vocab[at], vocab);
                } else if excess < vocab + bytes.experts {
                    shrink(&mut cut.vocab[at], vocab + bytes.experts);
                    shrink(&mut cut.experts[at], vocab + bytes.experts);
                } else {
                    cut.kv_heads[at] *= (memory as f64 / needed as f64).min(KEPT_MOST);
                }
            }
            if fits {
                return Some(plan);
            }
        }
        None
    }

    /// By rank: what it needs of which memory.
    fn needed(self, plan: &Plan) -> impl Iterator<Item = (u64, u64)> {
        plan.ranks().zip(self.devices).map(move |(share, device)| {
            (plan.total_bytes(self.spec, share.rank, self.demand), device.memory_bytes)
        })
    }
}
