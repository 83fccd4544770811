//! A rank's weights as the kernels read them: the checkpoint's bytes, by tensor. Where the rank has no
//! part of a tensor the answer is an empty slice.

use crate::weights::RankWeights;
use flotilla_shared::tensor::{LayerTensor, TensorId};

pub struct CpuWeights(RankWeights);

impl CpuWeights {
    pub fn new(held: RankWeights) -> Self {
        CpuWeights(held)
    }

    pub fn bf16(&self, tensor: TensorId) -> &[u16] {
        self.0.get(tensor).map_or(&[], |held| held.as_u16())
    }

    pub fn layer_bf16(&self, layer: usize, tensor: LayerTensor) -> &[u16] {
        self.bf16(TensorId::Layer(layer as u16, tensor))
    }

    pub fn layer_bytes(&self, layer: usize, tensor: LayerTensor) -> &[u8] {
        self.0.get(TensorId::Layer(layer as u16, tensor)).map_or(&[], |held| held.bytes())
    }
}
