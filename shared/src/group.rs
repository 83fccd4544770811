//! What a worker is told when it becomes a member of a group, and how it answers until it can step.

use crate::ids::{Epoch, Rank, TokenId};
use crate::plan::Plan;
use crate::spec::ModelSpec;
use std::ops::Range;

/// A worker's part in one epoch of a group: everything that it needs to load and to step.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    pub epoch: Epoch,
    pub rank: Rank,
    pub spec: ModelSpec,
    pub plan: Plan,
    pub weights: WeightOrigin,
    /// KV blocks that every rank holds for its heads.
    pub kv_blocks: u32,
    /// Rows of one step at most.
    pub step_tokens_max: u32,
    /// Ids that may be sampled: those that have a piece of text. In rising order.
    pub sampleable: Vec<Range<TokenId>>,
    /// Where the collective of each rank listens, `host:port`, in rank order.
    pub peers: Vec<String>,
    /// Known to the members of this epoch only.
    pub group_key: [u8; 32],
}

/// Where a worker's slices come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightOrigin {
    /// The coordinator streams them.
    Stream,
    /// Each worker makes its own from the seed.
    Synthetic { seed: u64 },
}

/// Progress of a worker's loading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loading {
    pub bytes_done: u64,
    pub bytes_total: u64,
}
