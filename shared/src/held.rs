//! What a worker holds of a model while it is in no group: the next plan gives it as much of that as it can.

use crate::group::WeightsId;
use crate::ids::Rank;
use crate::plan::{Plan, RankShare, Stage};
use crate::spec::{MXFP4_BLOCK, ModelSpec};
use crate::tensor::{TensorId, TensorSlice};
use std::collections::HashMap;
use std::ops::Range;

/// Weights that outlived their group.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    pub weights: WeightsId,
    pub layers: Range<usize>,
    pub share: RankShare,
}

impl Held {
    /// The share of a rank.
    pub fn of(weights: WeightsId, plan: &Plan, rank: Rank) -> Held {
        let (stage, share) = plan.share(rank);
        Held { weights, layers: stage.layers.clone(), share: share.clone() }
    }

    /// Whether it is the very same slices, whatever the rank's number.
    pub fn is_alike(&self, other: &Held) -> bool {
        let share = RankShare { rank: other.share.rank, ..self.share.clone() };
        (self.weights, &self.layers, &share) == (other.weights, &other.layers, &other.share)
    }

    /// Whether it has some of every layer of which the other has.
    pub fn has_layers_of(&self, other: &Held) -> bool {
        self.layers.start <= other.layers.start && other.layers.end <= self.layers.end
    }

    /// What is held, in the order of the forward.
    pub fn slices(&self, spec: &ModelSpec) -> Vec<TensorSlice> {
        self.share.slices(spec, &self.layers)
    }

    /// Whether all of it is of a model of this shape: to be asked of what others say that they hold.
    pub fn lies_in(&self, spec: &ModelSpec) -> bool {
        let (share, blocks) = (&self.share, spec.intermediate / MXFP4_BLOCK);
        let within = |range: &Range<usize>, count: usize| range.start <= range.end && range.end <= count;
        within(&self.layers, spec.layer_count())
            && within(&share.kv_heads, spec.kv_heads)
            && within(&share.experts.experts, spec.experts)
            && within(&share.experts.blocks, blocks)
            && within(&share.vocab, spec.vocab)
    }

    /// Rectangles of this that one who `has` that, or nothing, lacks.
    pub fn lacking(&self, spec: &ModelSpec, has: Option<&Held>) -> Vec<TensorSlice> {
        let has = has.filter(|has| has.weights == self.weights).map(|has| has.by_tensor(spec));
        let of = |tensor| has.as_ref().and_then(|has| has.get(&tensor));
        let lacks = |slice: TensorSlice| match of(slice.tensor) {
            Some(has) => slice.without(has),
            None => vec![slice],
        };
        self.slices(spec).into_iter().flat_map(lacks).collect()
    }

    /// What is held, one slice a tensor.
    pub fn by_tensor(&self, spec: &ModelSpec) -> HashMap<TensorId, TensorSlice> {
        self.slices(spec).into_iter().map(|slice| (slice.tensor, slice)).collect()
    }

    /// Elements, about, that a rank of `stage` with this `share` needs and that are held already.
    pub fn of_use(&self, spec: &ModelSpec, stage: &Stage, share: &RankShare) -> usize {
        let both = |a: &Range<usize>, b: &Range<usize>| a.end.min(b.end).saturating_sub(a.start.max(b.start));
        let (own, hidden) = (&self.share, spec.hidden);
        let experts = both(&own.experts.experts, &share.experts.experts);
        let blocks = both(&own.experts.blocks, &share.experts.blocks);
        let q_heads = both(&own.kv_heads, &share.kv_heads) * spec.q_heads / spec.kv_heads.max(1);
        // Three matrices an expert at half a byte, two of attention at two bytes, and as much of k and v as fits.
        let layer = experts * blocks * MXFP4_BLOCK * 3 * hidden / 4 + q_heads * spec.head_dim * hidden * 2;
        both(&self.layers, &stage.layers) * layer + both(&own.vocab, &share.vocab) * hidden * 2
    }
}

/// For each rank of `plan`, which of so many workers takes it, so that they need as little as they can: the best pair
/// first. Workers that hold nothing of these weights take what is left, in their order.
pub fn seats(spec: &ModelSpec, plan: &Plan, weights: WeightsId, workers: &[Option<Held>]) -> Vec<usize> {
    let mut pairs = Vec::new();
    for (worker, held) in workers.iter().enumerate() {
        let Some(held) = held.as_ref().filter(|held| held.weights == weights) else { continue };
        for share in plan.ranks() {
            let stage = plan.share(share.rank).0;
            pairs.push((held.of_use(spec, stage, share), share.rank.index(), worker));
        }
    }
    pairs.retain(|(of_use, ..)| *of_use > 0);
    pairs.sort_by_key(|&(of_use, rank, worker)| (std::cmp::Reverse(of_use), rank, worker));
    let mut seats = vec![None; plan.rank_count()];
    for (_, rank, worker) in pairs {
        if seats[rank].is_none() && !seats.contains(&Some(worker)) {
            seats[rank] = Some(worker);
        }
    }
    let mut others = (0..workers.len()).filter(|worker| !seats.contains(&Some(*worker))).collect::<Vec<_>>();
    others.reverse();
    let fill = |seat: Option<usize>| seat.unwrap_or_else(|| others.pop().expect("a worker for each rank"));
    seats.into_iter().map(fill).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEIGHTS: WeightsId = WeightsId([1; 32]);

    fn left_by(plan: &Plan, rank: u16, weights: WeightsId) -> Option<Held> {
        Some(Held::of(weights, plan, Rank(rank)))
    }

    #[test]
    fn everybody_keeps_what_he_has() {
        let spec = ModelSpec::published("gpt-oss-20b").expect("it is");
        let three = Plan::with_shares(&spec, &[1.0; 3]);
        let [a, b, c] = [0, 1, 2].map(|rank| left_by(&three, rank, WEIGHTS));
        let seated = |plan: &Plan, workers: &[Option<Held>]| seats(&spec, plan, WEIGHTS, workers);
        // A new one comes for the one that is lost, whatever their names.
        assert_eq!(seated(&three, &[None, b.clone(), c.clone()]), [0, 1, 2]);
        assert_eq!(seated(&three, &[c.clone(), None, a.clone()]), [2, 1, 0]);
        assert_eq!(seated(&three, &[b.clone(), c.clone(), None]), [2, 0, 1]);
        // On what is left: of 0..45 and 45..90 blocks the one has 30..60 and the other 60..90.
        let two = Plan::with_shares(&spec, &[1.0; 2]);
        assert_eq!(seated(&two, &[c.clone(), b.clone()]), [1, 0]);
        // Between two halves comes the one that has nothing: so neither of them lacks anything of its third.
        let [left, right] = [0, 1].map(|rank| left_by(&two, rank, WEIGHTS));
        assert_eq!(seated(&three, &[left, right, None]), [0, 2, 1]);
        // Other weights are of no use.
        assert_eq!(seated(&three, &[left_by(&three, 2, WeightsId([2; 32])), None, None]), [0, 1, 2]);
    }
}
