//! The experts' MXFP4 products, on routes that a router has drawn, so that the number of distinct experts is
//! what it is in a model whose experts are equally likely.

use crate::bench::Bench;
use crate::data;
use crate::report::{Row, Work};
use crate::shapes::{self, Model};
use cudarc::driver::CudaSlice;
use flotilla_engine::backend::cuda::experts::{
    ExpertBuffers, ExpertKernels, ExpertShape, ExpertWeights, Part, Product,
};
use flotilla_engine::backend::cuda::route::{RouteKernels, Routes};
use flotilla_engine::cuda::{Card, CudaError};
use std::collections::BTreeSet;

const ROWS: [usize; 8] = [1, 2, 4, 8, 16, 32, 512, 2048];
const ROWS_QUICK: [usize; 3] = [1, 9, 40];
/// Sets of weights, and of routes for few and for many rows.
const SETS_MAX: usize = 4;
const DRAWS: usize = 16;
const DRAWS_OF_MANY: usize = 2;
const MANY_ROWS: usize = 64;

/// blocks, scales, bias
type Tensors = (CudaSlice<u8>, CudaSlice<u8>, CudaSlice<u16>);

/// A layer's experts.
struct Layer {
    gate_up: Tensors,
    down: Tensors,
}

fn product((blocks, scales, bias): &Tensors) -> Product<'_> {
    Product { blocks: blocks.as_view(), scales: scales.as_view(), bias: Some(bias.as_view()) }
}

impl Layer {
    fn new(card: &Card, shape: &ExpertShape, seed: u64) -> Result<Layer, CudaError> {
        let (experts, hidden) = (shape.route.own.len(), shape.route.hidden);
        let product = |rows: usize, columns: usize, seed: u64| {
            let blocks = data::bytes(card, experts * rows * columns / 2, seed)?;
            let scales = data::scales(card, experts * rows * columns / 32, seed + 1)?;
            Ok::<_, CudaError>((blocks, scales, data::bf16s(card, experts * rows, seed + 2)?))
        };
        Ok(Layer {
            gate_up: product(2 * shape.intermediate, hidden, seed)?,
            down: product(hidden, shape.intermediate, seed + 3)?,
        })
    }

    fn weights(&self) -> ExpertWeights<'_> {
        ExpertWeights { gate_up: product(&self.gate_up), down: product(&self.down) }
    }
}

/// Bytes of one expert: (gate_up, down).
fn expert_bytes(shape: &ExpertShape) -> (usize, usize) {
    let (hidden, intermediate) = (shape.route.hidden, shape.intermediate);
    let product = |rows: usize, columns: usize| rows * columns / 2 + rows * columns / 32 + rows * 2;
    (product(2 * intermediate, hidden), product(hidden, intermediate))
}

pub fn run(bench: &mut Bench) -> Result<(), CudaError> {
    for model in bench.models() {
        for ranks in [1, 4] {
            let shape = shapes::experts(&model.spec, &shapes::share(&model.spec, ranks));
            part(bench, &model, ranks, &shape)?;
        }
    }
    Ok(())
}

fn part(bench: &mut Bench, model: &Model, ranks: usize, shape: &ExpertShape) -> Result<(), CudaError> {
    let card = bench.card.clone();
    let all = if bench.quick { &ROWS_QUICK[..] } else { &ROWS };
    let rows_max = all[all.len() - 1];
    let kernels = ExpertKernels::new(&card, shape, model.spec.swiglu_limit, rows_max)?;
    let router = Router::new(&card, shape)?;
    let (gate_up, down) = expert_bytes(shape);
    // Rows take other experts from draw to draw, so one layer of a large model goes a long way.
    let sets = data::sets(&card, (gate_up + down) * shape.route.own.len(), SETS_MAX)?;
    let layers = (0..sets).map(|set| Layer::new(&card, shape, 10 * set as u64));
    let layers = layers.collect::<Result<Vec<_>, _>>()?;

    for &t in all {
        let draws = match (bench.quick, t > MANY_ROWS) {
            (true, _) => 2,
            (false, true) => DRAWS_OF_MANY,
            (false, false) => DRAWS,
        };
        let draws = (0..draws).map(|draw| router.draw(&card, shape, t, draw as u64));
        let draws = draws.collect::<Result<Vec<_>, _>>()?;
        let distinct = draws.iter().map(|draw| draw.distinct).sum::<usize>() as f64 / draws.len() as f64;
        let mut buffers = ExpertBuffers::new(&card, shape, t)?;
        let rows = card.upload(&[t as u32])?;
        let mut y = card.zeros::<f32>(t * shape.route.hidden)?;
        let rounds = draws.len().max(layers.len());
        let mut time = |only: Option<Part>| {
            bench.clock.launch(&card, rounds, |round| {
                let (draw, weights) = (&draws[round % draws.len()], layers[round % layers.len()].weights());
                let chosen = draw.chosen.as_view();
                match only {
                    Some(part) => kernels.run_part(part, t, &draw.routes, &chosen, &weights, &mut buffers),
                    None => kernels.run(
                        t,
                        &rows.as_view(),
                        &draw.routes,
                        &chosen,
                        &weights,
                        &mut buffers,
                        &mut y.as_view_mut(),
                    ),
                }
            })
        };
        let parts = [
            ("gate_up", time(Some(Part::GateUp))?, gate_up, 2),
            ("down", time(Some(Part::Down))?, down, 1),
            ("both and combine", time(None)?, gate_up + down, 3),
        ];
        for (what, seconds, bytes, products) in parts {
            let routes = t * shape.route.per_token;
            let flops = 2.0 * (routes * products * shape.intermediate * shape.route.hidden) as f64;
            bench.report.push(Row {
                family: "experts",
                what: what.into(),
                model: model.name.into(),
                ranks,
                rows: t,
                microseconds: seconds * 1e6,
                work: Some(Work { bytes: distinct * bytes as f64, flops }),
                note: format!("{distinct:.1} distinct experts"),
                ..Row::default()
            });
        }
    }
    Ok(())
}

struct Router {
    kernels: RouteKernels,
    weight: CudaSlice<u16>,
    bias: CudaSlice<u16>,
}

/// Routes of T random rows.
struct Draw {
    routes: Routes,
    chosen: CudaSlice<u16>,
    distinct: usize,
}

impl Router {
    fn new(card: &Card, shape: &ExpertShape) -> Result<Router, CudaError> {
        let experts = shape.route.experts;
        Ok(Router {
            kernels: RouteKernels::new(card, &shape.route)?,
            weight: data::bf16s(card, experts * shape.route.hidden, 7)?,
            bias: data::bf16s(card, experts, 8)?,
        })
    }

    fn draw(&self, card: &Card, shape: &ExpertShape, t: usize, seed: u64) -> Result<Draw, CudaError> {
        let h = data::f32s(card, t * shape.route.hidden, 1000 + seed)?;
        let rows = card.upload(&[t as u32])?;
        let mut routes = Routes::new(card, &shape.route, t)?;
        let mut chosen = card.zeros::<u16>(t * shape.route.per_token)?;
        let (weight, bias) = (self.weight.as_view(), self.bias.as_view());
        let (rows, h) = (rows.as_view(), h.as_view());
        self.kernels.route(t, &rows, &h, &weight, &bias, &mut chosen.as_view_mut(), &mut routes)?;
        let distinct = card.download(&chosen)?.into_iter().collect::<BTreeSet<_>>().len();
        Ok(Draw { routes, chosen, distinct })
    }
}
