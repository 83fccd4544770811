//! What a worker is told when it becomes a member of a group, and how it answers until it can step.

use crate::held::Held;
use crate::ids::{Epoch, Rank, TokenId};
use crate::links::Links;
use crate::plan::Plan;
use crate::spec::{LayerKind, ModelSpec};
use crate::step::BLOCK_TOKENS;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// A worker's part in one epoch of a group: everything that it needs to load and to step.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    pub epoch: Epoch,
    pub rank: Rank,
    pub spec: ModelSpec,
    pub plan: Plan,
    pub weights: WeightOrigin,
    /// Which weights these are.
    pub weights_id: WeightsId,
    /// KV blocks that every rank holds for its heads.
    pub kv_blocks: KvBlocks,
    /// Rows of one step at most.
    pub step_tokens_max: u32,
    /// Rows of one step at most of which there are logits; a backend has room for [`LOGIT_ROWS`] at least.
    ///
    /// [`LOGIT_ROWS`]: crate::activations::LOGIT_ROWS
    pub logit_rows_max: u32,
    /// Ids that may be sampled: those that have a piece of text. In rising order.
    pub sampleable: Vec<Range<TokenId>>,
    /// Where the collective of each rank listens, `host:port`, in rank order.
    pub peers: Vec<String>,
    /// How each pair of ranks is linked.
    pub links: Links,
    /// Known to the members of this epoch only.
    pub group_key: [u8; 32],
    /// Workers that have parts of these weights, or are loading them; those to be asked first, first. Of ranks of this group
    /// it is what they held before.
    pub holders: Vec<Holder>,
    /// Other ranks ask for what this one held before: it keeps that until all have met.
    pub lends: bool,
}

/// Workers that an assignment names at most.
pub const HOLDERS_MAX: usize = 8;

/// A worker that hands on what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Holder {
    /// Where it listens for those who fetch, `host:port`.
    pub address: String,
    /// Who asks it shows that the coordinator sent him.
    pub key: [u8; 32],
    pub held: Held,
}

/// Blocks of [`crate::step::BLOCK_TOKENS`] positions in the two pools of a KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvBlocks {
    /// Each holds its positions in every full layer.
    pub full: u32,
    /// Each holds its positions in every window layer.
    pub window: u32,
}

impl KvBlocks {
    /// As many in both pools: window layers keep what full layers keep.
    pub fn plain(count: u32) -> KvBlocks {
        KvBlocks { full: count, window: count }
    }

    /// Blocks of the pool that layers of `kind` have.
    pub fn of(self, kind: LayerKind) -> u32 {
        match kind {
            LayerKind::Full => self.full,
            LayerKind::Window => self.window,
        }
    }

    /// For `kv_tokens` tokens of cache: full layers hold them all. Window layers hold the window of each
    /// sequence, with the block that it ends in and the one that begins, the rows of one step, and one part
    /// in 32 of the tokens for windows that later prompts may begin with; all, where that is less.
    pub fn for_tokens(kv_tokens: usize, window: usize, sequences_max: usize, step_tokens_max: usize) -> Self {
        let full = kv_tokens.div_ceil(BLOCK_TOKENS);
        let of_sequences = sequences_max.saturating_mul(window.div_ceil(BLOCK_TOKENS) + 2);
        let of_step = step_tokens_max.div_ceil(BLOCK_TOKENS) + full / 32;
        let window = of_sequences.saturating_add(of_step).min(full);
        // More than there can be fits nowhere, and that is what is then said.
        let count = |blocks: usize| u32::try_from(blocks).unwrap_or(u32::MAX);
        KvBlocks { full: count(full), window: count(window) }
    }
}

/// Where a worker's slices come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightOrigin {
    /// The coordinator streams them.
    Stream,
    /// Each worker makes its own from the seed.
    Synthetic { seed: u64 },
}

/// Which weights: equal where all bytes are, on any host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WeightsId(pub [u8; 32]);

/// The first 8 bytes in hexadecimal: enough to tell apart what one host meets.
impl fmt::Display for WeightsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for WeightsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeightsId({self})")
    }
}

/// Progress of a worker's loading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loading {
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Where what is done came from; of synthetic weights nothing is said.
    pub by_place: ByPlace,
}

/// Where a worker has a part of its weights from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A group before left it here.
    Kept,
    /// The worker's disk.
    Cache,
    /// Another worker.
    Peer,
    Coordinator,
}

impl Place {
    pub const ALL: [Place; 4] = [Place::Kept, Place::Cache, Place::Peer, Place::Coordinator];

    pub fn as_str(self) -> &'static str {
        match self {
            Place::Kept => "kept",
            Place::Cache => "cache",
            Place::Peer => "peer",
            Place::Coordinator => "coordinator",
        }
    }
}

/// Bytes by the place that they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByPlace([u64; 4]);

impl ByPlace {
    pub fn of(self, place: Place) -> u64 {
        self.0[place as usize]
    }

    pub fn add(&mut self, place: Place, bytes: u64) {
        let all = &mut self.0[place as usize];
        *all = all.saturating_add(bytes);
    }
}
