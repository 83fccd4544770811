//! Bytes and operations of the smallest parts that a plan cuts: a kv head, an expert's block, a row of the vocabulary.

use flotilla_shared::ModelSpec;
use flotilla_shared::spec::MXFP4_BLOCK;
use flotilla_shared::tensor::{LayerTensor, TensorId};

/// Of one layer, where nothing else is said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// A kv head with its query heads.
    pub head_bytes: u64,
    /// Multiply-adds of a row with the weights of a kv head and its query heads.
    pub head_macs: u64,
    /// Multiply-adds of a row's query heads of one kv head with one key and its value.
    pub key_macs: u64,
    /// Elements of the cache of one position and kv head.
    pub key_elements: u64,
    /// One block of one expert.
    pub block_bytes: u64,
    pub block_macs: u64,
    pub router_bytes: u64,
    pub router_macs: u64,
    /// Norms and router: every rank holds them.
    pub replicated_bytes: u64,
    /// Biases that one rank adds: whichever it is, there is room for them.
    pub bias_bytes: u64,
    /// One row of the embedding or the unembedding.
    pub row_bytes: u64,
    pub final_norm_bytes: u64,
}

impl Sizes {
    pub fn of(spec: &ModelSpec) -> Sizes {
        use LayerTensor::*;
        let of =
            |tensor: TensorId| (tensor.shape(spec).iter().product::<usize>() * tensor.dtype().bytes()) as u64;
        let bytes = |tensors: &[LayerTensor]| -> u64 {
            tensors.iter().map(|&tensor| of(TensorId::Layer(0, tensor))).sum()
        };
        let (h, d, group) = (spec.hidden as u64, spec.head_dim as u64, spec.group() as u64);
        let attention = [QWeight, QBias, KWeight, KBias, VWeight, VBias, OWeight, Sinks];
        let experts = [GateUpBlocks, GateUpScales, GateUpBias, DownBlocks, DownScales];
        let router = bytes(&[RouterWeight, RouterBias]);
        Sizes {
            head_bytes: bytes(&attention) / spec.kv_heads as u64,
            head_macs: 2 * h * d * (group + 1),
            key_macs: 2 * group * d,
            key_elements: 2 * d,
            block_bytes: bytes(&experts) / (spec.experts * spec.intermediate_blocks()) as u64,
            block_macs: 3 * h * MXFP4_BLOCK as u64,
            router_bytes: router,
            router_macs: (spec.experts * spec.hidden) as u64,
            replicated_bytes: router + bytes(&[AttentionNorm, MlpNorm]),
            bias_bytes: bytes(&[OBias, DownBias]),
            row_bytes: of(TensorId::Embed) / spec.vocab as u64,
            final_norm_bytes: of(TensorId::FinalNorm),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_make_the_whole() {
        for name in ["gpt-oss-120b", "gpt-oss-20b"] {
            let spec = ModelSpec::published(name).unwrap();
            let sizes = Sizes::of(&spec);
            let blocks = (spec.experts * spec.intermediate_blocks()) as u64;
            let layer = spec.kv_heads as u64 * sizes.head_bytes + blocks * sizes.block_bytes;
            let layer = layer + sizes.replicated_bytes + sizes.bias_bytes;
            let ends = 2 * spec.vocab as u64 * sizes.row_bytes + sizes.final_norm_bytes;
            let whole: u64 = TensorId::all(&spec).map(|tensor| tensor.info(&spec).bytes()).sum();
            assert_eq!(spec.layer_count() as u64 * layer + ends, whole, "{name}");
        }
    }
}
