//! Dense products: each width of a rank, by the way that the engine takes, beside its other ways and cuBLASLt.

use crate::bench::Bench;
use crate::data;
use crate::report::{Row, Work};
use crate::shapes;
use flotilla_engine::backend::cuda::dense::{DenseKernels, Linear, Way};
use flotilla_engine::cuda::CudaError;
use flotilla_shared::activations::LOGIT_ROWS;

const ROWS: [usize; 6] = [1, 8, 16, 64, 512, 2048];
const ROWS_QUICK: [usize; 2] = [1, 20];
const SETS_MAX: usize = 24;

pub fn run(bench: &mut Bench) -> Result<(), CudaError> {
    let mut kernels = DenseKernels::new(&bench.card)?;
    // Both models have the same dense parts.
    let spec = bench.models()[0].spec.clone();
    let all = if bench.quick { &ROWS_QUICK[..] } else { &ROWS };
    for ranks in [1, 4] {
        let share = shapes::share(&spec, ranks);
        let attention = shapes::attention(&spec, &share);
        let products = [
            (("qkv", true), attention.qkv_width(), spec.hidden, usize::MAX),
            (("o", true), spec.hidden, attention.q_width(), usize::MAX),
            (("unembed", false), share.vocab.len(), spec.hidden, LOGIT_ROWS),
        ];
        for (what, m, k, t_max) in products {
            for &t in all.iter().filter(|t| **t <= t_max) {
                product(bench, &mut kernels, what, ranks, (t, m, k))?;
            }
        }
    }
    Ok(())
}

fn product(
    bench: &mut Bench,
    kernels: &mut DenseKernels,
    (what, has_bias): (&str, bool),
    ranks: usize,
    (t, m, k): (usize, usize, usize),
) -> Result<(), CudaError> {
    let card = bench.card.clone();
    let sets = data::sets(&card, m * k * 2, SETS_MAX)?;
    let weights = (0..sets).map(|set| data::bf16s(&card, m * k, set as u64));
    let weights = weights.collect::<Result<Vec<_>, _>>()?;
    let bias = data::bf16s(&card, m, 98)?;
    let (x, rows) = (data::bf16s(&card, t * k, 99)?, card.upload(&[t as u32])?);
    let (mut y, x_view, rows) = (card.zeros::<f32>(t * m)?, x.as_view(), rows.as_view());

    let (chosen, has_library) = (kernels.choose(t, m), kernels.has_library());
    let own = Way::choose(t, m, card.facts().multiprocessors as usize);
    let mut by = |way: Way| {
        bench.clock.launch(&card, sets, |set| {
            let bias = has_bias.then(|| bias.as_view());
            let linear = Linear::new(weights[set].as_view(), bias, m, k);
            kernels.product_by(way, t, &rows, &x_view, &linear, &mut y.as_view_mut())
        })
    };
    let seconds = by(chosen)?;
    let mut note = format!("{chosen:?}");
    let library = has_library.then_some(Way::CublasLt);
    for way in Way::KERNELS.into_iter().chain(library).filter(|way| *way != chosen && t <= way.tokens_max()) {
        // Tiles for a row or two are not worth their time.
        if matches!(way, Way::ManyLarge) && t < 64 {
            continue;
        }
        let told = way == Way::CublasLt || way == own;
        match by(way) {
            Ok(other) if told || other < 0.97 * seconds => {
                note += &format!(", {way:?} {:.1} µs", other * 1e6)
            }
            Ok(_) => {}
            Err(error) if way == Way::CublasLt => note += &format!(", {error}"),
            Err(error) => return Err(error),
        }
    }
    let bytes = (m * k * 2 + t * k * 2 + t * m * 4) as f64;
    bench.report.push(Row {
        family: "dense",
        what: format!("{what} {m}x{k}"),
        model: "both".into(),
        ranks,
        rows: t,
        microseconds: seconds * 1e6,
        work: Some(Work { bytes, flops: 2.0 * (t * m * k) as f64 }),
        note,
        ..Row::default()
    });
    Ok(())
}
