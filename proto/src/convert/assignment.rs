//! What a worker is to be in a group, and the plan that all of it follow.

use super::holders::holders;
use super::links::links;
use super::{
    WireError, backend, exactly_32, kv_dtype, narrow, need, range, to_backend, to_kv_dtype, to_range, wrong,
};
use crate::wire;
use flotilla_shared::group::{Assignment, WeightOrigin, WeightsId};
use flotilla_shared::plan::{ExpertShare, RANKS_MAX};
use flotilla_shared::{Epoch, KvBlocks, ModelSpec, Plan, Rank, RankShare, Stage};

impl From<&Stage> for wire::Stage {
    fn from(stage: &Stage) -> Self {
        let ranks = stage.ranks.iter().map(|share| wire::RankShare {
            rank: share.rank.0.into(),
            kv_heads: to_range(&share.kv_heads),
            experts: to_range(&share.experts.experts),
            blocks: to_range(&share.experts.blocks),
            vocab: to_range(&share.vocab),
            backend: to_backend(share.backend).into(),
            kv: to_kv_dtype(share.kv).into(),
        });
        wire::Stage { layers: to_range(&stage.layers), ranks: ranks.collect() }
    }
}

impl TryFrom<wire::Stage> for Stage {
    type Error = WireError;

    fn try_from(stage: wire::Stage) -> Result<Self, WireError> {
        let ranks = stage.ranks.into_iter().map(|share| {
            Ok(RankShare {
                rank: Rank(narrow(share.rank.into(), "RankShare.rank")?),
                backend: backend(share.backend, "RankShare.backend")?,
                kv: kv_dtype(share.kv, "RankShare.kv")?,
                kv_heads: range(share.kv_heads, "RankShare.kv_heads")?,
                experts: ExpertShare {
                    experts: range(share.experts, "RankShare.experts")?,
                    blocks: range(share.blocks, "RankShare.blocks")?,
                },
                vocab: range(share.vocab, "RankShare.vocab")?,
            })
        });
        Ok(Stage { layers: range(stage.layers, "Stage.layers")?, ranks: ranks.collect::<Result<_, _>>()? })
    }
}

impl From<&Assignment> for wire::Assignment {
    fn from(assignment: &Assignment) -> Self {
        wire::Assignment {
            epoch: assignment.epoch.0,
            rank: assignment.rank.0.into(),
            spec: Some((&assignment.spec).into()),
            stages: assignment.plan.stages.iter().map(Into::into).collect(),
            weights: Some(match assignment.weights {
                WeightOrigin::Stream => wire::assignment::Weights::Stream(true),
                WeightOrigin::Synthetic { seed } => wire::assignment::Weights::SyntheticSeed(seed),
            }),
            kv_blocks: Some(wire::KvBlocks {
                full: assignment.kv_blocks.full,
                window: assignment.kv_blocks.window,
            }),
            step_tokens_max: assignment.step_tokens_max,
            logit_rows_max: assignment.logit_rows_max,
            sampleable: assignment
                .sampleable
                .iter()
                .map(|ids| wire::Range { start: ids.start.into(), end: ids.end.into() })
                .collect(),
            peers: assignment.peers.clone(),
            group_key: assignment.group_key.to_vec().into(),
            weights_id: assignment.weights_id.0.to_vec().into(),
            links: Some((&assignment.links).into()),
            holders: assignment.holders.iter().map(Into::into).collect(),
            lends: assignment.lends,
        }
    }
}

impl TryFrom<wire::Assignment> for Assignment {
    type Error = WireError;

    fn try_from(wire: wire::Assignment) -> Result<Self, WireError> {
        let spec: ModelSpec = need(wire.spec, "Assignment.spec")?.try_into()?;
        let stages = wire.stages.into_iter().map(Stage::try_from).collect::<Result<_, _>>()?;
        let plan = Plan { stages };
        plan.check(&spec).map_err(|problem| wrong("Assignment.stages", problem))?;
        let rank = Rank(narrow(wire.rank.into(), "Assignment.rank")?);
        let ranks = plan.rank_count();
        if rank.index() >= ranks || ranks > RANKS_MAX || wire.peers.len() != ranks {
            let problem = format!("is {rank} of {ranks} ranks with {} peers", wire.peers.len());
            return Err(wrong("Assignment.rank", problem));
        }
        let sampleable = wire.sampleable.into_iter().map(|ids| {
            let ids = range(Some(ids), "Assignment.sampleable")?;
            let past = |end: usize| format!("reaches {end}, the vocabulary ends at {}", spec.vocab);
            if ids.end > spec.vocab {
                return Err(wrong("Assignment.sampleable", past(ids.end)));
            }
            Ok(ids.start as u32..ids.end as u32)
        });
        let kv_blocks = need(wire.kv_blocks, "Assignment.kv_blocks")?;
        Ok(Assignment {
            epoch: Epoch(wire.epoch),
            rank,
            sampleable: sampleable.collect::<Result<_, _>>()?,
            holders: holders(wire.holders, &spec)?,
            lends: wire.lends,
            spec,
            plan,
            weights: match need(wire.weights, "Assignment.weights")? {
                wire::assignment::Weights::Stream(_) => WeightOrigin::Stream,
                wire::assignment::Weights::SyntheticSeed(seed) => WeightOrigin::Synthetic { seed },
            },
            kv_blocks: KvBlocks { full: kv_blocks.full, window: kv_blocks.window },
            step_tokens_max: wire.step_tokens_max,
            logit_rows_max: wire.logit_rows_max,
            peers: wire.peers,
            links: links(wire.links, ranks)?,
            group_key: exactly_32(&wire.group_key, "Assignment.group_key")?,
            weights_id: WeightsId(exactly_32(&wire.weights_id, "Assignment.weights_id")?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::{HOLDERS_MAX, Held, Holder, Links, WireFormat};
    use proptest::prelude::*;

    fn assignment() -> impl Strategy<Value = Assignment> {
        let shares = prop::collection::vec(0.1f64..4.0, 1..9);
        (shares, any::<[u8; 32]>(), any::<u64>(), prop::option::of(any::<u64>()), any::<(u32, u32)>())
            .prop_map(|(shares, group_key, epoch, seed, kv_blocks)| {
                let spec = ModelSpec::published("gpt-oss-20b").unwrap();
                let plan = Plan::with_shares(&spec, &shares);
                let weights_id = WeightsId(group_key.map(|byte| !byte));
                let holders = plan.ranks().take(HOLDERS_MAX).map(|share| Holder {
                    address: format!("10.0.1.{}:7000", share.rank),
                    key: group_key.map(|byte| byte ^ share.rank.0 as u8),
                    held: Held { weights: weights_id, layers: 0..24, share: share.clone() },
                });
                Assignment {
                    holders: holders.collect(),
                    lends: epoch % 5 == 0,
                    epoch: Epoch(epoch),
                    rank: Rank(shares.len() as u16 - 1),
                    plan,
                    weights: seed.map_or(WeightOrigin::Stream, |seed| WeightOrigin::Synthetic { seed }),
                    kv_blocks: KvBlocks { full: kv_blocks.0, window: kv_blocks.1 },
                    step_tokens_max: 512,
                    logit_rows_max: 320,
                    sampleable: vec![0..5, 9..spec.vocab as u32],
                    peers: (0..shares.len()).map(|rank| format!("10.0.0.{rank}:7000")).collect(),
                    links: Links {
                        hosts: (0..shares.len() as u16).map(|rank| rank / 3).collect(),
                        must_share: epoch % 2 == 0,
                        wire: if epoch % 3 == 0 { WireFormat::Int8 } else { WireFormat::F32 },
                        whole_values_max: vec![epoch as u32 % 9000; shares.len() % 3],
                    },
                    group_key,
                    weights_id,
                    spec,
                }
            })
    }

    proptest! {
        #[test]
        fn assignments_survive_the_wire(assignment in assignment()) {
            let wire = wire::Assignment::from(&assignment);
            prop_assert_eq!(Assignment::try_from(wire).unwrap(), assignment);
        }
    }

    #[test]
    fn malformed_assignments_are_refused_by_field() {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let share = Plan::with_shares(&spec, &[1.0]).ranks().next().unwrap().clone();
        let held = Held { weights: WeightsId([8; 32]), layers: 0..24, share };
        let holder = Holder { address: "c:1".into(), key: [9; 32], held };
        let good = Assignment {
            epoch: Epoch(1),
            rank: Rank(0),
            plan: Plan::with_shares(&spec, &[1.0, 1.0]),
            weights: WeightOrigin::Stream,
            kv_blocks: KvBlocks::plain(8),
            step_tokens_max: 8,
            logit_rows_max: 320,
            sampleable: vec![0..8],
            peers: vec!["a:1".into(), "b:1".into()],
            links: Links::default(),
            group_key: [7; 32],
            weights_id: WeightsId([8; 32]),
            holders: vec![holder],
            lends: false,
            spec,
        };
        type Spoil = fn(&mut wire::Assignment);
        let cases: [(&str, Spoil); 18] = [
            ("Assignment.holders", |a| a.holders = vec![a.holders[0].clone(); HOLDERS_MAX + 1]),
            ("Holder.address", |a| a.holders[0].address.clear()),
            ("Holder.key", |a| a.holders[0].key = vec![1; 16].into()),
            ("Holder.held", |a| {
                let held = a.holders[0].held.as_mut().unwrap();
                held.stage.as_mut().unwrap().layers = Some(wire::Range { start: 0, end: 25 });
            }),
            ("Assignment.kv_blocks", |a| a.kv_blocks = None),
            ("Assignment.spec", |a| a.spec = None),
            ("Assignment.spec", |a| a.spec.as_mut().unwrap().hidden = 31),
            ("ModelSpec.layers", |a| a.spec.as_mut().unwrap().layers = vec![9].into()),
            ("Assignment.rank", |a| a.rank = 2),
            ("Assignment.rank", |a| drop(a.peers.pop())),
            ("Links.hosts", |a| a.links.as_mut().unwrap().hosts = vec![0]),
            ("Assignment.group_key", |a| a.group_key = vec![1].into()),
            ("Assignment.weights_id", |a| a.weights_id = vec![1; 33].into()),
            ("Assignment.sampleable", |a| a.sampleable[0].end = 1 << 40),
            ("RankShare.backend", |a| a.stages[0].ranks[0].backend = 9),
            ("RankShare.kv", |a| a.stages[0].ranks[0].kv = 3),
            ("RankShare.vocab", |a| a.stages[0].ranks[0].vocab = Some(wire::Range { start: 3, end: 1 })),
            ("Assignment.stages", |a| a.stages[0].ranks[1].kv_heads = Some(wire::Range { start: 0, end: 8 })),
        ];
        for (field, spoil) in cases {
            let mut wire = wire::Assignment::from(&good);
            spoil(&mut wire);
            assert_eq!(Assignment::try_from(wire).unwrap_err().field, field);
        }
    }
}
