//! Wire to domain and back. Everything that arrives is checked here: what is missing, out of range or
//! too long is an error that names the message and the field.

mod fetch;
mod held;
mod holders;
mod link_test;
mod links;
mod slice;
mod step;

pub use fetch::Fetch;
pub use held::{released, released_from};
pub use link_test::{measured, measured_from};
pub use links::ready;

use crate::wire;
use flotilla_shared::group::{Assignment, ByPlace, Loading, Place, WeightOrigin, WeightsId};
use flotilla_shared::plan::{ExpertShare, RANKS_MAX};
use flotilla_shared::spec::Rope;
use flotilla_shared::{
    BackendKind, Epoch, Held, Inventory, KvBlocks, KvDtype, LayerKind, ModelSpec, Plan, Rank, RankShare,
    Stage,
};
use holders::holders;
use links::links;
use std::ops::Range;
use thiserror::Error;

/// A worker's first words.
#[derive(Clone, Debug, PartialEq)]
pub struct Hello {
    pub protocol: u32,
    pub version: String,
    pub inventory: Inventory,
    pub collective_address: String,
    /// Where it runs, as far as sharing memory goes.
    pub host: String,
    /// What it has of a group before.
    pub held: Option<Held>,
    /// Where it hands on weights, and the key that who asks must show.
    pub hands_on: Option<(String, [u8; 32])>,
}

/// Why a message is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("malformed message: {field} {problem}")]
pub struct WireError {
    /// `Message.field`
    pub field: &'static str,
    pub problem: String,
}

fn wrong(field: &'static str, problem: impl Into<String>) -> WireError {
    WireError { field, problem: problem.into() }
}

fn need<T>(value: Option<T>, field: &'static str) -> Result<T, WireError> {
    value.ok_or_else(|| wrong(field, "is missing"))
}

fn narrow<T: TryFrom<u64>>(value: u64, field: &'static str) -> Result<T, WireError> {
    T::try_from(value).map_err(|_| wrong(field, format!("is {value}, past its type's range")))
}

fn range(value: Option<wire::Range>, field: &'static str) -> Result<Range<usize>, WireError> {
    let wire::Range { start, end } = need(value, field)?;
    if start > end {
        return Err(wrong(field, format!("is {start}..{end}, which runs backwards")));
    }
    Ok(narrow(start, field)?..narrow(end, field)?)
}

fn to_range(range: &Range<usize>) -> Option<wire::Range> {
    Some(wire::Range { start: range.start as u64, end: range.end as u64 })
}

fn exactly_32(bytes: &[u8], field: &'static str) -> Result<[u8; 32], WireError> {
    bytes.try_into().map_err(|_| wrong(field, format!("has {} bytes, expected 32", bytes.len())))
}

/// The digest of a chunk: exactly 32 bytes.
pub fn chunk_digest(digest: &[u8]) -> Result<[u8; 32], WireError> {
    exactly_32(digest, "SliceChunk.digest")
}

fn to_backend(kind: BackendKind) -> wire::Backend {
    match kind {
        BackendKind::Cpu => wire::Backend::Cpu,
        BackendKind::Cuda => wire::Backend::Cuda,
    }
}

fn backend(value: i32, field: &'static str) -> Result<BackendKind, WireError> {
    match wire::Backend::try_from(value) {
        Ok(wire::Backend::Cpu) => Ok(BackendKind::Cpu),
        Ok(wire::Backend::Cuda) => Ok(BackendKind::Cuda),
        Err(_) => Err(wrong(field, format!("is {value}, which no backend has"))),
    }
}

fn to_kv_dtype(kv: KvDtype) -> wire::KvDtype {
    match kv {
        KvDtype::F32 => wire::KvDtype::F32,
        KvDtype::F16 => wire::KvDtype::F16,
        KvDtype::Bf16 => wire::KvDtype::Bf16,
    }
}

fn kv_dtype(value: i32, field: &'static str) -> Result<KvDtype, WireError> {
    match wire::KvDtype::try_from(value) {
        Ok(wire::KvDtype::F32) => Ok(KvDtype::F32),
        Ok(wire::KvDtype::F16) => Ok(KvDtype::F16),
        Ok(wire::KvDtype::Bf16) => Ok(KvDtype::Bf16),
        Err(_) => Err(wrong(field, format!("is {value}, which no cache has"))),
    }
}

impl From<&Hello> for wire::Hello {
    fn from(hello: &Hello) -> Self {
        let inventory = &hello.inventory;
        wire::Hello {
            protocol: hello.protocol,
            version: hello.version.clone(),
            inventory: Some(wire::Inventory {
                name: inventory.name.clone(),
                device: inventory.device.clone(),
                memory_bytes: inventory.memory_bytes,
                bandwidth: inventory.bandwidth,
                compute: inventory.compute,
                expert_compute: inventory.expert_compute,
                threads: inventory.threads.into(),
                backend: to_backend(inventory.backend).into(),
                kv: to_kv_dtype(inventory.kv).into(),
            }),
            collective_address: hello.collective_address.clone(),
            host: hello.host.clone(),
            held: hello.held.as_ref().map(Into::into),
            weights_address: hello.hands_on.as_ref().map_or_else(String::new, |(address, _)| address.clone()),
            weights_key: hello
                .hands_on
                .as_ref()
                .map_or_else(Default::default, |(_, key)| key.to_vec().into()),
        }
    }
}

impl TryFrom<wire::Hello> for Hello {
    type Error = WireError;

    fn try_from(hello: wire::Hello) -> Result<Self, WireError> {
        const NAME_BYTES_MAX: usize = 256;
        let inventory = need(hello.inventory, "Hello.inventory")?;
        let texts = [
            ("Hello.version", &hello.version),
            ("Hello.collective_address", &hello.collective_address),
            ("Hello.host", &hello.host),
            ("Hello.weights_address", &hello.weights_address),
            ("Inventory.name", &inventory.name),
            ("Inventory.device", &inventory.device),
        ];
        for (field, text) in texts {
            if text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
                return Err(wrong(field, format!("must be at most {NAME_BYTES_MAX} printable bytes")));
            }
        }
        let hands_on = match hello.weights_address {
            address if address.is_empty() => None,
            address => Some((address, exactly_32(&hello.weights_key, "Hello.weights_key")?)),
        };
        Ok(Hello {
            protocol: hello.protocol,
            version: hello.version,
            inventory: Inventory {
                backend: backend(inventory.backend, "Inventory.backend")?,
                kv: kv_dtype(inventory.kv, "Inventory.kv")?,
                name: inventory.name,
                device: inventory.device,
                memory_bytes: inventory.memory_bytes,
                bandwidth: inventory.bandwidth,
                compute: inventory.compute,
                expert_compute: inventory.expert_compute,
                threads: narrow(inventory.threads.into(), "Inventory.threads")?,
            },
            collective_address: hello.collective_address,
            host: hello.host,
            held: hello.held.map(Held::try_from).transpose()?,
            hands_on,
        })
    }
}

impl From<Loading> for wire::Loading {
    fn from(loading: Loading) -> Self {
        let from = |place| loading.by_place.of(place);
        wire::Loading {
            bytes_done: loading.bytes_done,
            bytes_total: loading.bytes_total,
            kept_bytes: from(Place::Kept),
            cache_bytes: from(Place::Cache),
            peer_bytes: from(Place::Peer),
            coordinator_bytes: from(Place::Coordinator),
        }
    }
}

impl From<wire::Loading> for Loading {
    fn from(loading: wire::Loading) -> Self {
        let mut by_place = ByPlace::default();
        by_place.add(Place::Kept, loading.kept_bytes);
        by_place.add(Place::Cache, loading.cache_bytes);
        by_place.add(Place::Peer, loading.peer_bytes);
        by_place.add(Place::Coordinator, loading.coordinator_bytes);
        Loading { bytes_done: loading.bytes_done, bytes_total: loading.bytes_total, by_place }
    }
}

impl From<&ModelSpec> for wire::ModelSpec {
    fn from(spec: &ModelSpec) -> Self {
        let rope = &spec.rope;
        wire::ModelSpec {
            hidden: spec.hidden as u64,
            intermediate: spec.intermediate as u64,
            layers: spec.layers.iter().map(|kind| u8::from(*kind == LayerKind::Window)).collect(),
            q_heads: spec.q_heads as u64,
            kv_heads: spec.kv_heads as u64,
            head_dim: spec.head_dim as u64,
            experts: spec.experts as u64,
            experts_per_token: spec.experts_per_token as u64,
            vocab: spec.vocab as u64,
            window: spec.window as u64,
            context_max: spec.context_max as u64,
            norm_eps: spec.norm_eps,
            swiglu_limit: spec.swiglu_limit,
            rope: Some(wire::Rope {
                theta: rope.theta,
                factor: rope.factor,
                beta_fast: rope.beta_fast,
                beta_slow: rope.beta_slow,
                original_context: rope.original_context,
                truncate: rope.truncate,
            }),
        }
    }
}

impl TryFrom<wire::ModelSpec> for ModelSpec {
    type Error = WireError;

    fn try_from(spec: wire::ModelSpec) -> Result<Self, WireError> {
        let rope = need(spec.rope, "ModelSpec.rope")?;
        let layers = spec.layers.iter().map(|kind| match kind {
            0 => Ok(LayerKind::Full),
            1 => Ok(LayerKind::Window),
            other => Err(wrong("ModelSpec.layers", format!("has a layer of kind {other}, expected 0 or 1"))),
        });
        let spec = ModelSpec {
            hidden: narrow(spec.hidden, "ModelSpec.hidden")?,
            intermediate: narrow(spec.intermediate, "ModelSpec.intermediate")?,
            layers: layers.collect::<Result<_, _>>()?,
            q_heads: narrow(spec.q_heads, "ModelSpec.q_heads")?,
            kv_heads: narrow(spec.kv_heads, "ModelSpec.kv_heads")?,
            head_dim: narrow(spec.head_dim, "ModelSpec.head_dim")?,
            experts: narrow(spec.experts, "ModelSpec.experts")?,
            experts_per_token: narrow(spec.experts_per_token, "ModelSpec.experts_per_token")?,
            vocab: narrow(spec.vocab, "ModelSpec.vocab")?,
            window: narrow(spec.window, "ModelSpec.window")?,
            context_max: narrow(spec.context_max, "ModelSpec.context_max")?,
            norm_eps: spec.norm_eps,
            swiglu_limit: spec.swiglu_limit,
            rope: Rope {
                theta: rope.theta,
                factor: rope.factor,
                beta_fast: rope.beta_fast,
                beta_slow: rope.beta_slow,
                original_context: rope.original_context,
                truncate: rope.truncate,
            },
        };
        spec.check().map_err(|error| wrong("Assignment.spec", error.to_string()))?;
        Ok(spec)
    }
}

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
            spec,
            plan,
            weights: match need(wire.weights, "Assignment.weights")? {
                wire::assignment::Weights::Stream(_) => WeightOrigin::Stream,
                wire::assignment::Weights::SyntheticSeed(seed) => WeightOrigin::Synthetic { seed },
            },
            kv_blocks: KvBlocks { full: kv_blocks.full, window: kv_blocks.window },
            step_tokens_max: wire.step_tokens_max,
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
    use flotilla_shared::{HOLDERS_MAX, Holder, Links, WireFormat};
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
                    epoch: Epoch(epoch),
                    rank: Rank(shares.len() as u16 - 1),
                    plan,
                    weights: seed.map_or(WeightOrigin::Stream, |seed| WeightOrigin::Synthetic { seed }),
                    kv_blocks: KvBlocks { full: kv_blocks.0, window: kv_blocks.1 },
                    step_tokens_max: 512,
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

        #[test]
        fn hellos_survive_the_wire(name in "[a-z0-9/ ]{0,40}", numbers in any::<(u32, u64, u16)>()) {
            let hello = Hello {
                protocol: numbers.0,
                version: "1.2.3".into(),
                inventory: Inventory {
                    name,
                    backend: if numbers.0 % 2 == 0 { BackendKind::Cpu } else { BackendKind::Cuda },
                    kv: [KvDtype::F16, KvDtype::Bf16, KvDtype::F32][numbers.2 as usize % 3],
                    device: "cpu".into(),
                    memory_bytes: numbers.1,
                    bandwidth: 3.5e10,
                    compute: 1.5e11,
                    expert_compute: 3e11,
                    threads: numbers.2,
                },
                collective_address: "127.0.0.1:9".into(),
                host: "here".into(),
                held: (numbers.2 % 3 > 0).then(|| {
                    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
                    let plan = Plan::with_shares(&spec, &[1.0, f64::from(numbers.2)]);
                    let (stage, share) = plan.share(Rank(1));
                    Held { weights: WeightsId([9; 32]), layers: stage.layers.clone(), share: share.clone() }
                }),
                hands_on: (numbers.0 % 5 > 0).then(|| ("127.0.0.1:10".into(), [numbers.1 as u8; 32])),
            };
            prop_assert_eq!(Hello::try_from(wire::Hello::from(&hello)).unwrap(), hello);
        }

        #[test]
        fn progress_survives_the_wire(numbers in any::<[u64; 6]>()) {
            let mut loading = Loading { bytes_done: numbers[0], bytes_total: numbers[1], ..Loading::default() };
            Place::ALL.into_iter().zip(&numbers[2..]).for_each(|(place, bytes)| loading.by_place.add(place, *bytes));
            prop_assert_eq!(Loading::from(wire::Loading::from(loading)), loading);
        }
    }

    #[test]
    fn who_hands_on_weights_has_a_key() {
        let hello = wire::Hello {
            inventory: Some(wire::Inventory::default()),
            weights_address: "a:1".into(),
            weights_key: vec![1; 31].into(),
            ..Default::default()
        };
        assert_eq!(Hello::try_from(hello).unwrap_err().field, "Hello.weights_key");
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
            sampleable: vec![0..8],
            peers: vec!["a:1".into(), "b:1".into()],
            links: Links::default(),
            group_key: [7; 32],
            weights_id: WeightsId([8; 32]),
            holders: vec![holder],
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
