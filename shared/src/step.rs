//! One step, as the coordinator orders it and as the workers answer. The coordinator decides, workers
//! obey: tokens, positions, block tables and sampling come with the step, as a difference to what the
//! workers already hold.

use crate::ids::{BlockId, Epoch, SequenceId, StepId, TokenId};
use crate::sampling::Sampling;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Positions in one KV block.
pub const BLOCK_TOKENS: usize = 16;

/// Steps that workers may be sent before they have answered the first of them, where there is one stage.
pub const STEPS_AHEAD_MAX: usize = 4;

/// The same where the model is cut into `stages`: one step more runs in each stage after the first.
pub const fn steps_ahead_max(stages: usize) -> usize {
    STEPS_AHEAD_MAX + stages.saturating_sub(1)
}

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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Admission {
    pub sequence: SequenceId,
    pub sampling: Sampling,
    /// Positions that are in the cache already, in blocks that the first work brings: whole blocks.
    pub cached: u32,
    /// What penalties count, where the sampling has any: the prompt, and what was generated so far.
    pub context: Vec<TokenId>,
    /// So many of `context`, its last, were generated.
    pub generated: u32,
}

/// The rows of one sequence in a step: a chunk of its prompt, or its last token and guesses at the next.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SequenceWork {
    pub sequence: SequenceId,
    /// Position of the first of `tokens`; every position before it is in the cache.
    pub position: u32,
    pub tokens: Vec<TokenId>,
    /// The first of `tokens` stands for the token that was sampled last for this sequence: the workers
    /// know it, the coordinator did not yet.
    pub ahead: bool,
    /// Blocks appended to the sequence's table of full layers, enough for the last of `tokens`.
    pub blocks: Vec<BlockId>,
    /// Blocks appended to its table of window layers, likewise.
    pub window_blocks: Vec<BlockId>,
    /// Entries of the window table, from position 0 on, that are no more: no row from `position` on sees
    /// them. The first work of a sequence brings only those that are still seen.
    pub window_gone: u32,
    /// Choose a token after the last row; with `drafts`, after each row from the last token that is known.
    pub sample: bool,
    /// So many of `tokens`, the last, are guesses. The workers keep those that they would have chosen, up
    /// to the first that differs; with `sample` only.
    pub drafts: u32,
    /// Which tokens may be sampled after the last row; all, if absent. Never with `drafts`.
    pub mask: Option<TokenMask>,
    /// Report logits and routing of every row: for verification, never for serving.
    pub capture: bool,
}

/// A set of tokens: bit `t % 32` of word `t / 32` is token `t`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<u32>", into = "Vec<u32>")]
pub struct TokenMask(Arc<[u32]>);

impl TokenMask {
    pub fn allows(&self, token: TokenId) -> bool {
        self.0.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    pub fn words(&self) -> &[u32] {
        &self.0
    }
}

impl From<Vec<u32>> for TokenMask {
    fn from(words: Vec<u32>) -> TokenMask {
        TokenMask(words.into())
    }
}

impl From<TokenMask> for Vec<u32> {
    fn from(mask: TokenMask) -> Vec<u32> {
        mask.0.to_vec()
    }
}

impl FromIterator<TokenId> for TokenMask {
    fn from_iter<I: IntoIterator<Item = TokenId>>(tokens: I) -> TokenMask {
        let mut words = Vec::new();
        for token in tokens {
            let word = token as usize / 32;
            if words.len() <= word {
                words.resize(word + 1, 0);
            }
            words[word] |= 1 << (token % 32);
        }
        words.into()
    }
}

impl StepPlan {
    pub fn token_count(&self) -> usize {
        self.work.iter().map(|work| work.tokens.len()).sum()
    }
}

/// What a rank answers. `sampled` is the same on every rank of the last stage, and empty on others; `captured` is the
/// rank's own part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepOutcome {
    pub epoch: Epoch,
    pub step: StepId,
    /// For each work with `sample`, in the order of the plan: one, and with drafts one more for each draft
    /// that was right, in the order of their positions.
    pub sampled: Vec<Sampled>,
    /// One for each row of each work with `capture`, in the order of the plan.
    pub captured: Vec<CapturedRow>,
    /// Time in the engine, of which [`StepTimes`] are parts.
    pub compute_us: u64,
    pub times: StepTimes,
    /// What is taken of the memory that the rank computes in: a card's by whomever, or the machine's by the rank's process.
    /// Told now and then.
    pub memory_bytes: Option<u64>,
}

/// What is known of a rank's time in the engine. Absent is not measured: a card's sums are part of what it is given as a
/// whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTimes {
    /// In exchanges with other ranks, waiting for them included.
    pub collective_us: Option<u64>,
    /// How many they were.
    pub exchanges: u32,
    /// Choosing tokens, without exchanges.
    pub sample_us: Option<u64>,
}

/// A token chosen for a sequence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    pub sequence: SequenceId,
    pub token: TokenId,
    /// Where the sampling asks for it.
    pub logprobs: Option<Logprobs>,
}

/// How likely the model found a token that was chosen, and the likeliest tokens in its place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Logprobs {
    /// Natural logarithm of the probability; −∞ for a token of probability 0.
    pub chosen: f32,
    /// Falling, the lower id first among equals.
    pub top: Vec<(TokenId, f32)>,
}

/// What verification asks of a row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CapturedRow {
    pub sequence: SequenceId,
    pub position: u32,
    /// f32 [V/R]: this rank's part of the vocabulary; empty but on the last stage.
    pub logits: Vec<f32>,
    /// [L, K]: chosen experts of the stage's layers, in falling order of their logit.
    pub experts: Vec<u16>,
}
