//! What is short in a step of few rows, where latency is all: norms, router, sampling.

use crate::bench::Bench;
use crate::data;
use crate::report::{Row, Work};
use crate::shapes;
use crate::timing::{elapsed, median};
use cudarc::driver::CudaSlice;
use flotilla_engine::backend::cuda::cut::{COUNT_MAX, CutKernels};
use flotilla_engine::backend::cuda::norm::{Added, NormKernels};
use flotilla_engine::backend::cuda::route::{RouteKernels, Routes};
use flotilla_engine::backend::cuda::sample::{ROW_WORDS, SampleKernels, row_words};
use flotilla_engine::cuda::CudaError;
use flotilla_engine::sample::{SampleRow, Weigher};
use flotilla_shared::{ModelSpec, Sampling, TokenId};

const ROWS: [usize; 4] = [1, 8, 32, 2048];
const ROWS_QUICK: [usize; 2] = [1, 20];
const SAMPLED: [usize; 3] = [1, 8, 64];
const SAMPLED_QUICK: [usize; 1] = [2];
const SETS: usize = 4;

fn rows(bench: &Bench) -> &'static [usize] {
    if bench.quick { &ROWS_QUICK } else { &ROWS }
}

pub fn norms(bench: &mut Bench) -> Result<(), CudaError> {
    let (card, spec) = (bench.card.clone(), bench.models()[0].spec.clone());
    let hidden = spec.hidden;
    let kernels = NormKernels::new(&card, hidden, spec.norm_eps as f32)?;
    let weight = data::bf16s(&card, hidden, 1)?;
    for &t in rows(bench) {
        let rows = card.upload(&[t as u32])?;
        let mut x =
            (0..SETS as u64).map(|set| data::f32s(&card, t * hidden, set)).collect::<Result<Vec<_>, _>>()?;
        let y = data::f32s(&card, t * hidden, 9)?;
        let mut h = card.zeros::<u16>(t * hidden)?;
        let mut h32 = card.zeros::<f32>(t * hidden)?;
        let (rows, y, weight) = (rows.as_view(), y.as_view(), weight.as_view());
        let attention = bench.clock.launch(&card, SETS, |set| {
            let added = Added { x: &mut x[set].as_view_mut(), y: &y, weight: &weight };
            kernels.add_norm_attention(t, &rows, added, &mut h.as_view_mut())
        })?;
        let mlp = bench.clock.launch(&card, SETS, |set| {
            let added = Added { x: &mut x[set].as_view_mut(), y: &y, weight: &weight };
            kernels.add_norm_mlp(t, &rows, added, &mut h32.as_view_mut())
        })?;
        for (what, seconds, bytes) in [("add_norm_attention", attention, 14), ("add_norm_mlp", mlp, 16)] {
            push(bench, "norm", what, "both", 1, t, seconds, (t * hidden * bytes) as f64);
        }
    }
    Ok(())
}

pub fn router(bench: &mut Bench) -> Result<(), CudaError> {
    let card = bench.card.clone();
    for model in bench.models() {
        let shape = shapes::experts(&model.spec, &shapes::share(&model.spec, 1)).route;
        let kernels = RouteKernels::new(&card, &shape)?;
        let weights = (0..SETS as u64).map(|set| data::bf16s(&card, shape.experts * shape.hidden, set));
        let weights = weights.collect::<Result<Vec<_>, _>>()?;
        let bias = data::bf16s(&card, shape.experts, 8)?;
        for &t in rows(bench) {
            let (h, rows) = (data::f32s(&card, t * shape.hidden, 5)?, card.upload(&[t as u32])?);
            let mut routes = Routes::new(&card, &shape, t)?;
            let mut chosen = card.zeros::<u16>(t * shape.per_token)?;
            let (rows, h, bias) = (rows.as_view(), h.as_view(), bias.as_view());
            let seconds = bench.clock.launch(&card, SETS, |set| {
                let weight = weights[set].as_view();
                kernels.route(t, &rows, &h, &weight, &bias, &mut chosen.as_view_mut(), &mut routes)
            })?;
            let bytes = shape.experts * shape.hidden * 2 + t * shape.hidden * 6;
            push(bench, "route", "route", model.name, 1, t, seconds, bytes as f64);
        }
    }
    Ok(())
}

pub fn sampling(bench: &mut Bench) -> Result<(), CudaError> {
    let spec: ModelSpec = bench.models()[0].spec.clone();
    let card = bench.card.clone();
    for ranks in [1, 4] {
        let vocab = shapes::share(&spec, ranks).vocab;
        let all: [std::ops::Range<TokenId>; 1] = [0..spec.vocab as TokenId];
        for &n in if bench.quick { &SAMPLED_QUICK[..] } else { &SAMPLED } {
            let mut kernels = SampleKernels::new(&card, vocab.clone(), &all, n)?;
            let logits = (0..SETS as u64).map(|set| data::f32s(&card, n * vocab.len(), set));
            let logits = logits.collect::<Result<Vec<_>, _>>()?;
            let count = card.upload(&[n as u32])?;
            let mut bests = card.zeros::<u32>(n * 2)?;
            for (what, temperature) in [("greedy", 0.0), ("temperature 1", 1.0)] {
                let words: Vec<u32> = (0..n).flat_map(|row| words(row, temperature)).collect();
                assert_eq!(words.len(), n * ROW_WORDS);
                let rows = card.upload(&words)?;
                let seconds = bench.clock.launch(&card, SETS, |set| {
                    let (count, rows, logits) = (count.as_view(), rows.as_view(), logits[set].as_view());
                    kernels.best(n, &count, &rows, &logits, &mut bests.as_view_mut())
                })?;
                push(bench, "sample", what, "both", ranks, n, seconds, (n * vocab.len() * 4) as f64);
            }
            let mut kernels = CutKernels::new(&card, vocab.clone(), &all)?;
            let likeliest: Vec<(usize, usize)> = (0..n).map(|row| (row, COUNT_MAX)).collect();
            let weighed: Vec<_> = (0..n).map(|row| (row, Weigher::new(1.0, 1.0), f32::MIN)).collect();
            // With the copies each way and what the host makes of them: a step waits for all of it.
            let times = |work: &mut dyn FnMut(&CudaSlice<f32>) -> Result<(), CudaError>| {
                let times =
                    logits.iter().cycle().take(SETS * 3).map(|logits| elapsed(&card, || work(logits)));
                times.collect::<Result<Vec<_>, _>>().map(median)
            };
            let looked = times(&mut |logits| kernels.likeliest(&likeliest, logits).map(drop))?;
            let weight = times(&mut |logits| kernels.weigh(&weighed, logits).map(drop))?;
            for (what, seconds) in [("likeliest 256", looked), ("weights", weight)] {
                push(bench, "sample", what, "both", ranks, n, seconds, (n * vocab.len() * 4) as f64);
            }
        }
    }
    Ok(())
}

fn words(row: usize, temperature: f32) -> [u32; ROW_WORDS] {
    let sampling = Sampling { temperature, top_p: 1.0, seed: 11 + row as u64, ..Sampling::GREEDY };
    row_words(&SampleRow::new(sampling, 100, row))
}

#[allow(clippy::too_many_arguments)]
fn push(
    bench: &mut Bench,
    family: &'static str,
    what: &str,
    model: &str,
    ranks: usize,
    rows: usize,
    seconds: f64,
    bytes: f64,
) {
    bench.report.push(Row {
        family,
        what: what.into(),
        model: model.into(),
        ranks,
        rows,
        microseconds: seconds * 1e6,
        work: Some(Work { bytes, flops: 0.0 }),
        ..Row::default()
    });
}
