//! A small model of random bits: every tensor whole, in the checkpoint's own form.

use flotilla_engine::weights::{WeightError, WeightSource};
use flotilla_shared::plan::ExpertShare;
use flotilla_shared::sampling::mix;
use flotilla_shared::spec::Rope;
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{
    BackendKind, Dtype, KvDtype, LayerKind, ModelSpec, Plan, Rank, RankShare, Stage, TensorSlice,
};
use half::bf16;
use std::collections::BTreeMap;
use std::ops::Range;

/// Window and full layers in turn; a window that is no multiple of a block; four query heads a kv head.
pub fn spec() -> ModelSpec {
    ModelSpec {
        hidden: 64,
        intermediate: 96,
        layers: vec![LayerKind::Window, LayerKind::Full],
        q_heads: 8,
        kv_heads: 2,
        head_dim: 16,
        experts: 8,
        experts_per_token: 2,
        vocab: 90,
        window: 13,
        context_max: 512,
        norm_eps: 1e-5,
        swiglu_limit: 7.0,
        rope: Rope {
            theta: 150_000.0,
            factor: 32.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 4096.0,
            truncate: false,
        },
    }
}

/// Wider heads, and another number of everything that may differ.
pub fn wide_spec() -> ModelSpec {
    ModelSpec {
        intermediate: 64,
        layers: vec![LayerKind::Window, LayerKind::Full, LayerKind::Window],
        q_heads: 6,
        kv_heads: 3,
        head_dim: 32,
        experts: 10,
        experts_per_token: 4,
        vocab: 70,
        window: 32,
        ..spec()
    }
}

/// One rank that holds all.
pub fn whole(spec: &ModelSpec) -> Plan {
    Plan::with_shares(spec, &[1.0])
}

/// A slice of every expert each; unequal parts of all.
pub fn two_ranks(spec: &ModelSpec) -> Plan {
    let blocks = spec.intermediate_blocks();
    let all = 0..spec.experts;
    plan(spec, [(0..1, all.clone(), 0..1, 0..37), (1..spec.kv_heads, all, 1..blocks, 37..spec.vocab)])
}

/// Experts whole. The first rank has no vocabulary, the second no heads, the third no experts, the last nothing.
pub fn four_ranks(spec: &ModelSpec) -> Plan {
    let (blocks, heads, experts) = (0..spec.intermediate_blocks(), spec.kv_heads, spec.experts);
    plan(
        spec,
        [
            (0..1, 0..3, blocks.clone(), 0..0),
            (1..1, 3..experts, blocks.clone(), 0..50),
            (1..heads, experts..experts, blocks.clone(), 50..spec.vocab),
            (heads..heads, experts..experts, blocks, spec.vocab..spec.vocab),
        ],
    )
}

/// (kv heads, experts, blocks of the intermediate, vocabulary) of each rank.
type Part = (Range<usize>, Range<usize>, Range<usize>, Range<usize>);

fn plan<const N: usize>(spec: &ModelSpec, parts: [Part; N]) -> Plan {
    let share = |(rank, (kv_heads, experts, blocks, vocab)): (usize, Part)| RankShare {
        rank: Rank(rank as u16),
        backend: BackendKind::default(),
        kv: KvDtype::default(),
        kv_heads,
        experts: ExpertShare { experts, blocks },
        vocab,
    };
    let ranks = parts.into_iter().enumerate().map(share).collect();
    let plan = Plan { stages: vec![Stage { layers: 0..spec.layer_count(), ranks }] };
    plan.check(spec).unwrap();
    plan
}

/// Random numbers of a seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(mix(seed ^ 0x0b5))
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// Mean 0, variance 1, no tails.
    pub fn unit(&mut self) -> f32 {
        let uniform = (self.bits() >> 40) as f32 / (1u64 << 24) as f32;
        (2.0 * uniform - 1.0) * 3f32.sqrt()
    }

    pub fn units(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }
}

/// The bytes of every tensor.
pub struct Model {
    spec: ModelSpec,
    tensors: BTreeMap<TensorId, Vec<u8>>,
}

impl Model {
    pub fn random(spec: &ModelSpec, seed: u64) -> Model {
        let mut random = Random::new(seed);
        let tensors = TensorId::all(spec).map(|tensor| (tensor, random_bytes(tensor, spec, &mut random)));
        Model { spec: spec.clone(), tensors: tensors.collect() }
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    pub fn bytes(&self, tensor: TensorId) -> &[u8] {
        &self.tensors[&tensor]
    }

    /// Changes a tensor, element by element of bf16.
    pub fn edit(&mut self, tensor: TensorId, edit: impl FnOnce(&mut [bf16])) {
        let bytes = self.tensors.get_mut(&tensor).unwrap();
        let mut values: Vec<bf16> =
            bytes.chunks(2).map(|two| bf16::from_le_bytes([two[0], two[1]])).collect();
        edit(&mut values);
        *bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    }
}

impl WeightSource for Model {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn read(&self, slice: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<(), WeightError> {
        let (whole, element) = (&self.tensors[&slice.tensor], slice.tensor.dtype().bytes());
        let runs = slice.runs(&slice.tensor.shape(&self.spec));
        let bytes: Vec<u8> =
            runs.flat_map(|run| &whole[run.start * element..run.end * element]).copied().collect();
        out.copy_from_slice(&bytes[offset..][..out.len()]);
        Ok(())
    }
}

fn random_bytes(tensor: TensorId, spec: &ModelSpec, random: &mut Random) -> Vec<u8> {
    use LayerTensor::*;
    let n: usize = tensor.shape(spec).iter().product();
    let (mean, std) = match tensor {
        TensorId::Layer(_, AttentionNorm | MlpNorm) | TensorId::FinalNorm => (1.0, 0.25),
        // As large as the largest scores: a sink takes about a third of what a row gives out.
        TensorId::Layer(_, Sinks) => (3.0, 1.5),
        TensorId::Layer(_, part) if is_bias(part) => (0.0, 0.3),
        TensorId::Layer(_, OWeight) => (0.0, 1.0 / ((spec.q_heads * spec.head_dim) as f32).sqrt()),
        TensorId::Embed => (0.0, 1.0),
        _ => (0.0, 1.5 / (spec.hidden as f32).sqrt()),
    };
    if tensor.dtype() == Dtype::Bf16 {
        let value = |_| bf16::from_f32(mean + std * random.unit()).to_le_bytes();
        return (0..n).flat_map(value).collect();
    }
    match tensor {
        // Gates and ups with a standard deviation of 5, so that the limit of 7 acts on both.
        TensorId::Layer(_, GateUpScales) => (0..n).map(|_| 124 + random.below(3) as u8).collect(),
        TensorId::Layer(_, DownScales) => (0..n).map(|_| 120 + random.below(3) as u8).collect(),
        _ => (0..n).map(|_| random.bits() as u8).collect(),
    }
}

fn is_bias(part: LayerTensor) -> bool {
    use LayerTensor::*;
    matches!(part, QBias | KBias | VBias | OBias | RouterBias | GateUpBias | DownBias)
}

/// What ops that sum over ranks are tested on: a model whole and cut twice, and another one whole.
pub fn cuts() -> Vec<(ModelSpec, Plan)> {
    let (narrow, wide) = (spec(), wide_spec());
    let of = |cut: fn(&ModelSpec) -> Plan, spec: &ModelSpec| (spec.clone(), cut(spec));
    vec![of(whole, &narrow), of(two_ranks, &narrow), of(four_ranks, &narrow), of(whole, &wide)]
}
