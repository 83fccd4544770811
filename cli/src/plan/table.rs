//! The plan in words: who holds what, in bytes.

use flotilla_shared::plan::Placement;
use flotilla_shared::units::Bytes;
use flotilla_shared::{Demand, ModelSpec, Plan, RankShare};
use std::ops::Range;

/// Above [`parts`].
pub const PARTS: &str = "kv heads    blocks      vocabulary  attention    experts embeddings replicated    weights   \
                         KV cache activations";

/// A rank's units and bytes.
pub fn parts(spec: &ModelSpec, plan: &Plan, share: &RankShare, demand: Demand) -> String {
    let bytes = plan.bytes(spec, share.rank);
    let experts = match placement(spec, share) {
        Placement::Slices => range(&share.experts.blocks),
        Placement::Whole => range(&share.experts.experts),
    };
    // The stages between the first and the last have none of the vocabulary.
    let embeddings = bytes.embedding + bytes.unembedding;
    let vocab = if embeddings == 0 { "none".into() } else { range(&share.vocab) };
    format!(
        "{:>8} {:>9} {:>15} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>11}",
        range(&share.kv_heads),
        experts,
        vocab,
        Bytes(bytes.attention),
        Bytes(bytes.experts),
        Bytes(embeddings),
        Bytes(bytes.replicated),
        Bytes(bytes.weights()),
        Bytes(bytes.kv(demand.kv_blocks)),
        Bytes(plan.activation_bytes(spec, share.rank, demand)),
    )
}

pub fn placement(spec: &ModelSpec, share: &RankShare) -> Placement {
    if share.experts.experts == (0..spec.experts) { Placement::Slices } else { Placement::Whole }
}

pub fn range(range: &Range<usize>) -> String {
    format!("{}..{}", range.start, range.end)
}
