//! A row of which not every token may be drawn: what all ranks know of it, and what they must still ask each
//! other before they know the tokens that may be. Every rank decides alike, from the same bytes. The likeliest
//! tokens are the first that are asked for, and nearly always they are enough.

use super::best::best_among;
use super::candidates::{Head, Known};
use super::weights::Weigher;
use super::{Candidate, SampleRow, nucleus};

/// So many of the likeliest tokens of each rank are looked at first, and then
const HEAD_TOKENS: usize = 256;
/// so many times as many, each time that they were not enough.
const WIDER: usize = 16;

#[derive(Debug)]
pub(super) struct Cut<'a> {
    pub row: &'a SampleRow,
    /// Which of the step's rows it is.
    pub index: usize,
    /// Of each rank's likeliest tokens, so many are asked for next.
    pub head_tokens: usize,
    known: Known,
    ranks: usize,
    /// Σ weights of all tokens that min-p keeps, where it had to be asked for.
    total: Option<u128>,
}

impl<'a> Cut<'a> {
    pub fn new(index: usize, row: &'a SampleRow) -> Self {
        // No more than k of one rank are among the k of all.
        let head_tokens = if row.sampling.top_k > 0 { row.sampling.top_k as usize } else { HEAD_TOKENS };
        Cut { row, index, head_tokens, known: Known::default(), ranks: 1, total: None }
    }

    /// What each rank has found likeliest. Then min-p and top-k cut.
    pub fn learn(&mut self, heads: Vec<Head>) {
        self.ranks = heads.len();
        self.known = Known::of(heads);
        self.known.keep_above(self.floor());
        if self.row.sampling.top_k > 0 {
            self.known.keep(self.row.sampling.top_k as usize);
        }
        self.head_tokens = self.head_tokens.saturating_mul(WIDER);
        if self.known.is_all && self.lacks_total() {
            let weigher = self.weigher();
            let weights = self.known.tokens.iter().map(|token| u128::from(weigher.weight(token.0)));
            self.total = Some(weights.sum());
        }
        self.cut_nucleus();
    }

    /// Some tokens that may be drawn are not known, or may not be.
    pub fn is_open(&self) -> bool {
        !self.known.is_all
    }

    /// The nucleus is a part of a sum that nobody knows yet.
    pub fn lacks_total(&self) -> bool {
        self.row.sampling.top_p < 1.0 && self.total.is_none()
    }

    /// The rank's part of that sum; `logits`: of all of its tokens, in parts.
    pub fn own_total<'l>(&self, logits: impl Iterator<Item = &'l [f32]>) -> u128 {
        let (weigher, floor) = (self.weigher(), self.floor());
        logits.map(|logits| weigher.sum(logits, floor)).sum()
    }

    pub fn learn_total(&mut self, total: u128) {
        self.total = Some(total);
        self.cut_nucleus();
    }

    /// The token, once the row is not open.
    pub fn draw(&self) -> Candidate {
        best_among(self.row, self.known.tokens.iter().map(|&(logit, token)| (token, logit)))
    }

    fn cut_nucleus(&mut self) {
        let sampling = &self.row.sampling;
        let Some(total) = self.total.filter(|_| sampling.top_p < 1.0) else { return };
        let wanted = nucleus::wanted(total, sampling.top_p);
        match nucleus::reaching(&self.known.tokens, wanted, self.weigher()) {
            Ok(count) => self.known.keep(count),
            // As many again, for those to come are less likely still.
            Err(more) => {
                self.head_tokens = self.head_tokens.max(more.saturating_mul(2) / self.ranks);
            }
        }
    }

    fn weigher(&self) -> Weigher {
        Weigher::new(self.max(), self.row.sampling.temperature)
    }

    /// The likeliest token's logit: it is never cut.
    fn max(&self) -> f32 {
        self.known.tokens.first().map_or(f32::NEG_INFINITY, |token| token.0)
    }

    /// What min-p keeps at least.
    fn floor(&self) -> f32 {
        nucleus::min_p_floor(self.max(), &self.row.sampling)
    }
}
