//! The tensors of a checkpoint: their published names, dtypes and shapes, and rectangular slices of
//! them. The one list that loading, checking, cutting and synthesis all read.
//!
//! Letters: H hidden, I intermediate, E experts, V vocabulary, D head_dim, nq and nk heads.

mod slice;

pub use slice::{Runs, TensorSlice};

use crate::spec::{MXFP4_BLOCK, ModelSpec};
use serde::{Deserialize, Serialize};
use std::fmt;

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
}
