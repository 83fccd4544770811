//! The mixture of experts: routing, which every rank decides alike from the same bits, and the rank's
//! rectangle of the chosen experts. Rows are grouped by expert, so that each expert is read once a step.

use super::CpuBackend;
use super::kernels::{Activations, Matrix, Precision, TILE, TileMut};
use super::weights::Expert;
use crate::batch::Batch;
use flotilla_shared::plan::ExpertShare;
use flotilla_shared::spec::MXFP4_BLOCK;
use flotilla_shared::tensor::LayerTensor;
use flotilla_shared::{ModelSpec, RankShare, Stage};
use std::ops::Range;

/// One row's choice of one expert.
#[derive(Clone, Copy, Debug)]
struct Route {
    row: u32,
    expert: u16,
    weight: f32,
}

/// The routes to one expert.
#[derive(Debug)]
struct Span {
    /// Counts the rank's own experts.
    index: usize,
    /// In `by_expert`.
    routes: Range<usize>,
}

/// Routing and activations of the experts.
#[derive(Debug)]
pub struct Experts {
    /// f32 [T, E]
    logits: Vec<f32>,
    /// [T, K], by row, in falling order of the logit.
    routes: Vec<Route>,
    /// Those to the rank's own experts, by expert.
    by_expert: Vec<Route>,
    /// Their rows.
    rows: Vec<u32>,
    /// 0, 1, 2 …: as many as there can be routes.
    ids: Vec<u32>,
    spans: Vec<Span>,
    /// [T, H]
    h: Activations,
    /// [T · K, I/R], by route in `by_expert`.
    act: Activations,
    /// u16 [L of the stage, T, K], if the batch keeps its routing.
    kept: Vec<u16>,
    kept_rows: usize,
    layer_count: usize,
    per_token: usize,
}

impl Experts {
    pub fn new(
        spec: &ModelSpec,
        stage: &Stage,
        share: &RankShare,
        rows: usize,
        precision: Precision,
    ) -> Self {
        let routes = rows * spec.experts_per_token;
        let own = share.experts.experts.len();
        Experts {
            logits: vec![0.0; rows * spec.experts],
            routes: Vec::with_capacity(routes),
            by_expert: Vec::with_capacity(routes),
            rows: Vec::with_capacity(routes),
            ids: (0..routes as u32).collect(),
            spans: Vec::with_capacity(own),
            h: Activations::with_room(precision, rows, spec.hidden),
            act: Activations::with_room(precision, routes, share.experts.intermediate()),
            kept: Vec::new(),
            kept_rows: 0,
            layer_count: stage.layers.len(),
            per_token: spec.experts_per_token,
        }
    }

    /// `by_expert` and what follows of it.
    fn sort(&mut self, share: &ExpertShare) {
        let own = if share.is_empty() { 0..0 } else { share.experts.clone() };
        self.by_expert.clear();
        let is_own = |route: &&Route| own.contains(&(route.expert as usize));
        self.by_expert.extend(self.routes.iter().filter(is_own));
        self.by_expert.sort_unstable_by_key(|route| (route.expert, route.row));
        self.rows.clear();
        self.rows.extend(self.by_expert.iter().map(|route| route.row));
        self.spans.clear();
        let mut first = 0;
        for routes in self.by_expert.chunk_by(|a, b| a.expert == b.expert) {
            let index = routes[0].expert as usize - own.start;
            self.spans.push(Span { index, routes: first..first + routes.len() });
            first += routes.len();
        }
    }

    pub fn begin(&mut self, batch: &Batch) {
        self.kept.clear();
        self.kept_rows = if batch.keep_routing { batch.rows() } else { 0 };
    }

    /// u16 [L of the stage, K] of one row of the last batch.
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

impl CpuBackend {
    pub(super) fn route_rows(&mut self, layer: usize, batch: &Batch) {
        let (rows, hidden, experts) = (batch.rows(), self.spec.hidden, self.spec.experts);
        let weight = Matrix::new(self.weights.layer_bf16(layer, LayerTensor::RouterWeight), experts, hidden);
        let bias = self.weights.layer_bf16(layer, LayerTensor::RouterBias);
        let (kernels, h, state) = (self.kernels, &self.h, &mut self.experts);
        self.threads.rows(rows, &mut state.logits[..rows * experts], experts, |rows, logits| {
            let h = Matrix::new(&h[rows.start * hidden..rows.end * hidden], rows.len(), hidden);
            kernels.fixed_order_product(weight, h, Some(bias), TileMut::new(logits, rows.len(), experts));
        });
        state.routes.clear();
        (0..rows).for_each(|row| state.choose(row, experts));
        if batch.keep_routing {
            state.kept.extend(state.routes.iter().map(|route| route.expert));
        }
    }

    pub(super) fn run_experts(&mut self, layer: usize, batch: &Batch) -> &mut [f32] {
        let rows = batch.rows();
        self.experts.sort(&self.share.experts);
        self.arrange_normed(rows);
        self.gate_up_and_activate(layer);
        self.down_and_sum(layer, rows);
        &mut self.y[..rows * self.spec.hidden]
    }

    /// h, for the products that follow.
    fn arrange_normed(&mut self, rows: usize) {
        let (kernels, hidden, h) = (self.kernels, self.spec.hidden, &self.h);
        let arranged = self.experts.h.shared();
        self.threads.ranges(rows, |rows, _| {
            for row in rows {
                // SAFETY: each row is taken once.
                unsafe { arranged.set(kernels, row, 0, &h[row * hidden..][..hidden]) }
            }
        });
    }

    /// act[route] = swiglu(W_gu h[row] + b_gu), block by block of the intermediate dimension.
    fn gate_up_and_activate(&mut self, layer: usize) {
        let (kernels, limit) = (self.kernels, self.spec.swiglu_limit);
        let (hidden, intermediate) = (self.spec.hidden, self.share.experts.intermediate());
        let (weights, bias) = (&self.weights, self.weights.layer_bf16(layer, LayerTensor::GateUpBias));
        let Experts { spans, rows, h, act, .. } = &mut self.experts;
        let (h, act, blocks) = (&*h, act.shared(), intermediate / MXFP4_BLOCK);
        self.threads.ranges(spans.len() * blocks, |units, scratch| {
            for unit in units {
                let (span, block) = (&spans[unit / blocks], unit % blocks);
                let matrix = weights.expert(layer, Expert::GateUp, span.index, 2 * intermediate, hidden);
                let outputs = block * GATE_UP..(block + 1) * GATE_UP;
                let mut b = [0.0; GATE_UP];
                kernels.bf16_widen(&bias[span.index * 2 * intermediate..][outputs.clone()], &mut b);
                for routes in chunks(&span.routes) {
                    let y = kernels.mxfp4_product(matrix, h, &rows[routes.clone()], outputs.clone(), scratch);
                    for (route, y) in routes.zip(y.chunks_exact_mut(GATE_UP)) {
                        let mut a = [0.0; MXFP4_BLOCK];
                        kernels.add_assign(y, &b);
                        kernels.swiglu(
                            Matrix::new(y, 1, GATE_UP),
                            limit,
                            TileMut::new(&mut a, 1, MXFP4_BLOCK),
                        );
                        // SAFETY: each block of each route is one unit's.
                        unsafe { act.set(kernels, route, block * MXFP4_BLOCK, &a) }
                    }
                }
            }
        });
    }

    /// y[row] = Σ w (W_d act[route] + b_d) over the row's routes, in the order of the experts.
    fn down_and_sum(&mut self, layer: usize, rows: usize) {
        let (kernels, hidden, intermediate) =
            (self.kernels, self.spec.hidden, self.share.experts.intermediate());
        let (weights, bias) = (&self.weights, self.weights.layer_bf16(layer, LayerTensor::DownBias));
        let has_bias = self.share.experts.adds_down_bias();
        let Experts { spans, by_expert, ids, act, .. } = &self.experts;
        let y = TileMut::new(&mut self.y[..rows * hidden], rows, hidden);
        self.threads.columns(y, |tile, scratch| {
            for mut tile in tile.chunks(DOWN) {
                let columns = tile.columns();
                (0..rows).for_each(|row| tile.token_mut(row).fill(0.0));
                for span in spans {
                    let matrix = weights.expert(layer, Expert::Down, span.index, hidden, intermediate);
                    let mut b = [0.0; DOWN];
                    let b = &mut b[..columns.len()];
                    if has_bias {
                        kernels.bf16_widen(&bias[span.index * hidden..][columns.clone()], b);
                    }
                    for routes in chunks(&span.routes) {
                        let ids = &ids[routes.clone()];
                        let out = kernels.mxfp4_product(matrix, act, ids, columns.clone(), scratch);
                        for (route, out) in by_expert[routes].iter().zip(out.chunks_exact_mut(columns.len()))
                        {
                            kernels.add_assign(out, b);
                            kernels.axpy(route.weight, out, tile.token_mut(route.row as usize));
                        }
                    }
                }
            }
        });
    }
}

/// Outputs of gate and up that make one block of activations.
const GATE_UP: usize = 2 * MXFP4_BLOCK;
/// Outputs of down that are made at once.
const DOWN: usize = 96;
/// Tokens of one product.
const TOKENS: usize = TILE / DOWN;
const _: () = assert!(TOKENS * GATE_UP <= TILE);

fn chunks(routes: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = routes.end;
    routes.clone().step_by(TOKENS).map(move |from| from..end.min(from + TOKENS))
}
