//! What a rank takes beside weights and KV cache: the activations of the largest step. An account of what
//! the backends allocate, so that a plan that fits is a group that starts; the engine's tests compare.

use crate::inventory::BackendKind;
use crate::plan::{Demand, RankShare};
use crate::spec::ModelSpec;

/// Logit rows for which a card has room from the start; verification may ask for more.
pub const LOGIT_ROWS: usize = 64;

/// Bytes of a rank's activations.
pub fn activation_bytes(spec: &ModelSpec, share: &RankShare, demand: Demand) -> u64 {
    let t = demand.step_tokens_max;
    let q_width = spec.q_heads_of(&share.kv_heads).len() * spec.head_dim;
    let kv_width = share.kv_heads.len() * spec.head_dim;
    let logits = 4 * t.min(LOGIT_ROWS) * share.vocab.len();
    let per_row = match share.backend {
        BackendKind::Cpu => cpu_row(spec, share, q_width, kv_width),
        BackendKind::Cuda => cuda_row(spec, share, q_width, kv_width),
    };
    (t * per_row + logits) as u64
}

/// Everything is f32; products have their input once more, as their kernels read it.
fn cpu_row(spec: &ModelSpec, share: &RankShare, q_width: usize, kv_width: usize) -> usize {
    let (hidden, intermediate) = (spec.hidden, share.experts.intermediate());
    let stream = 3 * hidden;
    let attention = 2 * (q_width + kv_width);
    let experts = spec.experts + 2 * hidden + 3 * intermediate;
    let arranged = hidden.max(q_width).max(intermediate) + hidden.max(intermediate);
    4 * (stream + attention + experts + arranged) + 24 * spec.experts_per_token
}

/// x, y, h three times; q, k, v before and after rotation; and the rows of every chosen expert.
fn cuda_row(spec: &ModelSpec, share: &RankShare, q_width: usize, kv_width: usize) -> usize {
    let (hidden, intermediate) = (spec.hidden, share.experts.intermediate());
    let stream = 4 * (hidden + hidden) + (2 + 4 + 2) * hidden;
    let attention = 4 * (q_width + 2 * kv_width) + 2 * q_width + 2 * q_width;
    let experts = 4 * spec.experts + spec.experts_per_token * (2 * intermediate + 4 * hidden + 10);
    stream + attention + experts
}
