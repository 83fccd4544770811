//! The mixture of experts: routing, which every rank decides alike from the same bits, and the rank's
//! rectangle of the chosen experts. Rows are grouped by expert, so that each expert is read once a step.

use super::CpuBackend;
use super::kernels::{InputBuffer, Matrix, Mxfp4Matrix, TileMut, Write};
use super::weights::CpuWeights;
use crate::batch::Batch;
use flotilla_shared::spec::MXFP4_BLOCK;
use flotilla_shared::tensor::LayerTensor;
use flotilla_shared::{ModelSpec, RankShare};

/// One row's choice of one expert.
#[derive(Clone, Copy, Debug)]
struct Route {
    row: u32,
    expert: u16,
    weight: f32,
}

/// Routing and activations of the experts.
#[derive(Debug)]
pub struct Experts {
    /// f32 [T, E]
    logits: Vec<f32>,
    /// [T, K], by row, in falling order of the logit.
    routes: Vec<Route>,
    /// [T, K], by expert.
    by_expert: Vec<Route>,
    /// f32 [n, H] of the rows of one expert; n ≤ T.
    h: Vec<f32>,
    /// f32 [n, 2 I/R], gate at 2j and up at 2j + 1.
    gate_up: Vec<f32>,
    /// f32 [n, I/R]
    act: Vec<f32>,
    /// f32 [n, H]
    down: Vec<f32>,
    arranged: InputBuffer,
    /// u16 [L, T, K], if the batch keeps its routing.
    kept: Vec<u16>,
    kept_rows: usize,
    layer_count: usize,
    per_token: usize,
}

impl Experts {
    pub fn new(spec: &ModelSpec, share: &RankShare, rows: usize) -> Self {
        let intermediate = share.experts.intermediate();
        Experts {
            logits: vec![0.0; rows * spec.experts],
            routes: Vec::with_capacity(rows * spec.experts_per_token),
            by_expert: Vec::with_capacity(rows * spec.experts_per_token),
            h: vec![0.0; rows * spec.hidden],
            gate_up: vec![0.0; rows * 2 * intermediate],
            act: vec![0.0; rows * intermediate],
            down: vec![0.0; rows * spec.hidden],
            arranged: InputBuffer::with_room(rows, spec.hidden.max(intermediate)),
            kept: Vec::new(),
            kept_rows: 0,
            layer_count: spec.layer_count(),
            per_token: spec.experts_per_token,
        }
    }

    pub fn begin(&mut self, batch: &Batch) {
        self.kept.clear();
        self.kept_rows = if batch.keep_routing { batch.rows() } else { 0 };
    }

    /// u16 [L, K] of one row of the last batch.
    pub fn kept_routing(&self, row: usize) -> Vec<u16> {
        let of_layer =
            |layer: usize| &self.kept[(layer * self.kept_rows + row) * self.per_token..][..self.per_token];
        (0..self.layer_count).flat_map(of_layer).copied().collect()
    }

    /// The K largest logits of a row, ties to the lower expert, weighted by softmax over those K.
    fn choose(&mut self, row: usize, expert_count: usize) {
        let logits = &self.logits[row * expert_count..][..expert_count];
        let first = self.routes.len();
        for (expert, &logit) in logits.iter().enumerate() {
            let chosen = &self.routes[first..];
            let rank = chosen.iter().position(|other| other.weight < logit).unwrap_or(chosen.len());
            if rank == self.per_token {
                continue;
            }
            if chosen.len() == self.per_token {
                self.routes.pop();
            }
            self.routes.insert(first + rank, Route { row: row as u32, expert: expert as u16, weight: logit });
        }
        let chosen = &mut self.routes[first..];
        let max = chosen[0].weight;
        chosen.iter_mut().for_each(|route| route.weight = (route.weight - max).exp());
        let sum: f32 = chosen.iter().map(|route| route.weight).sum();
        chosen.iter_mut().for_each(|route| route.weight /= sum);
    }
}

/// One expert's part of this rank.
struct Expert<'a> {
    gate_up: Mxfp4Matrix<'a>,
    gate_up_bias: &'a [u16],
    down: Mxfp4Matrix<'a>,
    down_bias: Option<&'a [u16]>,
}

impl<'a> Expert<'a> {
    /// `index` counts the rank's own experts.
    fn of(weights: &'a CpuWeights, spec: &ModelSpec, share: &RankShare, layer: usize, index: usize) -> Self {
        use LayerTensor::{DownBias, DownBlocks, DownScales, GateUpBias, GateUpBlocks, GateUpScales};
        let (hidden, intermediate) = (spec.hidden, share.experts.intermediate());
        let bytes = |tensor, len: usize| &weights.layer_bytes(layer, tensor)[index * len..][..len];
        let bf16 = |tensor, len: usize| &weights.layer_bf16(layer, tensor)[index * len..][..len];
        let matrix = |blocks, scales, rows: usize, columns: usize| {
            let scale_bytes = rows * columns / MXFP4_BLOCK;
            let blocks = bytes(blocks, scale_bytes * MXFP4_BLOCK / 2);
            Mxfp4Matrix::new(blocks, bytes(scales, scale_bytes), rows, columns)
        };
        Expert {
            gate_up: matrix(GateUpBlocks, GateUpScales, 2 * intermediate, hidden),
            gate_up_bias: bf16(GateUpBias, 2 * intermediate),
            down: matrix(DownBlocks, DownScales, hidden, intermediate),
            down_bias: share.experts.adds_down_bias().then(|| bf16(DownBias, hidden)),
        }
    }
}

impl CpuBackend {
    pub(super) fn route_rows(&mut self, layer: usize, batch: &Batch) {
        let (rows, hidden, experts) = (batch.rows(), self.spec.hidden, self.spec.experts);
        let weight = Matrix::new(self.weights.layer_bf16(layer, LayerTensor::RouterWeight), experts, hidden);
        let bias = self.weights.layer_bf16(layer, LayerTensor::RouterBias);
        let h = Matrix::new(&self.h[..rows * hidden], rows, hidden);
        let state = &mut self.experts;
        let logits = TileMut::new(&mut state.logits[..rows * experts], rows, experts);
        self.kernels.fixed_order_product(weight, h, Some(bias), logits);
        state.routes.clear();
        (0..rows).for_each(|row| state.choose(row, experts));
        if batch.keep_routing {
            state.kept.extend(state.routes.iter().map(|route| route.expert));
        }
    }

    pub(super) fn run_experts(&mut self, layer: usize, batch: &Batch) -> &mut [f32] {
        let filled = batch.rows() * self.spec.hidden;
        self.y[..filled].fill(0.0);
        let own = self.share.experts.experts.clone();
        let state = &mut self.experts;
        state.by_expert.clear();
        if !self.share.experts.is_empty() {
            state
                .by_expert
                .extend(state.routes.iter().filter(|route| own.contains(&(route.expert as usize))));
            state.by_expert.sort_unstable_by_key(|route| (route.expert, route.row));
        }
        let mut first = 0;
        while let Some(route) = self.experts.by_expert.get(first) {
            let same = self.experts.by_expert[first..].iter().take_while(|r| r.expert == route.expert);
            let routes = first..first + same.count();
            let index = route.expert as usize - own.start;
            first = routes.end;
            self.run_expert(layer, index, routes);
        }
        &mut self.y[..filled]
    }

    /// y[row] += w (W_d swiglu(W_gu h[row] + b_gu) + b_d) for the rows of one expert.
    fn run_expert(&mut self, layer: usize, index: usize, routes: std::ops::Range<usize>) {
        let (hidden, intermediate) = (self.spec.hidden, self.share.experts.intermediate());
        let (kernels, n) = (self.kernels, routes.len());
        let expert = Expert::of(&self.weights, &self.spec, &self.share, layer, index);
        let state = &mut self.experts;
        let routes = &state.by_expert[routes];
        for (route, to) in routes.iter().zip(state.h.chunks_exact_mut(hidden)) {
            to.copy_from_slice(&self.h[route.row as usize * hidden..][..hidden]);
        }

        let h = kernels.mxfp4_input(Matrix::new(&state.h[..n * hidden], n, hidden), &mut state.arranged);
        let width = 2 * intermediate;
        let gate_up = TileMut::new(&mut state.gate_up[..n * width], n, width);
        self.threads.columns(gate_up, |tile, scratch| {
            kernels.mxfp4_product(expert.gate_up, &h, Some(expert.gate_up_bias), tile, Write::Set, scratch);
        });

        let gate_up = Matrix::new(&state.gate_up[..n * width], n, width);
        let act = TileMut::new(&mut state.act[..n * intermediate], n, intermediate);
        let limit = self.spec.swiglu_limit;
        self.threads.columns(act, |tile, _| kernels.swiglu(gate_up, limit, tile));

        let act = Matrix::new(&state.act[..n * intermediate], n, intermediate);
        let act = kernels.mxfp4_input(act, &mut state.arranged);
        let down = TileMut::new(&mut state.down[..n * hidden], n, hidden);
        self.threads.columns(down, |tile, scratch| {
            kernels.mxfp4_product(expert.down, &act, expert.down_bias, tile, Write::Set, scratch);
        });
        for (route, down) in routes.iter().zip(state.down.chunks_exact(hidden)) {
            kernels.axpy(route.weight, down, &mut self.y[route.row as usize * hidden..][..hidden]);
        }
    }
}
