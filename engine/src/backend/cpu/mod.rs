//! The CPU backend: the embedded default, and the specification of every other one. Experts of
//! which rows lie side by side, dense weights as the checkpoint holds them or as int8, activations in f32 (and whole numbers of
//! them for products), a KV cache in f16 or f32. Activations are taken at start for the most rows
//! of a step; only the logits, whose number of rows differs, and the parts of attention grow to the most that were needed.
//! The arithmetic is in `kernels`; this folder decides what is multiplied with what, and on how many
//! threads.

mod attend;
mod attention;
mod dense;
mod experts;
mod kept;
pub mod kernels;
mod kv;
pub mod measure;
mod pool;
mod threads;
mod vocab;
mod weights;

use super::rope::RopeTable;
use super::{Backend, BackendError, Norm};
use crate::batch::Batch;
use crate::sample::Shard;
use crate::weights::RankWeights;
use attention::Attention;
use dense::DenseRoom;
pub use dense::DenseWidth;
use experts::Experts;
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{Assignment, KvDtype, ModelSpec, RankShare};
use kernels::{Isa, Kernels, Precision};
use kv::KvCache;
use std::sync::Arc;
use threads::Threads;
pub use weights::CpuWeights;

/// How a CPU worker computes.
#[derive(Clone, Debug)]
pub struct CpuSettings {
    /// Threads of one op.
    pub threads: usize,
    /// Instruction set; `None` is the widest of the machine.
    pub isa: Option<Isa>,
    /// How activations enter the products of the experts.
    pub activations: Precision,
    /// How dense weights are held.
    pub dense: DenseWidth,
    /// The core of each thread, the engine's own first; where there is none the system decides.
    pub pin: Vec<usize>,
    /// What the cache holds: f16, or f32.
    pub kv: KvDtype,
    /// Take the memory of the whole cache at start: to measure reading what no step has written.
    pub touch_kv: bool,
}

impl Default for CpuSettings {
    fn default() -> Self {
        let (activations, dense, kv) = Default::default();
        CpuSettings { threads: 1, isa: None, activations, dense, kv, pin: Vec::new(), touch_kv: false }
    }
}

/// One rank's weights, cache and activations in host memory.
pub struct CpuBackend {
    spec: ModelSpec,
    share: RankShare,
    /// They never change: others may read them beside a step.
    weights: Arc<CpuWeights>,
    kernels: Kernels,
    threads: Threads,
    kv: KvCache,
    rope: RopeTable,
    /// Residual stream: f32 [T, H], whole.
    x: Vec<f32>,
    /// x normed: f32 [T, H], whole; after [`Norm::Final`] the logit rows only.
    h: Vec<f32>,
    /// Partial sums: f32 [T, H].
    y: Vec<f32>,
    /// h, arranged for products.
    normed: DenseRoom,
    attention: Attention,
    experts: Experts,
    /// f32 [logit rows, V/R]
    logits: Vec<f32>,
}

impl CpuBackend {
    /// Takes all memory of the rank: `kv_blocks` blocks of cache and room for `step_tokens_max` rows.
    pub fn new(settings: &CpuSettings, assignment: &Assignment, weights: RankWeights) -> Self {
        let layers = assignment.spec.layer_count();
        Self::over(settings, assignment, |kernels, threads| {
            Arc::new(CpuWeights::new(weights, layers, settings.dense, kernels, threads))
        })
    }

    /// The same over weights of a group before, under the same settings.
    pub fn again(settings: &CpuSettings, assignment: &Assignment, weights: Arc<CpuWeights>) -> Self {
        Self::over(settings, assignment, |_, _| weights)
    }

    /// The weights outlive the group; all other memory is given back.
    pub fn into_weights(self) -> Arc<CpuWeights> {
        self.weights
    }

    /// For others to read while it computes. Whoever takes them out at the end must be the only one left.
    pub fn weights(&self) -> Arc<CpuWeights> {
        self.weights.clone()
    }

    fn over(
        settings: &CpuSettings,
        assignment: &Assignment,
        weights: impl FnOnce(Kernels, &Threads) -> Arc<CpuWeights>,
    ) -> Self {
        let spec = assignment.spec.clone();
        let (stage, share) = assignment.plan.share(assignment.rank);
        let rows = assignment.step_tokens_max as usize;
        let room = |columns| DenseRoom::new(settings.dense, settings.activations, rows, columns);
        let kernels = settings.isa.map_or_else(Kernels::detect, Kernels::new);
        let threads = Threads::pinned(settings.threads, &settings.pin);
        let (kv_heads, blocks) = (share.kv_heads.len(), assignment.kv_blocks);
        let mut kv =
            KvCache::new(settings.kv, &spec.layers, &stage.layers, blocks, (kv_heads, spec.head_dim));
        if settings.touch_kv {
            kv.touch();
        }
        CpuBackend {
            weights: weights(kernels, &threads),
            kernels,
            threads,
            kv,
            rope: RopeTable::new(&spec),
            x: vec![0.0; rows * spec.hidden],
            h: vec![0.0; rows * spec.hidden],
            y: vec![0.0; rows * spec.hidden],
            normed: room(spec.hidden),
            attention: Attention::new(&spec, share, rows, settings.threads.max(1), &room),
            experts: Experts::new(&spec, stage, share, rows, settings.activations),
            logits: Vec::new(),
            share: share.clone(),
            spec,
        }
    }

    /// h[i] = x[row_of(i)] normed, for i < `count`.
    fn norm_rows(&mut self, count: usize, row_of: impl Fn(usize) -> usize + Sync, weight: TensorId) {
        let (hidden, kernels, eps) = (self.spec.hidden, self.kernels, self.spec.norm_eps as f32);
        let (weight, x) = (self.weights.bf16(weight), &self.x);
        self.threads.rows(count, &mut self.h[..count * hidden], hidden, |rows, h| {
            for (i, h) in rows.zip(h.chunks_exact_mut(hidden)) {
                kernels.rms_norm(&x[row_of(i) * hidden..][..hidden], weight, eps, h);
            }
        });
    }

    /// x += y
    fn add_partial(&mut self, rows: usize) {
        let (kernels, hidden, y) = (self.kernels, self.spec.hidden, &self.y);
        self.threads.rows(rows, &mut self.x[..rows * hidden], hidden, |rows, x| {
            kernels.add_assign(x, &y[rows.start * hidden..rows.end * hidden]);
        });
    }
}

impl Backend for CpuBackend {
    type Activations = [f32];

    fn read_weights(&self) -> u64 {
        self.weights.read(&self.threads)
    }

    fn embed(&mut self, batch: &Batch) -> &mut [f32] {
        self.rope.set_positions(&batch.positions);
        self.experts.begin(batch);
        self.embed_rows(batch)
    }

    fn enter(&mut self, batch: &Batch) -> &mut [f32] {
        self.rope.set_positions(&batch.positions);
        self.experts.begin(batch);
        let filled = batch.rows() * self.spec.hidden;
        self.x[..filled].fill(0.0);
        &mut self.y[..filled]
    }

    fn leave(&mut self, batch: &Batch) -> &mut [f32] {
        self.add_partial(batch.rows());
        &mut self.x[..batch.rows() * self.spec.hidden]
    }

    fn add_norm(&mut self, norm: Norm, batch: &Batch) {
        self.add_partial(batch.rows());
        let of_layer = |layer, norm| TensorId::Layer(layer as u16, norm);
        let (norm, final_rows) = match norm {
            Norm::Attention(layer) => (of_layer(layer, LayerTensor::AttentionNorm), None),
            Norm::Mlp(layer) => (of_layer(layer, LayerTensor::MlpNorm), None),
            Norm::Final => (TensorId::FinalNorm, Some(&batch.logit_rows)),
        };
        match final_rows {
            None => self.norm_rows(batch.rows(), |row| row, norm),
            Some(rows) => self.norm_rows(rows.len(), |i| rows[i], norm),
        }
    }

    fn qkv(&mut self, layer: usize, batch: &Batch) {
        self.project_in(layer, batch);
    }

    fn attend(&mut self, layer: usize, batch: &Batch) {
        self.attend_rows(layer, batch);
    }

    fn project(&mut self, layer: usize, batch: &Batch) -> &mut [f32] {
        self.project_out(layer, batch)
    }

    fn route(&mut self, layer: usize, batch: &Batch) {
        self.route_rows(layer, batch);
    }

    fn experts(&mut self, layer: usize, batch: &Batch) -> &mut [f32] {
        self.run_experts(layer, batch)
    }

    fn unembed(&mut self, batch: &Batch) {
        self.unembed_rows(batch);
    }

    fn routing(&mut self, row: usize) -> Result<Vec<u16>, BackendError> {
        Ok(self.experts.kept_routing(row))
    }
}

impl Shard for CpuBackend {
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        let width = self.share.vocab.len();
        Ok(&self.logits[row * width..][..width])
    }

    fn each<T: Send>(
        &mut self,
        rows: &[usize],
        work: impl Fn(usize, &[f32]) -> T + Sync,
    ) -> Result<Vec<T>, BackendError> {
        let (width, logits) = (self.share.vocab.len(), &self.logits);
        Ok(self.threads.each(rows.len(), |at| work(at, &logits[rows[at] * width..][..width])))
    }
}
