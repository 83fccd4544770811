//! What a rank takes beside weights and KV cache: the activations of the largest step. An account of what
//! the backends allocate, so that a plan that fits is a group that starts; the engine's tests compare.

use crate::inventory::BackendKind;
use crate::plan::{Demand, RankShare};
use crate::spec::ModelSpec;

/// Logit rows for which there is room from the start, whatever is asked for; verification may ask for more, and waits for it.
pub const LOGIT_ROWS: usize = 64;

/// What products by cuBLASLt may work in on a card: NVIDIA's figure for the largest. Planned whether the library is
/// there or not.
pub const LIBRARY_BYTES: usize = 32 << 20;

/// Logit rows that a backend has room for from the start, in steps of `step_tokens_max` rows.
pub fn logit_rows(step_tokens_max: usize, logit_rows_max: usize) -> usize {
    logit_rows_max.max(LOGIT_ROWS).min(step_tokens_max)
}

/// More rows than a step ever has: more are planned as so many, which fit nowhere, and every product stays in `u64`.
const ROWS_MOST: usize = 1 << 32;
/// More than any device has. Sums of it over all ranks stay in `u64`.
const BYTES_MOST: usize = 1 << 50;

/// Bytes of a rank's activations.
pub fn activation_bytes(spec: &ModelSpec, share: &RankShare, demand: Demand) -> u64 {
    let t = demand.step_tokens_max.min(ROWS_MOST);
    let q_width = spec.q_heads_of(&share.kv_heads).len() * spec.head_dim;
    let kv_width = share.kv_heads.len() * spec.head_dim;
    let logits = logit_rows(t, demand.logit_rows_max) * (4 * share.vocab.len());
    let rows = |row: usize| t.saturating_mul(row).min(BYTES_MOST);
    let others = match share.backend {
        BackendKind::Cpu => rows(cpu_row(spec, share, q_width, kv_width)),
        BackendKind::Cuda => {
            rows(cuda_row(spec, share, q_width, kv_width))
                + attention_parts(share, q_width, spec.head_dim)
                + items(spec, share, t)
                + sampling(share)
                + LIBRARY_BYTES
                + 4 * (demand.kv_blocks.full as usize + demand.kv_blocks.window as usize)
        }
    };
    (others + logits).min(BYTES_MOST) as u64
}

/// Everything is f32; products have their input once more, as their kernels read it: at most as much again, whatever it is
/// rounded to; and attention has its sums before they are divided. Not counted, for the plan does not know the threads: what
/// each thread works in, 150 KiB, and after a prompt some 250 KB more for attention (50 MB for 128 threads); parts of
/// keys that are summed apart, which are for rows too few for the threads; and inputs of fewer than 16 rows, which take
/// the room of 16. The 0.9 of the free memory that a worker offers if it is told nothing leave room for these; who tells it
/// `--memory-bytes` below the hard limit of a cgroup must leave it too.
fn cpu_row(spec: &ModelSpec, share: &RankShare, q_width: usize, kv_width: usize) -> usize {
    let (hidden, intermediate) = (spec.hidden, share.experts.intermediate());
    let stream = 3 * hidden;
    let attention = 2 * (q_width + kv_width) + part_bytes(q_width, spec.head_dim) / 4;
    // h as experts read it, and what of it each of the row's experts makes.
    let experts = spec.experts + hidden + spec.experts_per_token * intermediate;
    let arranged = hidden + q_width;
    // Two numbers a row, a route twice with its row and its place.
    4 * (stream + attention + experts + arranged + 2) + 32 * spec.experts_per_token
}

/// Of the engine's `CudaBackend`, in its order: the residual stream, attention, routing, experts, a row's
/// words.
fn cuda_row(spec: &ModelSpec, share: &RankShare, q_width: usize, kv_width: usize) -> usize {
    let (hidden, per_token) = (spec.hidden, spec.experts_per_token);
    // x, y and the router's h in f32, h once in 16 bits.
    let stream = (4 + 4 + 4 + 2) * hidden;
    // q, k, v as projected in f32; q rotated, what attention gives, and parts of it that were computed apart.
    let attention = 4 * (q_width + 2 * kv_width) + (2 + 2) * q_width + part_bytes(q_width, spec.head_dim);
    // Logits, h as experts read it; weight and sorted route of each choice, and the choices of every layer.
    let routing = 4 * spec.experts + 2 * hidden + (4 + 4 + 2 * spec.layer_count()) * per_token;
    let experts = match share.experts.intermediate() {
        0 => 0,
        intermediate => per_token * (2 * intermediate + 4 * hidden),
    };
    // Token, position, two tables, logit row, decode row; a tile; cos and sin.
    let words = 4 * (6 + 4 + spec.head_dim);
    stream + attention + routing + experts + words
}

/// A row's attention over a part of its keys: f32 sums of every head, a maximum and a total.
fn part_bytes(q_width: usize, head_dim: usize) -> usize {
    4 * (q_width + 2 * (q_width / head_dim))
}

/// Parts beyond one a row, which fill the card while rows are few. The plan does not know how many
/// multiprocessors there are; this is for the largest.
fn attention_parts(share: &RankShare, q_width: usize, head_dim: usize) -> usize {
    const BLOCKS_MAX: usize = 2 * 192;
    const PARTS_MAX: usize = 128;
    match share.kv_heads.len() {
        0 => 0,
        kv_heads => BLOCKS_MAX.div_ceil(kv_heads).min(PARTS_MAX) * part_bytes(q_width, head_dim),
    }
}

/// Items of work of the experts: at least one of each expert that has rows, 64 rows in one at most.
fn items(spec: &ModelSpec, share: &RankShare, t: usize) -> usize {
    let routes = t * spec.experts_per_token;
    let own = if share.experts.is_empty() { spec.experts } else { share.experts.experts.len() };
    4 * 4 * (routes.min(own) + routes / 64)
}

/// What is sampled by, what comes of it, and the best of each 2048 tokens; of rows that are cut the same, and 512 of their
/// likeliest tokens or the sums of each 8192.
fn sampling(share: &RankShare) -> usize {
    let vocab = share.vocab.len();
    let cut = 4 * 5 + (8 + 8 * 512).max(8 * vocab.div_ceil(8192));
    LOGIT_ROWS * (4 * 5 + 8 + 8 * vocab.div_ceil(2048) + if vocab > 0 { cut } else { 0 })
}
