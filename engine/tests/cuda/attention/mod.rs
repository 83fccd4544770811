//! Rotation, storing and attention against f64, from the bits that the kernels are given. Whatever a row does
//! not see is NaN in the cache, or is no block at all; tables of windows have lost their heads.

mod case;

use crate::support;
use cudarc::driver::CudaSlice;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use flotilla_engine::backend::cuda::attention::{
    Attend, AttentionKernels, AttentionShape, Cache, CacheMut, DecodeList, DecodeRows, Partials, Rotation,
    StepRows, Tiles,
};
use flotilla_engine::cuda::{Card, Source};
use flotilla_shared::sampling::mix;
use half::{bf16, f16};
use std::ops::Range;

use case::{Case, Logits, Rotated, Uploaded};

const BLOCK_TOKENS: usize = 16;
/// NaN as bf16 and as f16.
const POISON: u16 = 0x7fff;
/// No block of any cache.
const NO_BLOCK: u32 = 0xffff_fff0;

/// One replace each in attention.cu that [`check_rotation`] must notice.
pub const PLANTED_ROTATION: [(&str, &str, &str); 4] = [
    ("the rotation turns the other way", "low[i] = x * c - y * s;", "low[i] = x * c + y * s;"),
    ("q is not scaled", "low[i] *= q_scale;", ""),
    ("values are rotated, too", "if (head < NQ + NK) {", "if (head < NQ + 2 * NK) {"),
    (
        "a row's table is the first row's",
        "blocks[table_start[row] + position",
        "blocks[table_start[0] + position",
    ),
];

/// One replace each in attention.cu that [`check_decode`] must notice.
pub const PLANTED_DECODE: [(&str, &str, &str); 14] = [
    (
        "the sink is dropped where a row is finished by its only block",
        "normalizer(m, l, sink));",
        "normalizer(m, l, NEVER));",
    ),
    ("the sink is dropped in combine", "normalizer(m, l, logit));", "normalizer(m, l, NEVER));"),
    ("the window is one key wider", "position - window + 1 : 0;", "position - window : 0;"),
    ("the window is one key narrower", "position - window + 1 : 0;", "position - window + 2 : 0;"),
    ("query heads of the wrong kv head", "row * NQ + head * G + lane / 4", "row * NQ + lane / 4 * NK + head"),
    (
        "keys past the row's own are not masked",
        "key >= steps.lowest && key <= position;",
        "key >= steps.lowest;",
    ),
    (
        "values past the row's own are read",
        "position_of >= lowest && position_of <= position",
        "position_of >= lowest && any",
    ),
    ("weights meet their neighbours' values", "operand[0] = swap ? second : first;", "operand[0] = first;"),
    ("sums keep their scale when m grows", "sums.out[tile][d][i + 2] *= decay;", ""),
    ("one part is left out", "s < used; s += BESIDE", "s < used - 1; s += BESIDE"),
    (
        "a row takes the parts of the first",
        "if (index > 0) before = warp_sum_unsigned(before);",
        "before = 0;",
    ),
    (
        "an entry that is gone is read",
        "s.first_block = s.lowest / BLOCK_TOKENS;",
        "s.first_block = s.lowest / BLOCK_TOKENS - (s.lowest >= BLOCK_TOKENS);",
    ),
    ("a table's start that wraps becomes a large one", "blocks[start + at]", "(blocks + start)[at]"),
    ("a row's last steps have no block", "(steps - 1) / per_part + 1;", "(steps + per_part / 2) / per_part;"),
];

/// One replace each in attention_tiles.cu that [`check_tiles`] must notice.
pub const PLANTED_TILES: [(&str, &str, &str); 9] = [
    ("the sink is dropped", "to_float(sinks[head * G + m % G]) * LOG2_E", "NEVER"),
    ("the window is one key wider", "position - key >= window", "position - key > window"),
    ("the window is one key narrower", "position - key >= window", "position - key >= window - 1"),
    ("a row does not see its own key", "key > position ||", "key >= position ||"),
    ("query heads of the wrong kv head", "* NQ + head * G + m % G) * D", "* NQ + m % G * NK + head) * D"),
    ("values past the last row are read", "position <= span.last;", "position / 16 <= span.last / 16;"),
    ("a row that has seen no key yet is −∞ − −∞", "m == NEVER ? 0.0f : m;", "m;"),
    (
        "a tile's table is the first row's",
        "span.table_start = table_start[first_row];",
        "span.table_start = table_start[0];",
    ),
    ("a stage is read before it has arrived", "copy_async_wait<0>();", ""),
];

/// G = 1, 2, 4, 8; D = 16, 32, 64.
const SHAPES: [AttentionShape; 4] = [
    AttentionShape { head_dim: 64, group: 8, kv_heads: 2 },
    AttentionShape { head_dim: 32, group: 4, kv_heads: 1 },
    AttentionShape { head_dim: 16, group: 1, kv_heads: 3 },
    AttentionShape { head_dim: 64, group: 2, kv_heads: 1 },
];

const WINDOWS: [Option<u32>; 3] = [None, Some(128), Some(32)];

type Edit<'a> = &'a dyn Fn(Source) -> Source;
type Check = fn(&Card, Edit<'_>) -> Result<(), String>;

fn on_every_card(check: Check) {
    for support::TestCard { card, .. } in support::cards() {
        if let Err(error) = check(&card, &|source| source) {
            panic!("{}: {error}", card.facts().name);
        }
    }
}

#[test]
fn rows_are_rotated_and_stored() {
    on_every_card(check_rotation);
}

#[test]
fn decode_rows_attend_to_what_they_see() {
    on_every_card(check_decode);
}

#[test]
fn tiles_attend_to_what_they_see() {
    on_every_card(check_tiles);
}

#[test]
fn decode_rows_and_tiles_share_a_step() {
    on_every_card(check_mixture);
}

/// What a decode step's graph needs: the launch knows how many rows there are, not where they are.
#[test]
fn a_captured_launch_serves_other_positions() {
    for support::TestCard { card, .. } in support::cards() {
        let shape = SHAPES[0];
        let kernels = AttentionKernels::new(&card, shape).unwrap();
        let case = Case::new(&card, shape, None, &[700..701, 31..32], 4000, Logits::Usual);
        let mut step = Uploaded::new(&case, &[2, 0], &case.table_start);
        let (q, mut out) = (card.upload(&case.q).unwrap(), case.poisoned_out());
        let mut partials = Partials::new(&card, shape, kernels.parts_max(2)).unwrap();
        let rows = DecodeRows { launched: 2, list: None };

        let stream = card.stream();
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        let (attend, mut to) = (step.attend(&case, &q), out.as_view_mut());
        kernels.attend_decode(&rows, &step.rows(), &attend, &mut partials, &mut to).unwrap();
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream.end_capture(flags).unwrap().unwrap();

        graph.launch().unwrap();
        stream.memcpy_htod(&case.positions, &mut step.positions).unwrap();
        graph.launch().unwrap();
        case.compare(&out, &[0, 1]).unwrap();
    }
}

#[test]
fn spare_blocks_are_for_long_rows() {
    for support::TestCard { card, .. } in support::cards() {
        let kernels = AttentionKernels::new(&card, SHAPES[0]).unwrap();
        assert!(kernels.spare(None) >= 1);
        assert_eq!(kernels.spare(Some(128)), 0, "a window of 128 is one block's");
        assert_eq!(kernels.parts_max(64), 64 + kernels.spare(None));
    }
}

fn compile(card: &Card, shape: AttentionShape, edit: Edit<'_>) -> Result<AttentionKernels, String> {
    let (source, tiles) = (edit(shape.source()), edit(shape.tiles_source()));
    AttentionKernels::compiled(card, shape, &source, &tiles).map_err(|error| error.to_string())
}

/// Decode rows of sequences of every length that meets an edge, alone and together, in one part and in many.
pub fn check_decode(card: &Card, edit: Edit<'_>) -> Result<(), String> {
    let batches: [&[usize]; 6] =
        [&[0], &[700], &[1, 15], &[16, 31, 127], &[128, 129, 700, 0], &[129, 16, 700, 128, 31]];
    let mut seed = 0;
    for shape in SHAPES {
        let kernels = compile(card, shape, edit)?;
        for window in WINDOWS {
            for positions in batches {
                seed += 1;
                let sequences: Vec<_> = positions.iter().map(|at| *at..at + 1).collect();
                let case = Case::new(card, shape, window, &sequences, seed, Logits::Usual);
                let spare = [0, 1, 3, 40][seed as usize % 4];
                let name = || {
                    format!(
                        "{shape:?}, window {window:?}, at {positions:?}, {spare} spare blocks, seed {seed}"
                    )
                };
                case.decode(&kernels, Some(spare), seed % 2 == 0).map_err(|e| format!("{}: {e}", name()))?;
                if seed % 3 == 0 {
                    case.decode(&kernels, None, false).map_err(|e| format!("{}: {e}", name()))?;
                }
            }
        }
        if shape.head_dim == 16 {
            let case = Case::new(card, shape, None, &[131071..131072], 900, Logits::Usual);
            case.decode(&kernels, Some(40), false).map_err(|e| format!("the longest context: {e}"))?;
            // More rows than lanes, of every length; some rows past the 32nd are long.
            let many: Vec<_> = (0..40).map(|row| row * 97 % 41 * 30).map(|at| at..at + 1).collect();
            let case = Case::new(card, shape, None, &many, 901, Logits::Usual);
            for spare in [1, 7, 64] {
                case.decode(&kernels, Some(spare), spare == 7).map_err(|e| format!("40 rows: {e}"))?;
            }
        }
        for spare in [0, 4] {
            let case =
                Case::new(card, shape, None, &[700..701, 40..41], 1000 + spare as u64, Logits::Extreme);
            case.decode(&kernels, Some(spare), false).map_err(|e| format!("{shape:?}, extreme: {e}"))?;
        }
    }
    Ok(())
}

/// Chunks that begin anywhere, of one sequence and of several, shorter and longer than a tile.
pub fn check_tiles(card: &Card, edit: Edit<'_>) -> Result<(), String> {
    let batches: [&[Range<usize>]; 6] =
        [&[0..1], &[0..40], &[5..38], &[127..131, 0..17], &[300..333], &[0..130, 63..65, 640..660]];
    let mut seed = 0;
    for shape in SHAPES {
        let kernels = compile(card, shape, edit)?;
        for window in WINDOWS {
            for chunks in batches {
                seed += 1;
                let case = Case::new(card, shape, window, chunks, seed, Logits::Usual);
                let all = 0..chunks.len();
                let name = || format!("{shape:?}, window {window:?}, chunks {chunks:?}, seed {seed}");
                case.tiles(&kernels, all).map_err(|error| format!("{}: {error}", name()))?;
            }
        }
        let case = Case::new(card, shape, None, &[100..120], 2000, Logits::Extreme);
        case.tiles(&kernels, 0..1).map_err(|error| format!("{shape:?}, extreme: {error}"))?;
    }
    Ok(())
}

/// Prompts and single rows in one step, into one output.
pub fn check_mixture(card: &Card, edit: Edit<'_>) -> Result<(), String> {
    let sequences = [200..201, 0..30, 17..18, 90..150, 31..32];
    for (seed, window) in WINDOWS.into_iter().enumerate() {
        let shape = SHAPES[1];
        let kernels = compile(card, shape, edit)?;
        let case = Case::new(card, shape, window, &sequences, 3000 + seed as u64, Logits::Usual);
        // One row is nobody's: it has to stay as it is.
        let decode: Vec<u32> = vec![case.first_row(4), case.first_row(0)];
        let run = || {
            let mut out = case.poisoned_out();
            case.launch_listed(&kernels, 3, &decode, &mut out)?;
            case.launch_tiles(&kernels, &[1, 3], &mut out)?;
            Ok::<_, String>(out)
        };
        let out = run()?;
        assert!(
            card.download(&out).unwrap() == card.download(&run()?).unwrap(),
            "other bits the second time"
        );
        let mut rows: Vec<usize> = decode.iter().map(|row| *row as usize).collect();
        rows.extend(case.rows_of(1).chain(case.rows_of(3)));
        case.compare(&out, &rows).map_err(|error| format!("window {window:?}: {error}"))?;
    }
    Ok(())
}

/// q and k by f64; v by its bits; nothing else in the cache changes.
pub fn check_rotation(card: &Card, edit: Edit<'_>) -> Result<(), String> {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        let kernels = compile(card, shape, edit)?;
        for window in WINDOWS {
            let chunks = [0..3, 14..35, 700..701];
            let case = Case::new(card, shape, window, &chunks, seed as u64, Logits::Usual);
            let checked = Rotated::new(&case, seed as u64 + 50).check(&kernels);
            checked.map_err(|error| format!("{shape:?}, window {window:?}: {error}"))?;
        }
    }
    Ok(())
}
