//! A rank's weights as the kernels read them, by tensor. Dense ones are the checkpoint's bytes, or int8 made of them; experts
//! are regrouped. All of it in place, at start. Where the rank has no part of a tensor the answer is an empty slice.

use super::dense::{DenseWeights, DenseWidth, can_be_int8};
use super::kept::Ungrouped;
use super::kernels::{GroupedInt8, GroupedMxfp4, Kernels, Loss, Matrix};
use super::threads::Threads;
use crate::weights::{HeldTensor, RankWeights, WeightSink};
use flotilla_shared::TensorSlice;
use flotilla_shared::spec::MXFP4_BLOCK;
use flotilla_shared::tensor::{LayerTensor, TensorId};
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Mutex;
use tracing::info;

pub struct CpuWeights {
    pub(super) held: RankWeights,
    pub(super) kernels: Kernels,
    /// By layer: whether the scales of gate and up, and of down, are all exponents of f32.
    plain_scales: Vec<[bool; 2]>,
    /// Those that were made int8, with their shape.
    pub(super) int8: HashMap<TensorId, (usize, usize)>,
    /// Room of those who read experts back, while nobody does.
    pub(super) ungrouped: Mutex<Vec<Ungrouped>>,
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
    /// Regroups the experts of all layers for `kernels`, and makes dense weights as wide as wanted.
    pub fn new(
        held: RankWeights,
        layer_count: usize,
        dense: DenseWidth,
        kernels: Kernels,
        threads: &Threads,
    ) -> Self {
        let plain_scales = Vec::with_capacity(layer_count);
        let mut weights =
            CpuWeights { held, kernels, plain_scales, int8: HashMap::new(), ungrouped: Mutex::default() };
        if dense == DenseWidth::Int8 {
            weights.make_int8(threads);
        }
        for layer in 0..layer_count {
            let plain = [Expert::GateUp, Expert::Down].map(|which| weights.regroup(layer, which, threads));
            weights.plain_scales.push(plain);
        }
        weights
    }

    /// What is held, in the order in which it was loaded.
    pub fn slices(&self) -> &[TensorSlice] {
        self.held.slices()
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

    fn make_int8(&mut self, threads: &Threads) {
        let kernels = self.kernels;
        let dense = self.held.tensors_mut().filter(|held| is_dense(held)).map(Mutex::new).collect::<Vec<_>>();
        let made = threads.each(dense.len(), |at| {
            let mut held = dense[at].lock().expect("each is taken once");
            let [rows, columns] = held.shape()[..] else { panic!("dense weights are matrices") };
            let loss = kernels.int8_from_bf16(held.bytes_mut(), (rows, columns));
            let (numbers, scales) = GroupedInt8::bytes(rows, columns);
            held.truncate(numbers + scales);
            (held.tensor(), (rows, columns), loss)
        });
        drop(dense);
        let loss = made.iter().fold(Loss::default(), |all, (_, _, loss)| all + *loss);
        self.int8 = made.into_iter().map(|(tensor, shape, _)| (tensor, shape)).collect();
        info!(tensors = self.int8.len(), relative_error = loss.relative(), "dense weights made int8");
    }

    /// Reads all of it once: how many bytes that was.
    pub fn read(&self, threads: &Threads) -> u64 {
        const CHUNK: usize = 1 << 20;
        let chunks: Vec<_> = self.held.tensors().flat_map(|held| held.bytes().chunks(CHUNK)).collect();
        threads.ranges(chunks.len(), |range, _| {
            range.for_each(|chunk| {
                black_box(self.kernels.read(chunks[chunk]));
            });
        });
        self.held.bytes_held()
    }

    /// A dense matrix [rows, columns].
    pub fn dense(&self, tensor: TensorId, rows: usize, columns: usize) -> DenseWeights<'_> {
        match self.int8.get(&tensor) {
            Some(shape) => {
                assert_eq!(*shape, (rows, columns));
                let bytes = self.held.get(tensor).map_or(&[][..], |held| held.bytes());
                DenseWeights::Int8(GroupedInt8::new(self.kernels, bytes, *shape))
            }
            None => DenseWeights::Bf16(Matrix::new(self.bf16(tensor), rows, columns)),
        }
    }

    pub fn layer_dense(
        &self,
        layer: usize,
        tensor: LayerTensor,
        rows: usize,
        columns: usize,
    ) -> DenseWeights<'_> {
        self.dense(TensorId::Layer(layer as u16, tensor), rows, columns)
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

/// What `--dense` is about: the matrices that every token reads whole, but for norms' and routers' replicated ones.
fn is_dense(held: &HeldTensor) -> bool {
    use LayerTensor::{KWeight, OWeight, QWeight, VWeight};
    let wanted = match held.tensor() {
        TensorId::Unembed => true,
        TensorId::Layer(_, tensor) => [QWeight, KWeight, VWeight, OWeight].contains(&tensor),
        _ => false,
    };
    wanted && held.shape().last().is_some_and(|columns| can_be_int8(*columns))
}
