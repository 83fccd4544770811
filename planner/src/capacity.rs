//! How many tokens of KV cache a plan has room for.

use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{Demand, KvBlocks, ModelSpec, Plan};

/// More than any pool can number.
const BLOCKS_MAX: usize = 1 << 30;

/// Tokens of cache that fit into `memory_bytes` of every rank, beside weights and activations, with the windows of so many
/// sequences: whole blocks.
pub fn kv_tokens_max(
    spec: &ModelSpec,
    plan: &Plan,
    memory_bytes: &[u64],
    sequences: usize,
    step_tokens_max: usize,
) -> usize {
    let fits = |blocks: usize| {
        let kv_blocks = KvBlocks::for_tokens(blocks * BLOCK_TOKENS, spec.window, sequences, step_tokens_max);
        let demand = Demand { kv_blocks, step_tokens_max, logit_rows_max: sequences };
        let mut ranks = plan.ranks().zip(memory_bytes);
        ranks.all(|(share, &memory)| plan.total_bytes(spec, share.rank, demand) <= memory)
    };
    let (mut most, mut too_many) = (0, BLOCKS_MAX);
    while too_many - most > 1 {
        let middle = most + (too_many - most) / 2;
        if fits(middle) { most = middle } else { too_many = middle }
    }
    most * BLOCK_TOKENS
}
