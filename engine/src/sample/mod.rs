//! Choosing tokens on shards: every rank looks at its own part of the vocabulary, a few bytes a row are
//! gathered, and all ranks know the same token. Exact for every number of ranks: what decides does not depend
//! on where the vocabulary is cut. When and for whom tokens are chosen is not known here.

mod best;
mod candidates;
mod cut;
mod gathered;
mod logits;
mod logprobs;
mod nucleus;
mod replicated;
mod rooms;
mod sampler;
mod search;
mod span;
mod weights;

pub use best::best_of;
pub use candidates::Head;
pub use logits::History;
pub use sampler::Sampler;
pub use weights::Weigher;

use crate::backend::BackendError;
use crate::collective::CollectiveError;
use flotilla_shared::step::{Logprobs, TokenMask};
use flotilla_shared::{Sampling, TokenId};
use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

/// One row to choose a token for. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SampleRow {
    pub sampling: Arc<Sampling>,
    /// Position of the token that is chosen: with the seed, the key of its noise.
    pub position: u32,
    /// Which of the batch's logit rows.
    pub logit_row: usize,
    /// All tokens may be chosen, if absent.
    pub mask: Option<TokenMask>,
    /// What penalties count; nothing, if absent.
    pub history: Option<Arc<History>>,
}

impl SampleRow {
    /// A row without mask and history.
    pub fn new(sampling: impl Into<Arc<Sampling>>, position: u32, logit_row: usize) -> Self {
        SampleRow { sampling: sampling.into(), position, logit_row, mask: None, history: None }
    }

    /// Whether it is looked at as the model leaves it: a card does that by itself.
    fn is_plain(&self) -> bool {
        !self.is_cut() && !self.is_adjusted()
    }

    /// Whether its logits are not those of the model.
    fn is_adjusted(&self) -> bool {
        self.mask.is_some() || !self.sampling.logit_bias.is_empty() || self.history.is_some()
    }

    /// Whether not every token may be drawn.
    fn is_cut(&self) -> bool {
        let Sampling { top_p, top_k, min_p, .. } = *self.sampling;
        !self.sampling.is_greedy() && (top_p < 1.0 || top_k > 0 || min_p > 0.0)
    }
}

/// What was chosen for a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    pub token: TokenId,
    /// Where the sampling asks for it.
    pub logprobs: Option<Logprobs>,
}

/// The best token of a rank's part and its score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub score: f32,
    pub token: TokenId,
}

impl Candidate {
    /// Loses to every real candidate: what a rank without vocabulary sends.
    pub const NONE: Candidate = Candidate { score: f32::NEG_INFINITY, token: TokenId::MAX };

    /// Higher score first, then the lower id; a NaN never wins.
    fn beats(self, other: Candidate) -> bool {
        match self.score.partial_cmp(&other.score) {
            Some(Ordering::Greater) => true,
            Some(Ordering::Equal) => self.token < other.token,
            _ => false,
        }
    }

    fn meet(&mut self, other: Candidate) {
        if other.beats(*self) {
            *self = other;
        }
    }
}

/// A rank's part of the vocabulary and what may be chosen of it.
#[derive(Clone, Debug)]
pub struct Sampleable {
    pub vocab: Range<usize>,
    /// Ids of that part that may be chosen, rising.
    pub ids: Vec<Range<usize>>,
}

impl Sampleable {
    /// `sampleable`: the ids that may be chosen, of the whole vocabulary, rising.
    pub fn new(vocab: Range<usize>, sampleable: &[Range<TokenId>]) -> Self {
        let own = |ids: &Range<TokenId>| vocab.start.max(ids.start as usize)..vocab.end.min(ids.end as usize);
        let ids = sampleable.iter().map(own).filter(|ids| !ids.is_empty()).collect();
        Sampleable { vocab, ids }
    }

    /// Each range of ids, with its part of `logits`, f32 [V/R].
    fn parts<'a>(&'a self, logits: &'a [f32]) -> impl Iterator<Item = (TokenId, &'a [f32])> {
        let part = |ids: &Range<usize>| &logits[ids.start - self.vocab.start..ids.end - self.vocab.start];
        self.ids.iter().map(move |ids| (ids.start as TokenId, part(ids)))
    }

    /// Σ weights of what may be chosen and is at least `floor`; `logits`: f32 [V/R].
    pub fn weigh(&self, logits: &[f32], weigher: &Weigher, floor: f32) -> u128 {
        self.parts(logits).map(|(_, logits)| weigher.sum(logits, floor)).sum()
    }

    /// (token, logit) of what may be chosen; `logits`: f32 [V/R].
    fn tokens<'a>(&'a self, logits: &'a [f32]) -> impl Iterator<Item = (TokenId, f32)> {
        self.parts(logits).flat_map(|(first, logits)| (first..).zip(logits.iter().copied()))
    }
}

/// Where a rank's logits of the last batch are.
pub trait Shard {
    /// f32 [V/R]: the logits of the `row`-th logit row, in the host's memory.
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError>;

    /// What `work` finds in the logits of each of some logit rows, which it is given with their place among `rows`:
    /// in that order, on as many threads as the rank has.
    fn each<T: Send>(
        &mut self,
        rows: &[usize],
        work: impl Fn(usize, &[f32]) -> T + Sync,
    ) -> Result<Vec<T>, BackendError> {
        rows.iter().enumerate().map(|(at, row)| Ok(work(at, self.logits(*row)?))).collect()
    }

    /// Begins to look for the [`best`](Shard::best) of rows, where that goes on by itself. What goes wrong is said there.
    fn begin_best(&mut self, _rows: &[SampleRow]) {}

    /// The best candidate of each row among the rank's tokens that may be sampled, by the logits as they are:
    /// mask, bias, penalties, and what cuts a row's tokens are not looked at.
    fn best(&mut self, rows: &[SampleRow], sampleable: &Sampleable) -> Result<Vec<Candidate>, BackendError> {
        let logit_rows: Vec<usize> = rows.iter().map(|row| row.logit_row).collect();
        self.each(&logit_rows, |at, logits| best_of(&rows[at], logits, sampleable))
    }

    /// The likeliest of the rank's tokens that may be sampled, by the logits as they are: of each of some logit rows at most as
    /// many as it says, but one at least.
    fn heads(&mut self, rows: &[(usize, usize)], sampleable: &Sampleable) -> Result<Vec<Head>, BackendError> {
        let logit_rows: Vec<usize> = rows.iter().map(|(row, _)| *row).collect();
        self.each(&logit_rows, |at, logits| Head::of(logits, sampleable, rows[at].1))
    }

    /// What these tokens weigh together: of each of some logit rows those that are at least as much as it says.
    fn weights(
        &mut self,
        rows: &[(usize, Weigher, f32)],
        sampleable: &Sampleable,
    ) -> Result<Vec<u128>, BackendError> {
        let logit_rows: Vec<usize> = rows.iter().map(|(row, ..)| *row).collect();
        self.each(&logit_rows, |at, logits| {
            let (_, weigher, floor) = rows[at];
            sampleable.weigh(logits, &weigher, floor)
        })
    }
}

/// Why no token could be chosen.
#[derive(Debug, Error)]
pub enum SampleError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error(
        "rank {rank} sent a choice of tokens that cannot be read\n\
         hint: the ranks do not run the same version"
    )]
    Unreadable { rank: usize },
}
