//! A row of which not every token may be drawn: what all ranks know of it, and what they must still ask each
//! other before they know the tokens that may be. Every rank decides alike, from the same bytes. The likeliest
//! tokens are the first that are asked for, and nearly always they are enough. Where they are not, ranks agree on
//! where the tokens end that may be drawn, and each looks for the best among its own.

use super::best::{Best, best_among};
use super::candidates::{Head, Known, place};
use super::search::Search;
use super::span::Span;
use super::weights::Weigher;
use super::{Candidate, SampleRow, Sampleable, nucleus};
use flotilla_shared::TokenId;

/// So many of the likeliest tokens of each rank are looked at first.
const HEAD_TOKENS: usize = 256;

#[derive(Debug)]
pub(super) struct Cut<'a> {
    pub row: &'a SampleRow,
    /// Which of the step's rows it is.
    pub index: usize,
    known: Known,
    /// Σ weights of all tokens that min-p keeps.
    total: Option<u128>,
    /// For the end of a nucleus that is wider than what is known.
    pub search: Option<Search>,
    /// The place of the last token that may be drawn, where not all are known.
    last: Option<u64>,
}

/// What a rank's tokens weigh together, those that min-p keeps, and how many it has, those or not.
pub(super) type Total = (u128, u32);

impl<'a> Cut<'a> {
    pub fn new(index: usize, row: &'a SampleRow) -> Self {
        Cut { row, index, known: Known::default(), total: None, search: None, last: None }
    }

    /// What a rank says of a row in one gathering takes so many bytes at most.
    pub fn row_bytes(row: &SampleRow) -> usize {
        Head::bytes_max(Cut::head_tokens(row)).max(Search::BYTES_MAX)
    }

    /// Of each rank's likeliest tokens, so many are asked for.
    pub fn head_tokens(row: &SampleRow) -> usize {
        // No more than k of one rank are among the k of all.
        if row.sampling.top_k > 0 { row.sampling.top_k as usize } else { HEAD_TOKENS }
    }

    /// What each rank has found likeliest. Then min-p and top-k cut, and top-p where what is known is all.
    pub fn learn(&mut self, heads: Vec<Head>) {
        self.known = Known::of(heads);
        self.known.keep_above(self.floor());
        if self.row.sampling.top_k > 0 {
            self.known.keep(self.row.sampling.top_k as usize);
        }
        if !self.known.is_all && !self.lacks_total() {
            self.last = Some(last_of(self.floor()));
        }
        if self.known.is_all && self.lacks_total() {
            let weigher = self.weigher();
            let weights = self.known.tokens.iter().map(|token| u128::from(weigher.weight(token.0)));
            let total = (weights.sum(), self.known.tokens.len() as u32);
            self.learn_total(&[total]);
        }
    }

    /// The nucleus is a part of a sum that nobody knows yet.
    pub fn lacks_total(&self) -> bool {
        self.row.sampling.top_p < 1.0 && self.total.is_none()
    }

    /// Of which logits that sum is, how they weigh, and which count.
    pub fn weighed(&self) -> (usize, Weigher, f32) {
        (self.row.logit_row, self.weigher(), self.floor())
    }

    /// Every rank's. Then top-p cuts, or begins to look for where.
    pub fn learn_total(&mut self, totals: &[Total]) {
        let total = totals.iter().fold(0, |sum: u128, total| sum.saturating_add(total.0));
        self.total = Some(total);
        let wanted = nucleus::wanted(total, self.row.sampling.top_p);
        match nucleus::reaching(&self.known.tokens, wanted, self.weigher()) {
            Ok(count) => self.known.keep(count),
            // All that there is, but for the last bits.
            Err(_) if self.known.is_all => {}
            Err(reached) => {
                let count = totals.iter().map(|total| u64::from(total.1)).sum();
                let span = self.span_beyond(nucleus::least_weight(total, wanted, count));
                self.search = Some(Search::new(span, wanted - reached, self.weigher()));
            }
        }
    }

    /// Behind what is known, the tokens that are of such a weight.
    fn span_beyond(&self, least_weight: u64) -> Span {
        let known = self.known.tokens.last().map_or(0, place);
        // What weighs nothing ends no nucleus; beside an infinite logit, only its equals weigh something.
        let by_weight = match self.max().is_finite() {
            true => nucleus::floor(self.max(), least_weight.max(1), self.row.sampling.temperature),
            false => self.max(),
        };
        let last = last_of(self.floor().max(by_weight));
        Span::new(known + 1, last.max(known + 1))
    }

    /// The place of the last token of the nucleus.
    pub fn learn_last(&mut self, last: u64) {
        self.search = None;
        self.last = Some(last);
    }

    /// The token, if every one that may be drawn is known.
    pub fn draw(&self) -> Option<Candidate> {
        let tokens = || self.known.tokens.iter().map(|&(logit, token)| (token, logit));
        self.known.is_all.then(|| best_among(self.row, tokens()))
    }

    /// Else the best of one rank's tokens; `logits`: f32 [V/R].
    pub fn own_best(&self, logits: &[f32], sampleable: &Sampleable) -> Candidate {
        let last = self.last.expect("a row whose tokens are not known ends somewhere");
        let span = Span::new(self.known.tokens.first().map_or(0, place), last);
        span.scan(logits, sampleable, Best::new(self.row)).found()
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

/// The last place that a token with this logit can have.
fn last_of(logit: f32) -> u64 {
    place(&(logit, TokenId::MAX))
}
