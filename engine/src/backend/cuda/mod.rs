//! The CUDA backend: one rank on one card. Weights as the checkpoint holds them, bf16 KV cache, activations
//! in bf16 (f16 on sm_75; f16 before the experts on every card), sums and the residual stream in f32. All
//! memory is taken at start. Ops start kernels on the card's one stream and return; what fails is kept,
//! makes the ops after it do nothing, and is said by `finish`.
//! Each family of kernels is a `.cu` beside its launcher; this file decides what is launched with what.

mod activations;
pub mod attention;
mod batch;
pub mod cut;
pub mod dense;
pub mod experts;
mod graph;
mod host;
mod kernels;
mod kv;
pub mod norm;
mod picks;
mod reader;
pub mod route;
pub mod sample;
mod shard;
pub mod synthetic;
mod weights;

pub use kernels::sources;
pub use reader::CudaReader;
pub use weights::{CudaWeights, weight_bytes};

use super::{Backend, BackendError, Norm};
use crate::batch::Batch;
use crate::cuda::{Card, CudaError, DeviceSum};
use activations::Activations;
use attention::{Attend, Cache, CacheMut};
use batch::DeviceBatch;
use cudarc::driver::PinnedHostSlice;
use dense::Linear;
use experts::{ExpertWeights, Product};
use flotilla_shared::activations::logit_rows;
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{Assignment, LayerKind, ModelSpec, RankShare};
use graph::Graphs;
use host::HostLogits;
use kernels::{Kernels, Shapes};
use kv::LayerCache;
use norm::Added;
use std::ops::Range;

/// Rows of a step at most: so high is a grid of blocks.
pub const ROWS_MAX: usize = 65535;

/// How a rank uses its card.
#[derive(Clone, Copy, Debug)]
pub struct CudaSettings {
    /// Record decode steps as CUDA graphs: only where the group's sums can be recorded.
    pub graphs: bool,
}

impl Default for CudaSettings {
    fn default() -> Self {
        CudaSettings { graphs: true }
    }
}

/// One rank's weights, cache and activations on a card.
pub struct CudaBackend {
    spec: ModelSpec,
    share: RankShare,
    /// Of the model's layers, those of its stage.
    layers: Range<usize>,
    rows_max: usize,
    card: Card,
    weights: CudaWeights,
    caches: Vec<LayerCache>,
    kernels: Kernels,
    batch: DeviceBatch,
    a: Activations,
    graphs: Option<Graphs>,
    /// A row of logits in the host's memory, for whoever wants to see them: f32 [V/R], pinned.
    row: PinnedHostSlice<f32>,
    /// Those that tokens are chosen by there.
    host: HostLogits,
    failed: Option<CudaError>,
}

impl CudaBackend {
    /// Takes all memory of the rank: `kv_blocks` blocks of cache and room for `step_tokens_max` rows.
    ///
    /// # Panics
    /// If the weights are not whole.
    pub fn new(
        settings: &CudaSettings,
        assignment: &Assignment,
        weights: CudaWeights,
    ) -> Result<Self, CudaError> {
        assert!(weights.is_whole(), "an engine computes with weights that are all there");
        if assignment.step_tokens_max as usize > ROWS_MAX {
            return Err(CudaError::TooManyRows { asked: assignment.step_tokens_max, max: ROWS_MAX });
        }
        let spec = assignment.spec.clone();
        let (stage, share) = assignment.plan.share(assignment.rank);
        let layers = stage.layers.clone();
        // Only the last stage has logits.
        let logits = if layers.end == spec.layer_count() { share.vocab.clone() } else { 0..0 };
        let card = weights.card().clone();
        let shapes = Shapes::of(&spec, share);
        let rows_max = assignment.step_tokens_max as usize;
        let rows = (rows_max, logit_rows(rows_max, assignment.logit_rows_max as usize));
        let kernels = Kernels::new(&card, &spec, &shapes, logits.clone(), &assignment.sampleable, rows_max)?;
        let kv_heads = share.kv_heads.len();
        let caches = if kv_heads > 0 {
            kv::caches(&card, &spec.layers[layers.clone()], assignment.kv_blocks, kv_heads, spec.head_dim)?
        } else {
            Vec::new()
        };
        let blocks_max = (assignment.kv_blocks.full + assignment.kv_blocks.window) as usize;
        let backend = CudaBackend {
            rows_max,
            caches,
            batch: DeviceBatch::new(&card, &spec, shapes.attention, rows_max, blocks_max)?,
            a: Activations::new(&card, &spec, (layers.len(), logits.len()), &shapes, &kernels, rows)?,
            graphs: settings.graphs.then(Graphs::default),
            row: host::pinned(card.stream(), logits.len().max(1))?,
            host: HostLogits::new(logits.len()),
            failed: None,
            kernels,
            share: share.clone(),
            layers,
            spec,
            card,
            weights,
        };
        backend.card.synchronize()?;
        Ok(backend)
    }

    /// The weights outlive the group, unless the card failed; all other memory is given back.
    pub fn into_weights(self) -> Option<CudaWeights> {
        let done = self.card.synchronize().is_ok() && self.failed.is_none();
        let weights = self.without_the_rest();
        // What is given back is free once the card was waited for.
        let given_back = weights.card().synchronize().is_ok();
        (done && given_back).then_some(weights)
    }

    fn without_the_rest(self) -> CudaWeights {
        self.weights
    }

    fn check(&self) -> Result<(), BackendError> {
        match &self.failed {
            Some(error) => Err(BackendError(error.to_string())),
            None => Ok(()),
        }
    }

    /// Runs an op unless one before it failed.
    fn attempt(&mut self, op: impl FnOnce(&mut Self) -> Result<(), CudaError>) {
        if self.failed.is_none() {
            self.failed = op(self).err();
        }
    }

    /// y of the launch's rows, which a collective may sum.
    fn sum(&mut self) -> &mut DeviceSum {
        self.a.y.len = self.batch.t() * self.spec.hidden;
        &mut self.a.y
    }

    /// Of a layer, in `chosen`.
    fn choices(&self, layer: usize) -> Range<usize> {
        let of_layer = self.rows_max * self.spec.experts_per_token;
        let start = (layer - self.layers.start) * of_layer;
        start..start + of_layer
    }

    fn zero_y(&mut self) -> Result<(), CudaError> {
        let mut y = self.a.y.values.slice_mut(..self.batch.t() * self.spec.hidden);
        self.card.stream().memset_zeros(&mut y).map_err(CudaError::doing("clear a sum"))
    }
}

impl Backend for CudaBackend {
    type Activations = DeviceSum;

    fn run<E>(&mut self, batch: &Batch, forward: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<(), E> {
        self.host.forget();
        self.a.picks.forget();
        self.run_recorded(batch, forward)
    }

    fn embed(&mut self, _: &Batch) -> &mut DeviceSum {
        self.attempt(|s| {
            let vocab = s.share.vocab.clone();
            // Without a vocabulary the table is not looked at.
            let none = s.a.h.slice(..0);
            let table = s.weights.bf16(TensorId::Embed).unwrap_or(none);
            let (t, rows, tokens) = (s.batch.t(), s.batch.rows(), s.batch.tokens());
            let (mut x, mut y) = (s.a.x.as_view_mut(), s.a.y.values.as_view_mut());
            s.kernels.norm.embed(t, &rows, &tokens, &table, vocab, &mut x, &mut y)
        });
        self.sum()
    }

    fn enter(&mut self, batch: &Batch) -> &mut DeviceSum {
        self.a.y.len = batch.rows() * self.spec.hidden;
        self.attempt(|s| {
            let mut x = s.a.x.slice_mut(..s.a.y.len);
            s.card.stream().memset_zeros(&mut x).map_err(CudaError::doing("clear what a stage begins with"))
        });
        &mut self.a.y
    }

    fn leave(&mut self, batch: &Batch) -> &mut DeviceSum {
        self.attempt(|s| {
            let mut y = s.a.y.values.as_view_mut();
            s.kernels.norm.add(batch.rows(), &s.batch.rows(), &s.a.x.as_view(), &mut y)
        });
        self.a.y.len = batch.rows() * self.spec.hidden;
        &mut self.a.y
    }

    fn add_norm(&mut self, norm: Norm, _: &Batch) {
        self.attempt(|s| {
            let (t, rows) = (s.batch.t(), s.batch.rows());
            let tensor = match norm {
                Norm::Attention(layer) => TensorId::Layer(layer as u16, LayerTensor::AttentionNorm),
                Norm::Mlp(layer) => TensorId::Layer(layer as u16, LayerTensor::MlpNorm),
                Norm::Final => TensorId::FinalNorm,
            };
            let weight = s.weights.bf16(tensor).expect("norms are on every rank");
            let (mut x, y) = (s.a.x.as_view_mut(), s.a.y.values.as_view());
            let added = Added { x: &mut x, y: &y, weight: &weight };
            let mut h = s.a.h.as_view_mut();
            match norm {
                Norm::Attention(_) => s.kernels.norm.add_norm_attention(t, &rows, added, &mut h),
                Norm::Mlp(_) => s.kernels.norm.add_norm_mlp(t, &rows, added, &mut s.a.h32.as_view_mut()),
                Norm::Final if s.batch.logit_rows() == 0 => Ok(()),
                Norm::Final => {
                    let (list, count) = s.batch.logit_row_list();
                    s.kernels.norm.norm_final(s.batch.logit_rows(), &count, &list, added, &mut h)
                }
            }
        });
    }

    fn qkv(&mut self, layer: usize, _: &Batch) {
        self.attempt(|s| {
            let (Some(kernels), Some((weight, bias))) = (&s.kernels.attention, s.weights.qkv(layer)) else {
                return Ok(());
            };
            let (t, rows) = (s.batch.t(), s.batch.rows());
            let linear = Linear::new(weight, Some(bias), kernels.shape().qkv_width(), s.spec.hidden);
            let mut qkv = s.a.qkv.as_view_mut();
            s.kernels.dense.product(t, &rows, &s.a.h.as_view(), &linear, &mut qkv)?;
            let cache = &mut s.caches[layer - s.layers.start];
            let (step, rotation) = (s.batch.step_rows(s.spec.layers[layer]), s.batch.rotation());
            let mut cache = CacheMut { keys: cache.keys.as_view_mut(), values: cache.values.as_view_mut() };
            let mut q = s.a.q.as_view_mut();
            kernels.rope_store(t, &step, &rotation, &qkv.as_view(), &mut q, &mut cache)
        });
    }

    fn attend(&mut self, layer: usize, _: &Batch) {
        self.attempt(|s| {
            let (Some(kernels), Some(partials)) = (&s.kernels.attention, &mut s.a.partials) else {
                return Ok(());
            };
            let cache = &s.caches[layer - s.layers.start];
            let kind = s.spec.layers[layer];
            let window = (kind == LayerKind::Window).then_some(s.spec.window as u32);
            let sinks = s.weights.layer_bf16(layer, LayerTensor::Sinks).expect("a rank with heads has sinks");
            let attend = Attend {
                q: s.a.q.as_view(),
                cache: Cache { keys: cache.keys.as_view(), values: cache.values.as_view() },
                sinks,
                window,
            };
            let (step, mut out) = (s.batch.step_rows(kind), s.a.attended.as_view_mut());
            if let Some(rows) = s.batch.decode_rows() {
                kernels.attend_decode(&rows, &step, &attend, partials, &mut out)?;
            }
            if let Some(tiles) = s.batch.tiles() {
                kernels.attend_tiles(&tiles, &step, &attend, &mut out)?;
            }
            Ok(())
        });
    }

    fn project(&mut self, layer: usize, _: &Batch) -> &mut DeviceSum {
        self.attempt(|s| {
            let Some(kernels) = &s.kernels.attention else { return s.zero_y() };
            let (t, rows) = (s.batch.t(), s.batch.rows());
            let bias = s.weights.layer_bf16(layer, LayerTensor::OBias);
            let weight = s.weights.layer_bf16(layer, LayerTensor::OWeight).expect("a rank with heads has it");
            let linear = Linear::new(weight, bias, s.spec.hidden, kernels.shape().q_width());
            let mut y = s.a.y.values.as_view_mut();
            s.kernels.dense.product(t, &rows, &s.a.attended.as_view(), &linear, &mut y)
        });
        self.sum()
    }

    fn route(&mut self, layer: usize, _: &Batch) {
        self.attempt(|s| {
            let (t, rows) = (s.batch.t(), s.batch.rows());
            let weight = s.weights.layer_bf16(layer, LayerTensor::RouterWeight).expect("on every rank");
            let bias = s.weights.layer_bf16(layer, LayerTensor::RouterBias).expect("on every rank");
            let choices = s.choices(layer);
            let mut chosen = s.a.chosen.slice_mut(choices);
            let h = s.a.h32.as_view();
            s.kernels.route.route(t, &rows, &h, &weight, &bias, &mut chosen, &mut s.a.routes)
        });
    }

    fn experts(&mut self, layer: usize, _: &Batch) -> &mut DeviceSum {
        let choices = self.choices(layer);
        self.attempt(|s| {
            use LayerTensor::{DownBias, DownBlocks, DownScales, GateUpBias, GateUpBlocks, GateUpScales};
            let (Some(kernels), Some(buffers)) = (&s.kernels.experts, &mut s.a.experts) else {
                return s.zero_y();
            };
            let product = |blocks, scales, bias| Product {
                blocks: s.weights.layer_bytes(layer, blocks).expect("a rank with experts has blocks"),
                scales: s.weights.layer_bytes(layer, scales).expect("a rank with experts has scales"),
                bias: s.weights.layer_bf16(layer, bias),
            };
            let weights = ExpertWeights {
                gate_up: product(GateUpBlocks, GateUpScales, GateUpBias),
                down: product(DownBlocks, DownScales, DownBias),
            };
            let (t, rows) = (s.batch.t(), s.batch.rows());
            let chosen = s.a.chosen.slice(choices.clone());
            let mut y = s.a.y.values.as_view_mut();
            kernels.run(t, &rows, &s.a.routes, &chosen, &weights, buffers, &mut y)
        });
        self.sum()
    }

    fn unembed(&mut self, _: &Batch) {
        self.host.forget();
        self.attempt(|s| {
            let (n, width) = (s.batch.logit_rows(), s.share.vocab.len());
            if n > s.a.logit_rows {
                // Only verification asks for so many. Graphs know the old address; a rank without a vocabulary
                // forgets its own too, since ranks record together.
                s.graphs.iter_mut().for_each(Graphs::forget);
                s.a.logits = s.card.zeros(n * width.max(1))?;
                s.a.logit_rows = n;
            }
            let Some(weight) = s.weights.bf16(TensorId::Unembed) else { return Ok(()) };
            if n == 0 {
                return Ok(());
            }
            let linear = Linear::new(weight, None, width, s.spec.hidden);
            let (_, count) = s.batch.logit_row_list();
            let mut logits = s.a.logits.as_view_mut();
            s.kernels.dense.product(n, &count, &s.a.h.as_view(), &linear, &mut logits)
        });
    }

    fn finish(&mut self) -> Result<(), BackendError> {
        self.attempt(|s| s.card.synchronize());
        self.check()
    }

    fn forget_recordings(&mut self) {
        self.graphs = None;
    }

    fn memory_bytes(&self) -> Option<u64> {
        let free = self.card.memory_free_bytes().ok()?;
        Some(self.card.facts().memory_bytes.saturating_sub(free))
    }

    fn routing(&mut self, row: usize) -> Result<Vec<u16>, BackendError> {
        let mut routing = Vec::new();
        self.attempt(|s| {
            let per_token = s.spec.experts_per_token;
            for layer in s.layers.clone() {
                let first = s.choices(layer).start + row * per_token;
                let mut experts = vec![0; per_token];
                let copied =
                    s.card.stream().memcpy_dtoh(&s.a.chosen.slice(first..first + per_token), &mut experts);
                copied.map_err(CudaError::doing("read the routing"))?;
                routing.push(experts);
            }
            s.card.synchronize()
        });
        self.check()?;
        Ok(routing.concat())
    }
}
