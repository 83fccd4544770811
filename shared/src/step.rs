//! One step, as the coordinator orders it and as the workers answer. The coordinator decides, workers
//! obey: tokens, positions, block tables and sampling come with the step, as a difference to what the
//! workers already hold.

use crate::ids::{BlockId, Epoch, SequenceId, StepId, TokenId};
use crate::sampling::Sampling;
use serde::{Deserialize, Serialize};

/// Positions in one KV block.
pub const BLOCK_TOKENS: usize = 16;

/// What every rank of the group does next. Order: release, then admit, then work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepPlan {
    pub epoch: Epoch,
    /// Follows the last one by one; any other is refused.
    pub step: StepId,
    /// Sequences to forget. Their blocks are the coordinator's to give again.
    pub release: Vec<SequenceId>,
    pub admit: Vec<Admission>,
    /// At most one entry a sequence.
    pub work: Vec<SequenceWork>,
}

/// A sequence that the workers have not seen yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Admission {
    pub sequence: SequenceId,
    pub sampling: Sampling,
}

/// The rows of one sequence in a step: a chunk of its prompt, or its last token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SequenceWork {
    pub sequence: SequenceId,
    /// Position of the first of `tokens`; every position before it is in the cache.
    pub position: u32,
    pub tokens: Vec<TokenId>,
    /// Blocks appended to the sequence's table, enough for the last of `tokens`.
    pub blocks: Vec<BlockId>,
    /// Choose a token after the last row.
    pub sample: bool,
    /// Report logits and routing of every row: for verification, never for serving.
    pub capture: bool,
}

impl StepPlan {
    pub fn token_count(&self) -> usize {
        self.work.iter().map(|work| work.tokens.len()).sum()
    }
}

/// What a rank answers. `sampled` is the same on every rank; `captured` is the rank's own part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepOutcome {
    pub epoch: Epoch,
    pub step: StepId,
    /// One for each work with `sample`, in the order of the plan.
    pub sampled: Vec<Sampled>,
    /// One for each row of each work with `capture`, in the order of the plan.
    pub captured: Vec<CapturedRow>,
    /// Time in the engine.
    pub compute_us: u64,
}

/// A token chosen for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampled {
    pub sequence: SequenceId,
    pub token: TokenId,
}

/// What verification asks of a row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CapturedRow {
    pub sequence: SequenceId,
    pub position: u32,
    /// f32 [V/R]: this rank's part of the vocabulary.
    pub logits: Vec<f32>,
    /// [L, K]: chosen experts, in falling order of their logit.
    pub experts: Vec<u16>,
}
