//! What a rank holds by a plan: its slices, and their bytes by part.

use super::{Demand, Plan, RankShare};
use crate::activations::activation_bytes;
use crate::group::KvBlocks;
use crate::ids::Rank;
use crate::spec::{LayerKind, MXFP4_BLOCK, ModelSpec};
use crate::step::BLOCK_TOKENS;
use crate::tensor::{LayerTensor, TensorId, TensorSlice};
use serde::Serialize;
use std::ops::Range;

impl RankShare {
    /// Every slice of it in a stage of these `layers`, in the order of the forward; empty ones are left out.
    pub fn slices(&self, spec: &ModelSpec, layers: &Range<usize>) -> Vec<TensorSlice> {
        let first = layers.start == 0;
        let last = layers.end == spec.layer_count();
        let in_stage = |tensor: &TensorId| match tensor {
            TensorId::Embed => first,
            TensorId::FinalNorm | TensorId::Unembed => last,
            TensorId::Layer(layer, _) => layers.contains(&(*layer as usize)),
        };
        let slices = TensorId::all(spec).filter(in_stage).filter_map(|tensor| self.slice(spec, tensor));
        slices.filter(|slice| !slice.is_empty()).collect()
    }
}

impl Plan {
    /// Every slice that a rank holds, in the order of the forward; empty ones are left out.
    pub fn slices(&self, spec: &ModelSpec, rank: Rank) -> Vec<TensorSlice> {
        let (stage, share) = self.share(rank);
        share.slices(spec, &stage.layers)
    }

    /// Bytes that a rank holds, by part.
    pub fn bytes(&self, spec: &ModelSpec, rank: Rank) -> RankBytes {
        let (stage, share) = self.share(rank);
        let of_layer = share.kv_heads.len() * spec.head_dim * 2 * share.kv.element_bytes();
        let per_token = |kind| {
            let layers = spec.layers[stage.layers.clone()].iter().filter(|layer| **layer == kind);
            (layers.count() * of_layer) as u64
        };
        let mut bytes = RankBytes {
            kv_full_per_token: per_token(LayerKind::Full),
            kv_window_per_token: per_token(LayerKind::Window),
            ..RankBytes::default()
        };
        for slice in self.slices(spec, rank) {
            *bytes.part_mut(slice.tensor) += slice.bytes() as u64;
        }
        bytes
    }

    /// Bytes of a rank's activations; only the last stage has logits.
    pub fn activation_bytes(&self, spec: &ModelSpec, rank: Rank, demand: Demand) -> u64 {
        let (stage, share) = self.share(rank);
        if stage.layers.end == spec.layer_count() {
            return activation_bytes(spec, share, demand);
        }
        activation_bytes(spec, &RankShare { vocab: 0..0, ..share.clone() }, demand)
    }

    /// All that a rank takes: weights, KV cache and activations.
    pub fn total_bytes(&self, spec: &ModelSpec, rank: Rank, demand: Demand) -> u64 {
        let bytes = self.bytes(spec, rank);
        bytes.weights() + bytes.kv(demand.kv_blocks) + self.activation_bytes(spec, rank, demand)
    }
}

impl RankShare {
    /// The part of a tensor that this rank holds; `None` where another rank adds a bias.
    fn slice(&self, spec: &ModelSpec, tensor: TensorId) -> Option<TensorSlice> {
        use LayerTensor::*;
        let cut = |dimension, range| Some(TensorSlice::cut(tensor, spec, dimension, range));
        let TensorId::Layer(_, part) = tensor else {
            return match tensor {
                TensorId::Embed | TensorId::Unembed => cut(0, self.vocab.clone()),
                _ => Some(TensorSlice::whole(tensor, spec)),
            };
        };
        let q_heads = spec.q_heads_of(&self.kv_heads);
        let elements = |heads: &Range<usize>| heads.start * spec.head_dim..heads.end * spec.head_dim;
        let experts = &self.experts;
        // Rows 2j and 2j + 1 of gate_up belong to intermediate element j.
        let gate_up = 2 * MXFP4_BLOCK * experts.blocks.start..2 * MXFP4_BLOCK * experts.blocks.end;
        let of_experts = |dimension: usize, range: Range<usize>| {
            let mut slice = TensorSlice::cut(tensor, spec, dimension, range);
            slice.ranges[0] = experts.experts.clone();
            Some(slice)
        };
        match part {
            AttentionNorm | MlpNorm | RouterWeight | RouterBias => Some(TensorSlice::whole(tensor, spec)),
            QWeight | QBias => cut(0, elements(&q_heads)),
            KWeight | KBias | VWeight | VBias => cut(0, elements(&self.kv_heads)),
            OWeight => cut(1, elements(&q_heads)),
            OBias => self.adds_output_bias().then(|| TensorSlice::whole(tensor, spec)),
            Sinks => cut(0, q_heads),
            GateUpBlocks | GateUpScales | GateUpBias => of_experts(1, gate_up),
            DownBlocks | DownScales => of_experts(2, experts.blocks.clone()),
            DownBias if experts.adds_down_bias() => cut(0, experts.experts.clone()),
            DownBias => None,
        }
    }
}

/// Bytes of one rank's weights by part, and of its KV cache per token in each kind of layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RankBytes {
    pub attention: u64,
    pub experts: u64,
    pub embedding: u64,
    pub unembedding: u64,
    /// Norms and routers: the same on every rank.
    pub replicated: u64,
    /// Of the full layers, and of the window layers.
    pub kv_full_per_token: u64,
    pub kv_window_per_token: u64,
}

impl RankBytes {
    pub fn weights(&self) -> u64 {
        self.attention + self.experts + self.embedding + self.unembedding + self.replicated
    }

    /// KV cache of so many blocks.
    pub fn kv(&self, blocks: KvBlocks) -> u64 {
        let full = self.kv_full_per_token * u64::from(blocks.full);
        let window = self.kv_window_per_token * u64::from(blocks.window);
        (full + window) * BLOCK_TOKENS as u64
    }

    fn part_mut(&mut self, tensor: TensorId) -> &mut u64 {
        use LayerTensor::{DownBias, DownBlocks, DownScales, GateUpBias, GateUpBlocks, GateUpScales};
        match tensor {
            _ if tensor.replicated() => &mut self.replicated,
            TensorId::Embed => &mut self.embedding,
            TensorId::Unembed => &mut self.unembedding,
            TensorId::Layer(
                _,
                GateUpBlocks | GateUpScales | GateUpBias | DownBlocks | DownScales | DownBias,
            ) => &mut self.experts,
            _ => &mut self.attention,
        }
    }
}
