//! The tensors of a checkpoint: their published names, dtypes and shapes, and rectangular slices of
//! them. The one list that loading, checking, cutting and synthesis all read.
//!
//! Letters: H hidden, I intermediate, E experts, V vocabulary, D head_dim, nq and nk heads.

use crate::spec::{MXFP4_BLOCK, ModelSpec};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// Element types on disk, as safetensors names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dtype {
    Bf16,
    /// MXFP4 blocks (two elements a byte) and their scales.
    U8,
}

impl Dtype {
    pub fn bytes(self) -> usize {
        match self {
            Dtype::Bf16 => 2,
            Dtype::U8 => 1,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bf16 => "BF16",
            Dtype::U8 => "U8",
        }
    }
}

/// Which tensor, by its part in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TensorId {
    Embed,
    Layer(u16, LayerTensor),
    FinalNorm,
    Unembed,
}

/// The tensors of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LayerTensor {
    AttentionNorm,
    QWeight,
    QBias,
    KWeight,
    KBias,
    VWeight,
    VBias,
    OWeight,
    OBias,
    Sinks,
    MlpNorm,
    RouterWeight,
    RouterBias,
    GateUpBlocks,
    GateUpScales,
    GateUpBias,
    DownBlocks,
    DownScales,
    DownBias,
}

impl LayerTensor {
    pub const ALL: [LayerTensor; 19] = [
        LayerTensor::AttentionNorm,
        LayerTensor::QWeight,
        LayerTensor::QBias,
        LayerTensor::KWeight,
        LayerTensor::KBias,
        LayerTensor::VWeight,
        LayerTensor::VBias,
        LayerTensor::OWeight,
        LayerTensor::OBias,
        LayerTensor::Sinks,
        LayerTensor::MlpNorm,
        LayerTensor::RouterWeight,
        LayerTensor::RouterBias,
        LayerTensor::GateUpBlocks,
        LayerTensor::GateUpScales,
        LayerTensor::GateUpBias,
        LayerTensor::DownBlocks,
        LayerTensor::DownScales,
        LayerTensor::DownBias,
    ];

    fn name(self) -> &'static str {
        match self {
            LayerTensor::AttentionNorm => "input_layernorm.weight",
            LayerTensor::QWeight => "self_attn.q_proj.weight",
            LayerTensor::QBias => "self_attn.q_proj.bias",
            LayerTensor::KWeight => "self_attn.k_proj.weight",
            LayerTensor::KBias => "self_attn.k_proj.bias",
            LayerTensor::VWeight => "self_attn.v_proj.weight",
            LayerTensor::VBias => "self_attn.v_proj.bias",
            LayerTensor::OWeight => "self_attn.o_proj.weight",
            LayerTensor::OBias => "self_attn.o_proj.bias",
            LayerTensor::Sinks => "self_attn.sinks",
            LayerTensor::MlpNorm => "post_attention_layernorm.weight",
            LayerTensor::RouterWeight => "mlp.router.weight",
            LayerTensor::RouterBias => "mlp.router.bias",
            LayerTensor::GateUpBlocks => "mlp.experts.gate_up_proj_blocks",
            LayerTensor::GateUpScales => "mlp.experts.gate_up_proj_scales",
            LayerTensor::GateUpBias => "mlp.experts.gate_up_proj_bias",
            LayerTensor::DownBlocks => "mlp.experts.down_proj_blocks",
            LayerTensor::DownScales => "mlp.experts.down_proj_scales",
            LayerTensor::DownBias => "mlp.experts.down_proj_bias",
        }
    }

    /// Half an MXFP4 tensor: packed elements or their scales.
    fn dtype(self) -> Dtype {
        match self {
            LayerTensor::GateUpBlocks
            | LayerTensor::GateUpScales
            | LayerTensor::DownBlocks
            | LayerTensor::DownScales => Dtype::U8,
            _ => Dtype::Bf16,
        }
    }

    fn shape(self, spec: &ModelSpec) -> Vec<usize> {
        let (h, i, e) = (spec.hidden, spec.intermediate, spec.experts);
        let (nq_d, nk_d) = (spec.q_heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        match self {
            LayerTensor::AttentionNorm | LayerTensor::MlpNorm | LayerTensor::OBias => vec![h],
            LayerTensor::QWeight => vec![nq_d, h],
            LayerTensor::QBias => vec![nq_d],
            LayerTensor::KWeight | LayerTensor::VWeight => vec![nk_d, h],
            LayerTensor::KBias | LayerTensor::VBias => vec![nk_d],
            LayerTensor::OWeight => vec![h, nq_d],
            LayerTensor::Sinks => vec![spec.q_heads],
            LayerTensor::RouterWeight => vec![e, h],
            LayerTensor::RouterBias => vec![e],
            LayerTensor::GateUpBlocks => vec![e, 2 * i, h / MXFP4_BLOCK, MXFP4_BLOCK / 2],
            LayerTensor::GateUpScales => vec![e, 2 * i, h / MXFP4_BLOCK],
            LayerTensor::GateUpBias => vec![e, 2 * i],
            LayerTensor::DownBlocks => vec![e, h, i / MXFP4_BLOCK, MXFP4_BLOCK / 2],
            LayerTensor::DownScales => vec![e, h, i / MXFP4_BLOCK],
            LayerTensor::DownBias => vec![e, h],
        }
    }
}

impl TensorId {
    /// Every tensor of the model, in the order of the forward.
    pub fn all(spec: &ModelSpec) -> impl Iterator<Item = TensorId> + use<> {
        let layers = 0..spec.layer_count() as u16;
        let layers = layers.flat_map(|l| LayerTensor::ALL.map(|t| TensorId::Layer(l, t)));
        [TensorId::Embed].into_iter().chain(layers).chain([TensorId::FinalNorm, TensorId::Unembed])
    }

    pub fn dtype(self) -> Dtype {
        match self {
            TensorId::Layer(_, tensor) => tensor.dtype(),
            _ => Dtype::Bf16,
        }
    }

    pub fn shape(self, spec: &ModelSpec) -> Vec<usize> {
        match self {
            TensorId::Embed | TensorId::Unembed => vec![spec.vocab, spec.hidden],
            TensorId::FinalNorm => vec![spec.hidden],
            TensorId::Layer(_, tensor) => tensor.shape(spec),
        }
    }

    pub fn info(self, spec: &ModelSpec) -> TensorInfo {
        TensorInfo { id: self, name: self.to_string(), dtype: self.dtype(), shape: self.shape(spec) }
    }

    /// Held whole by every rank of its stage, because every rank computes it alike: norms and router.
    pub fn replicated(self) -> bool {
        use LayerTensor::{AttentionNorm, MlpNorm, RouterBias, RouterWeight};
        matches!(
            self,
            TensorId::FinalNorm | TensorId::Layer(_, AttentionNorm | MlpNorm | RouterWeight | RouterBias)
        )
    }
}

/// The published name.
impl fmt::Display for TensorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TensorId::Embed => f.write_str("model.embed_tokens.weight"),
            TensorId::FinalNorm => f.write_str("model.norm.weight"),
            TensorId::Unembed => f.write_str("lm_head.weight"),
            TensorId::Layer(layer, tensor) => write!(f, "model.layers.{layer}.{}", tensor.name()),
        }
    }
}

/// A tensor as the checkpoint must hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub id: TensorId,
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl TensorInfo {
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.bytes() as u64
    }
}

/// A rectangle of a tensor: one range a dimension. Its bytes are in row-major order of the rectangle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSlice {
    pub tensor: TensorId,
    pub ranges: Vec<Range<usize>>,
}

impl TensorSlice {
    pub fn whole(tensor: TensorId, spec: &ModelSpec) -> Self {
        TensorSlice { tensor, ranges: tensor.shape(spec).into_iter().map(|n| 0..n).collect() }
    }

    /// The whole tensor but for one dimension.
    pub fn cut(tensor: TensorId, spec: &ModelSpec, dimension: usize, range: Range<usize>) -> Self {
        let mut slice = Self::whole(tensor, spec);
        slice.ranges[dimension] = range;
        slice
    }

    pub fn shape(&self) -> Vec<usize> {
        self.ranges.iter().map(ExactSizeIterator::len).collect()
    }

    pub fn bytes(&self) -> usize {
        self.shape().iter().product::<usize>() * self.tensor.dtype().bytes()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.iter().any(Range::is_empty)
    }

    /// Whether all of `part` lies in this slice.
    pub fn covers(&self, part: &TensorSlice) -> bool {
        let inside =
            |(own, part): (&Range<usize>, &Range<usize>)| own.start <= part.start && part.end <= own.end;
        self.tensor == part.tensor && (part.is_empty() || self.ranges.iter().zip(&part.ranges).all(inside))
    }

    /// What both have.
    pub fn common(&self, other: &TensorSlice) -> Option<TensorSlice> {
        let both = |(a, b): (&Range<usize>, &Range<usize>)| a.start.max(b.start)..a.end.min(b.end);
        let ranges = self.ranges.iter().zip(&other.ranges).map(both).collect();
        let common = TensorSlice { tensor: self.tensor, ranges };
        (self.tensor == other.tensor && !common.is_empty()).then_some(common)
    }

    /// Rectangles that tile what is in this slice and not in `other`.
    pub fn without(&self, other: &TensorSlice) -> Vec<TensorSlice> {
        let Some(common) = self.common(other) else { return vec![self.clone()] };
        let (mut rest, mut left) = (self.clone(), Vec::new());
        // What lies before and behind along one dimension, then the same of what is left along the next.
        for (dimension, both) in common.ranges.into_iter().enumerate() {
            let own = rest.ranges[dimension].clone();
            for beside in [own.start..both.start, both.end..own.end] {
                let mut part = rest.clone();
                part.ranges[dimension] = beside;
                left.push(part);
            }
            rest.ranges[dimension] = both;
        }
        left.retain(|part| !part.is_empty());
        left
    }

    /// The slice as contiguous runs of the tensor's elements, in the slice's own order.
    ///
    /// `shape` is the whole tensor's. A slice that spans its trailing dimensions has few, long runs.
    pub fn runs(&self, shape: &[usize]) -> Runs {
        Runs::new(self, shape)
    }
}

/// Prints as `name[0..32, 0..1472]`.
impl fmt::Display for TensorSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.ranges.iter().map(|r| format!("{}..{}", r.start, r.end)).collect();
        write!(f, "{}[{}]", self.tensor, ranges.join(", "))
    }
}

/// Iterator over element ranges; see [`TensorSlice::runs`].
#[derive(Debug)]
pub struct Runs {
    /// Start element of the next run along each outer dimension, as (range, stride).
    outer: Vec<(Range<usize>, usize)>,
    counter: Vec<usize>,
    run_start: usize,
    run_len: usize,
    left: usize,
}

impl Runs {
    fn new(slice: &TensorSlice, shape: &[usize]) -> Self {
        assert_eq!(slice.ranges.len(), shape.len(), "{slice}: a range for each of {shape:?}");
        // Trailing whole dimensions, and the first cut one before them, are one run.
        let mut inner = shape.len().saturating_sub(1);
        while inner > 0 && slice.ranges[inner] == (0..shape[inner]) {
            inner -= 1;
        }
        let stride = |dimension: usize| shape[dimension + 1..].iter().product::<usize>();
        let outer: Vec<_> = (0..inner).map(|d| (slice.ranges[d].clone(), stride(d))).collect();
        let (run_start, run_len) = match slice.ranges.get(inner) {
            Some(range) => (range.start * stride(inner), range.len() * stride(inner)),
            None => (0, 1),
        };
        let left = if run_len == 0 { 0 } else { outer.iter().map(|(r, _)| r.len()).product() };
        Runs { counter: outer.iter().map(|(r, _)| r.start).collect(), outer, run_start, run_len, left }
    }
}

impl Iterator for Runs {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        self.left = self.left.checked_sub(1)?;
        let base: usize = self.counter.iter().zip(&self.outer).map(|(at, (_, stride))| at * stride).sum();
        for (at, (range, _)) in self.counter.iter_mut().zip(&self.outer).rev() {
            *at += 1;
            if *at < range.end {
                break;
            }
            *at = range.start;
        }
        let start = base + self.run_start;
        Some(start..start + self.run_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ModelSpec;

    #[test]
    fn the_published_checkpoints_add_up() {
        // total_size of the published indexes.
        for (name, count, bytes) in
            [("gpt-oss-120b", 687, 65_248_815_744u64), ("gpt-oss-20b", 459, 13_761_264_768)]
        {
            let spec = ModelSpec::published(name).unwrap();
            let infos: Vec<_> = TensorId::all(&spec).map(|t| t.info(&spec)).collect();
            assert_eq!(infos.len(), count, "{name}");
            assert_eq!(infos.iter().map(TensorInfo::bytes).sum::<u64>(), bytes, "{name}");
        }
    }

    #[test]
    fn runs_are_the_rectangle_in_its_own_order() {
        let shape = [3, 4, 5];
        let slice = TensorSlice { tensor: TensorId::Embed, ranges: vec![1..3, 0..4, 2..4] };
        let elements: Vec<usize> = slice.runs(&shape).flatten().collect();
        let expected: Vec<usize> =
            (1..3).flat_map(|a| (0..4).flat_map(move |b| (2..4).map(move |c| (a * 4 + b) * 5 + c))).collect();
        assert_eq!(elements, expected);
    }

    #[test]
    fn a_slice_without_another_is_what_is_left() {
        let slice =
            |ranges: [Range<usize>; 3]| TensorSlice { tensor: TensorId::Embed, ranges: ranges.to_vec() };
        let elements = |slice: &TensorSlice| {
            slice.runs(&[6, 6, 6]).flatten().collect::<std::collections::BTreeSet<usize>>()
        };
        let own = slice([1..5, 0..6, 2..5]);
        let others = [
            [2..4, 1..3, 3..4],
            [0..6, 0..6, 0..3],
            [0..1, 0..6, 0..6],
            [1..5, 0..6, 2..5],
            [0..3, 4..6, 0..6],
        ];
        for other in others.map(slice) {
            let parts = own.without(&other);
            let mut left = std::collections::BTreeSet::new();
            for element in parts.iter().flat_map(elements) {
                assert!(left.insert(element), "{other}: twice in {parts:?}");
            }
            let common = own.common(&other);
            assert_eq!(common.is_none(), elements(&own).is_disjoint(&elements(&other)));
            assert_eq!(
                common.as_ref().map_or(0, |common| elements(common).len()) + left.len(),
                elements(&own).len()
            );
            assert!(left.is_disjoint(&elements(&other)));
            assert_eq!(other.covers(&own), left.is_empty());
        }
    }

    #[test]
    fn whole_trailing_dimensions_are_one_run() {
        let shape = [3, 4, 5];
        let runs = |ranges| TensorSlice { tensor: TensorId::Embed, ranges }.runs(&shape).collect::<Vec<_>>();
        assert_eq!(runs(vec![0..3, 0..4, 0..5]), [0..60]);
        assert_eq!(runs(vec![1..2, 0..4, 0..5]), [20..40]);
        assert_eq!(runs(vec![0..2, 1..3, 0..5]), [5..15, 25..35]);
        assert!(runs(vec![0..2, 1..1, 0..5]).is_empty());
        assert!(runs(vec![2..2, 0..4, 0..5]).is_empty());
    }
}
