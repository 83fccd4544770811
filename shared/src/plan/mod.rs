//! How a model is cut over devices: made by one pure function, the only place where sizes are divided.
//!
//! A stage is a contiguous range of layers (pipeline parallel);
//! within it every rank has a range of kv heads with their query heads, a rectangle of experts ×
//! intermediate blocks, and a range of the vocabulary (tensor parallel). Shares are uneven on purpose,
//! nothing is padded, and a rank may own none of a kind.

mod bytes;
mod check;
mod cut;
mod fitting;

pub use bytes::RankBytes;
pub use cut::{Placement, StageCut, apportion};

use crate::group::KvBlocks;
use crate::ids::Rank;
use crate::inventory::{BackendKind, KvDtype};
use crate::spec::MXFP4_BLOCK;
use crate::units::Bytes;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use thiserror::Error;

/// Ranks of one tensor-parallel group at most.
pub const RANKS_MAX: usize = 64;

/// Who holds what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub stages: Vec<Stage>,
}

/// A contiguous range of layers and the ranks that share each of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    pub layers: Range<usize>,
    pub ranks: Vec<RankShare>,
}

/// What one rank owns of every layer of its stage, and of the vocabulary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankShare {
    pub rank: Rank,
    pub backend: BackendKind,
    pub kv: KvDtype,
    /// Heads of the kv cache, each with its group of query heads.
    pub kv_heads: Range<usize>,
    pub experts: ExpertShare,
    /// Rows of the embedding and the unembedding.
    pub vocab: Range<usize>,
}

/// A rectangle of the experts: a slice of every expert (the default), or some experts whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertShare {
    pub experts: Range<usize>,
    /// MXFP4 blocks of 32 along the intermediate dimension.
    pub blocks: Range<usize>,
}

impl ExpertShare {
    pub fn is_empty(&self) -> bool {
        self.experts.is_empty() || self.blocks.is_empty()
    }

    /// Intermediate elements of each owned expert.
    pub fn intermediate(&self) -> usize {
        if self.is_empty() { 0 } else { self.blocks.len() * MXFP4_BLOCK }
    }

    /// Exactly one rank adds the down bias of an expert: the one that owns its first block.
    pub fn adds_down_bias(&self) -> bool {
        !self.is_empty() && self.blocks.start == 0
    }
}

impl RankShare {
    /// Exactly one rank adds the output bias of attention: the one that owns the first head.
    pub fn adds_output_bias(&self) -> bool {
        !self.kv_heads.is_empty() && self.kv_heads.start == 0
    }
}

/// What a rank must have room for beside its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    /// Blocks of KV cache, over all sequences.
    pub kv_blocks: KvBlocks,
    /// Rows of one step at most.
    pub step_tokens_max: usize,
    /// Rows of one step at most of which there are logits: of each sequence one, and one more for each guess at its tokens.
    pub logit_rows_max: usize,
}

/// Why a model cannot be cut over the devices at hand.
#[derive(Debug, Error, PartialEq)]
pub enum PlanError {
    #[error("a plan needs 1 to {RANKS_MAX} ranks, {0} were given")]
    Ranks(usize),
    #[error(
        "the model does not fit: it needs {} over {ranks} {} (weights {}, KV cache of {kv_tokens} tokens {}, activations {}), \
         the devices offer {}, {}\nhint: raise --workers, give workers more --memory-bytes, or lower {}",
        Bytes(weights + kv + activations), if *ranks == 1 { "rank" } else { "ranks" }, Bytes(*weights), Bytes(*kv), Bytes(*activations), Bytes(*offered),
        missing(weights + kv + activations, *offered), if activations > kv { "--step-tokens" } else { "--kv-tokens" }
    )]
    TooLarge { ranks: usize, weights: u64, kv: u64, kv_tokens: usize, activations: u64, offered: u64 },
    #[error(
        "{cpu} computes on its processor and {cuda} on a card: they cannot be ranks of one group\n\
         hint: start all workers with --device cuda:N, or none"
    )]
    Mixed { cpu: String, cuda: String },
    #[error(
        "rank {rank} ({device}) has {} and even its smallest share needs {}\nhint: leave this device out",
        Bytes(*offered), Bytes(*needed)
    )]
    DeviceTooSmall { rank: Rank, device: String, offered: u64, needed: u64 },
    #[error("{a} and {b} do not reach each other, so one of them is left out, and then {fit}")]
    Apart { a: String, b: String, fit: Box<PlanError> },
}

impl PlanError {
    /// Whether nothing but the weights would be too large as well.
    pub fn is_of_weights(&self) -> bool {
        matches!(self, PlanError::TooLarge { weights, offered, .. } if weights > offered)
    }

    /// Whether there is enough together, but not where it would be needed.
    pub(crate) fn is_of_cuts(&self) -> bool {
        match self {
            PlanError::TooLarge { weights, kv, activations, offered, .. } => {
                weights + kv + activations <= *offered
            }
            _ => false,
        }
    }

    /// Whether beside the weights it is a step's rows that take most, rather than the cache.
    pub fn is_of_activations(&self) -> bool {
        matches!(self, PlanError::TooLarge { kv, activations, .. } if activations > kv)
    }
}

fn missing(needed: u64, offered: u64) -> String {
    match needed.checked_sub(offered) {
        Some(bytes) if bytes > 0 => format!("{} are missing", Bytes(bytes)),
        _ => "enough together, but not in whole heads, blocks and layers".into(),
    }
}

impl Plan {
    pub fn ranks(&self) -> impl Iterator<Item = &RankShare> {
        self.stages.iter().flat_map(|stage| &stage.ranks)
    }

    pub fn rank_count(&self) -> usize {
        self.ranks().count()
    }

    /// Ranks of each stage.
    pub fn stage_sizes(&self) -> Vec<usize> {
        self.stages.iter().map(|stage| stage.ranks.len()).collect()
    }

    /// The stage and the share of a rank.
    ///
    /// # Panics
    /// If the plan has no such rank.
    pub fn share(&self, rank: Rank) -> (&Stage, &RankShare) {
        let found = self.stages.iter().find_map(|stage| {
            let share = stage.ranks.iter().find(|share| share.rank == rank)?;
            Some((stage, share))
        });
        found.unwrap_or_else(|| panic!("the plan has no rank {rank}"))
    }
}
