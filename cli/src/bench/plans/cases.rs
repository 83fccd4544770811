//! The plans that are measured: one stage and several, alike and not, experts in slices and whole.

use crate::bench::driver::Kind;
use flotilla_shared::plan::{Placement, StageCut};
use flotilla_shared::{ModelSpec, Plan, Rank, RankShare, Stage};

pub struct Case {
    pub name: &'static str,
    pub plan: Plan,
}

impl Case {
    /// Workers that compute at the same time, at most.
    pub fn busy(&self, kind: &Kind) -> usize {
        (0..self.plan.rank_count()).map(|rank| self.busy_with(kind, rank)).max().unwrap_or(1)
    }

    /// This worker, and those that compute while it does.
    pub fn busy_with(&self, kind: &Kind, rank: usize) -> usize {
        let lanes = match *kind {
            Kind::Decode { sequences, .. } => self.plan.stages.len().min(sequences),
            Kind::Prompt { .. } => 1,
        };
        let widest = self.plan.stage_sizes().into_iter().max().unwrap_or(1);
        if lanes > 1 { lanes * widest } else { self.stage_of(rank).ranks.len() }
    }

    /// Part of a worker's time in which the others of its stage have done theirs and wait.
    pub fn alone(&self, kind: &Kind, rank: usize) -> f64 {
        let stage = self.stage_of(rank);
        let blocks = |share: &RankShare| (share.experts.experts.len() * share.experts.blocks.len()) as f64;
        let mine = stage.ranks.iter().find(|share| share.rank.index() == rank).map_or(0.0, blocks);
        let others = stage.ranks.iter().filter(|share| share.rank.index() != rank).map(blocks);
        match others.fold(None, |most: Option<f64>, other| Some(most.map_or(other, |most| most.max(other)))) {
            Some(other) if self.busy_with(kind, rank) == stage.ranks.len() => (1.0 - other / mine).max(0.0),
            _ => 0.0,
        }
    }

    fn stage_of(&self, rank: usize) -> &Stage {
        self.plan.share(Rank(rank as u16)).0
    }
}

pub fn all(spec: &ModelSpec) -> Vec<Case> {
    let layers = spec.layer_count();
    let case = |name, cuts: &[StageCut]| Case { name, plan: Plan::with_stages(spec, cuts) };
    let one = |layers| StageCut::even(layers, &[1.0]);
    let two = |layers| StageCut::even(layers, &[1.0, 1.0]);
    let (half, most) = (layers / 2, (3 * layers / 4).max(1));
    let mut cases = vec![
        case("1 rank", &[one(layers)]),
        case("2 ranks", &[two(layers)]),
        case("2 ranks, 2:1", &[StageCut::even(layers, &[2.0, 1.0])]),
        case("2 ranks, whole experts", &[StageCut { placement: Placement::Whole, ..two(layers) }]),
    ];
    if layers >= 4 {
        cases.extend([
            case("2 stages", &[one(half), one(layers - half)]),
            case("2 stages, 3:1", &[one(most), one(layers - most)]),
            case(
                "4 stages",
                &[one(layers / 4), one(layers / 4), one(layers / 4), one(layers - 3 * (layers / 4))],
            ),
            case("2 stages of 2 ranks", &[two(half), two(layers - half)]),
            case("1 rank, then 2", &[one(half), two(layers - half)]),
        ]);
    }
    cases
}
