//! Attention over a paged cache: decode at several depths, prefill, and the rotation before both.

use crate::bench::Bench;
use crate::data;
use crate::report::{Row, Work};
use crate::shapes;
use cudarc::driver::CudaSlice;
use flotilla_engine::backend::cuda::attention::{
    Attend, AttentionKernels, AttentionShape, Cache, CacheMut, DecodeRows, Partials, Rotation, StepRows,
    Tiles,
};
use flotilla_engine::cuda::{Card, CudaError};
use flotilla_shared::step::BLOCK_TOKENS;

/// (sequences, keys of each)
const DECODES: [(usize, usize); 7] =
    [(1, 128), (1, 4096), (1, 32768), (8, 128), (8, 4096), (32, 128), (32, 4096)];
const DECODES_QUICK: [(usize, usize); 2] = [(1, 40), (3, 20)];
const PREFILLS: [usize; 2] = [512, 2048];
const PREFILLS_QUICK: [usize; 1] = [20];
const SETS_MAX: usize = 16;

pub fn run(bench: &mut Bench) -> Result<(), CudaError> {
    // Both models have the same heads.
    let spec = bench.models()[0].spec.clone();
    let window = spec.window as u32;
    let quick = bench.quick;
    for ranks in [1, 4] {
        let shape = shapes::attention(&spec, &shapes::share(&spec, ranks));
        let kernels = AttentionKernels::new(&bench.card, shape)?;
        for &(t, keys) in if quick { &DECODES_QUICK[..] } else { &DECODES } {
            for window in [None, Some(window)] {
                decode(bench, &kernels, ranks, (t, keys), window)?;
            }
        }
        for &t in if quick { &PREFILLS_QUICK[..] } else { &PREFILLS } {
            for window in [None, Some(window)] {
                prefill(bench, &kernels, ranks, t, window)?;
            }
            rotate(bench, &kernels, ranks, t)?;
        }
        rotate(bench, &kernels, ranks, 1)?;
    }
    Ok(())
}

/// Keys and values of some sequences, several times over; the blocks of a sequence lie apart.
struct Caches {
    keys: Vec<CudaSlice<u16>>,
    values: Vec<CudaSlice<u16>>,
    table: CudaSlice<u32>,
    blocks_each: usize,
}

impl Caches {
    fn new(card: &Card, shape: AttentionShape, sequences: usize, keys: usize) -> Result<Caches, CudaError> {
        let blocks_each = keys.div_ceil(BLOCK_TOKENS);
        let blocks = blocks_each * sequences;
        let len = blocks * shape.block_values();
        let sets = data::sets(card, 4 * len, SETS_MAX)?;
        let make = |seed: u64| (0..sets as u64).map(move |set| data::bf16s(card, len, seed + set)).collect();
        // Sequences that grew side by side: their blocks alternate.
        let table = (0..sequences).flat_map(|s| (0..blocks_each).map(move |b| (b * sequences + s) as u32));
        let (keys, values): (Result<_, _>, Result<_, _>) = (make(1), make(100));
        Ok(Caches {
            keys: keys?,
            values: values?,
            table: card.upload(&table.collect::<Vec<_>>())?,
            blocks_each,
        })
    }

    fn view(&self, set: usize) -> Cache<'_> {
        Cache { keys: self.keys[set].as_view(), values: self.values[set].as_view() }
    }
}

/// What says where a step's rows are: [1], [T], [T].
struct Step {
    rows: CudaSlice<u32>,
    positions: CudaSlice<u32>,
    table_start: CudaSlice<u32>,
}

impl Step {
    fn new(card: &Card, positions: Vec<u32>, table_start: Vec<u32>) -> Result<Step, CudaError> {
        Ok(Step {
            rows: card.upload(&[positions.len() as u32])?,
            positions: card.upload(&positions)?,
            table_start: card.upload(&table_start)?,
        })
    }

    fn view<'a>(&'a self, table: &'a CudaSlice<u32>) -> StepRows<'a> {
        StepRows {
            rows: self.rows.as_view(),
            positions: self.positions.as_view(),
            table_start: self.table_start.as_view(),
            blocks: table.as_view(),
        }
    }
}

fn decode(
    bench: &mut Bench,
    kernels: &AttentionKernels,
    ranks: usize,
    (t, keys): (usize, usize),
    window: Option<u32>,
) -> Result<(), CudaError> {
    let (card, shape) = (bench.card.clone(), kernels.shape());
    let caches = Caches::new(&card, shape, t, keys)?;
    let starts = (0..t).map(|row| (row * caches.blocks_each) as u32).collect();
    let step = Step::new(&card, vec![keys as u32 - 1; t], starts)?;
    let (q, sinks) = (data::bf16s(&card, t * shape.q_width(), 5)?, data::bf16s(&card, shape.q_heads(), 6)?);
    let mut partials = Partials::new(&card, shape, kernels.parts_max(t))?;
    let mut out = card.zeros::<u16>(t * shape.q_width())?;
    let seconds = bench.clock.launch(&card, caches.keys.len(), |set| {
        let attend = Attend { q: q.as_view(), cache: caches.view(set), sinks: sinks.as_view(), window };
        let rows = DecodeRows { launched: t, list: None };
        let step = step.view(&caches.table);
        kernels.attend_decode(&rows, &step, &attend, &mut partials, &mut out.as_view_mut())
    })?;
    let seen = window.map_or(keys, |window| keys.min(window as usize));
    bench.report.push(Row {
        family: "attention",
        what: format!("decode {} {keys}", if window.is_some() { "window" } else { "full" }),
        model: "both".into(),
        ranks,
        rows: t,
        microseconds: seconds * 1e6,
        work: Some(Work {
            bytes: (t * seen * shape.kv_heads * shape.head_dim * 4) as f64,
            flops: (4 * t * seen * shape.q_width()) as f64,
        }),
        ..Row::default()
    });
    Ok(())
}

fn prefill(
    bench: &mut Bench,
    kernels: &AttentionKernels,
    ranks: usize,
    t: usize,
    window: Option<u32>,
) -> Result<(), CudaError> {
    let (card, shape) = (bench.card.clone(), kernels.shape());
    let caches = Caches::new(&card, shape, 1, t)?;
    let step = Step::new(&card, (0..t as u32).collect(), vec![0; t])?;
    let firsts = (0..t).step_by(shape.tile_rows());
    let tiles: Vec<u32> =
        firsts.flat_map(|first| [first as u32, shape.tile_rows().min(t - first) as u32, 0, 0]).collect();
    let count = card.upload(&[tiles.len() as u32 / 4])?;
    let launched = tiles.len() / 4;
    let tiles = card.upload(&tiles)?;
    let (q, sinks) = (data::bf16s(&card, t * shape.q_width(), 5)?, data::bf16s(&card, shape.q_heads(), 6)?);
    let mut out = card.zeros::<u16>(t * shape.q_width())?;
    let seconds = bench.clock.launch(&card, caches.keys.len(), |set| {
        let attend = Attend { q: q.as_view(), cache: caches.view(set), sinks: sinks.as_view(), window };
        let tiles = Tiles { launched, tiles: tiles.as_view(), count: count.as_view() };
        kernels.attend_tiles(&tiles, &step.view(&caches.table), &attend, &mut out.as_view_mut())
    })?;
    let seen: usize = (1..=t).map(|keys| window.map_or(keys, |window| keys.min(window as usize))).sum();
    bench.report.push(Row {
        family: "attention",
        what: format!("prefill {}", if window.is_some() { "window" } else { "full" }),
        model: "both".into(),
        ranks,
        rows: t,
        microseconds: seconds * 1e6,
        work: Some(Work {
            bytes: (t * shape.kv_heads * shape.head_dim * 4 + 4 * t * shape.q_width()) as f64,
            flops: (4 * seen * shape.q_width()) as f64,
        }),
        ..Row::default()
    });
    Ok(())
}

fn rotate(bench: &mut Bench, kernels: &AttentionKernels, ranks: usize, t: usize) -> Result<(), CudaError> {
    let (card, shape) = (bench.card.clone(), kernels.shape());
    let mut caches = Caches::new(&card, shape, 1, t)?;
    let step = Step::new(&card, (0..t as u32).collect(), vec![0; t])?;
    let qkv = data::f32s(&card, t * shape.qkv_width(), 3)?;
    let angles = data::f32s(&card, t * shape.head_dim / 2, 4)?;
    let mut q = card.zeros::<u16>(t * shape.q_width())?;
    let Caches { keys, values, table, .. } = &mut caches;
    let seconds = bench.clock.launch(&card, keys.len(), |set| {
        let rotation = Rotation { cos: angles.as_view(), sin: angles.as_view() };
        let mut cache = CacheMut { keys: keys[set].as_view_mut(), values: values[set].as_view_mut() };
        let step = step.view(table);
        kernels.rope_store(t, &step, &rotation, &qkv.as_view(), &mut q.as_view_mut(), &mut cache)
    })?;
    let bytes = (t * (shape.qkv_width() * 6 + shape.head_dim * 4)) as f64;
    bench.report.push(Row {
        family: "attention",
        what: "rope and store".into(),
        model: "both".into(),
        ranks,
        rows: t,
        microseconds: seconds * 1e6,
        work: Some(Work { bytes, flops: 0.0 }),
        ..Row::default()
    });
    Ok(())
}
