//! A rank's weights as the kernels read them, by tensor. Dense ones are the checkpoint's bytes; experts are
//! regrouped in place at start. Where the rank has no part of a tensor the answer is an empty slice.

use super::kernels::{GroupedMxfp4, Kernels};
use super::threads::Threads;
use crate::weights::RankWeights;
use flotilla_shared::spec::MXFP4_BLOCK;
use flotilla_shared::tensor::{LayerTensor, TensorId};
use std::sync::Mutex;

pub struct CpuWeights {
    held: RankWeights,
    kernels: Kernels,
    /// By layer: whether the scales of gate and up, and of down, are all exponents of f32.
    plain_scales: Vec<[bool; 2]>,
}

/// Which of an expert's two products.
#[derive(Clone, Copy, Debug)]
pub enum Expert {
    GateUp,
    Down,
}

impl Expert {
    fn tensors(self) -> (LayerTensor, LayerTensor) {
        match self {
            Expert::GateUp => (LayerTensor::GateUpBlocks, LayerTensor::GateUpScales),
            Expert::Down => (LayerTensor::DownBlocks, LayerTensor::DownScales),
        }
    }
}

impl CpuWeights {
    /// Regroups the experts of all layers for `kernels`.
    pub fn new(held: RankWeights, layer_count: usize, kernels: Kernels, threads: &Threads) -> Self {
        let mut weights = CpuWeights { held, kernels, plain_scales: Vec::with_capacity(layer_count) };
        for layer in 0..layer_count {
            let plain = [Expert::GateUp, Expert::Down].map(|which| weights.regroup(layer, which, threads));
            weights.plain_scales.push(plain);
        }
        weights
    }

    fn regroup(&mut self, layer: usize, which: Expert, threads: &Threads) -> bool {
        let (blocks, scales) = which.tensors();
        let [blocks, scales] = [blocks, scales].map(|tensor| TensorId::Layer(layer as u16, tensor));
        let Some(shape) = self.held.get(scales).map(|held| held.shape()) else { return true };
        let [_, rows, row_blocks] = shape[..] else { panic!("scales of experts have three dimensions") };
        let (matrix, kernels) = (rows * row_blocks, self.kernels);
        let [blocks, scales] = self.held.both_mut(blocks, scales);
        let parts: Vec<_> = blocks
            .chunks_exact_mut(matrix * MXFP4_BLOCK / 2)
            .zip(scales.chunks_exact_mut(matrix))
            .map(Mutex::new)
            .collect();
        let plain = threads.each(parts.len(), |expert| {
            let mut part = parts[expert].lock().expect("each is taken once");
            let (blocks, scales) = &mut *part;
            kernels.regroup(blocks, scales, (rows, row_blocks * MXFP4_BLOCK), &mut Vec::new())
        });
        plain.into_iter().all(|plain| plain)
    }

    pub fn bf16(&self, tensor: TensorId) -> &[u16] {
        self.held.get(tensor).map_or(&[], |held| held.as_u16())
    }

    pub fn layer_bf16(&self, layer: usize, tensor: LayerTensor) -> &[u16] {
        self.bf16(TensorId::Layer(layer as u16, tensor))
    }

    /// One matrix [rows, columns] of the rank's own expert number `index`.
    pub fn expert(
        &self,
        layer: usize,
        which: Expert,
        index: usize,
        rows: usize,
        columns: usize,
    ) -> GroupedMxfp4<'_> {
        let (blocks, scales) = which.tensors();
        let bytes = |tensor, len: usize| &self.layer_bytes(layer, tensor)[index * len..][..len];
        let count = rows * columns / MXFP4_BLOCK;
        let plain = self.plain_scales[layer][which as usize];
        let (blocks, scales) = (bytes(blocks, count * MXFP4_BLOCK / 2), bytes(scales, count));
        GroupedMxfp4::new(self.kernels, blocks, scales, (rows, columns), plain)
    }

    fn layer_bytes(&self, layer: usize, tensor: LayerTensor) -> &[u8] {
        self.held.get(TensorId::Layer(layer as u16, tensor)).map_or(&[], |held| held.bytes())
    }
}
