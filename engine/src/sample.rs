//! Choosing tokens on shards: every rank looks at its own part of the vocabulary, a few bytes a row are
//! gathered, and all ranks know the same token. Exact for every number of ranks.

use crate::backend::BackendError;
use crate::collective::{Collective, CollectiveError};
use flotilla_shared::{Sampling, TokenId};
use std::cmp::Ordering;
use std::ops::Range;
use thiserror::Error;

/// One row to choose a token for.
#[derive(Clone, Debug)]
pub struct SampleRow {
    pub sampling: Sampling,
    /// Position of the token that is chosen: with the seed, the key of its noise.
    pub position: u32,
    /// Which of the batch's logit rows.
    pub logit_row: usize,
}

/// A row as a rank looks at it: only logits of at least `floor` count.
#[derive(Clone, Debug)]
pub struct Pick {
    pub row: SampleRow,
    pub floor: f32,
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
}

const CANDIDATE_BYTES: usize = 8;

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

    /// The part of `logits`, f32 [V/R], of each range of ids.
    fn parts<'a>(&self, logits: &'a [f32]) -> impl Iterator<Item = &'a [f32]> {
        self.ids.iter().map(|ids| &logits[ids.start - self.vocab.start..ids.end - self.vocab.start])
    }
}

/// Where a rank's logits of the last batch are.
pub trait Shard {
    /// f32 [V/R]: the logits of the `row`-th logit row, in the host's memory.
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError>;

    /// The best candidate of each pick among the rank's tokens that may be sampled.
    fn best(&mut self, picks: &[Pick], sampleable: &Sampleable) -> Result<Vec<Candidate>, BackendError> {
        picks.iter().map(|pick| Ok(best_of(pick, self.logits(pick.row.logit_row)?, sampleable))).collect()
    }
}

/// Chooses tokens over a vocabulary that is cut over ranks.
#[derive(Debug)]
pub struct Sampler {
    sampleable: Sampleable,
    sent: Vec<u8>,
    received: Vec<u8>,
}

impl Sampler {
    pub fn new(sampleable: Sampleable) -> Self {
        Sampler { sampleable, sent: Vec::new(), received: Vec::new() }
    }

    /// One token a row, the same on every rank; `None` where no logit is a number.
    pub fn sample<C: Collective + ?Sized>(
        &mut self,
        rows: &[SampleRow],
        shard: &mut impl Shard,
        collective: &mut C,
    ) -> Result<Vec<Option<TokenId>>, SampleError> {
        let mut picks: Vec<Pick> =
            rows.iter().map(|row| Pick { row: row.clone(), floor: f32::NEG_INFINITY }).collect();
        for Pick { row, floor } in &mut picks {
            if !row.sampling.is_greedy() && row.sampling.top_p < 1.0 {
                *floor = self.nucleus_floor(&row.sampling, shard.logits(row.logit_row)?, collective)?;
            }
        }
        self.sent.clear();
        for best in shard.best(&picks, &self.sampleable)? {
            self.sent.extend_from_slice(&best.score.to_le_bytes());
            self.sent.extend_from_slice(&best.token.to_le_bytes());
        }
        collective.all_gather(&self.sent, &mut self.received)?;
        Ok((0..rows.len()).map(|row| self.winner(row, rows.len())).collect())
    }

    fn winner(&self, row: usize, row_count: usize) -> Option<TokenId> {
        let per_rank = self.received.chunks_exact(row_count * CANDIDATE_BYTES);
        let of_rank = per_rank.map(|sent| &sent[row * CANDIDATE_BYTES..][..CANDIDATE_BYTES]);
        let mut best = Candidate::NONE;
        for bytes in of_rank {
            let (score, token) = bytes.split_at(4);
            let candidate = Candidate {
                score: f32::from_le_bytes(score.try_into().expect("4 of 8 bytes")),
                token: TokenId::from_le_bytes(token.try_into().expect("4 of 8 bytes")),
            };
            if better(candidate, best) {
                best = candidate;
            }
        }
        (best != Candidate::NONE).then_some(best.token)
    }

    /// The smallest logit in the nucleus: the tokens whose probabilities, in falling order, first
    /// reach top_p. The row's logits are gathered whole, so the cut is exact.
    fn nucleus_floor<C: Collective + ?Sized>(
        &mut self,
        sampling: &Sampling,
        logits: &[f32],
        collective: &mut C,
    ) -> Result<f32, CollectiveError> {
        self.sent.clear();
        for own in self.sampleable.parts(logits) {
            self.sent.extend(own.iter().flat_map(|logit| logit.to_le_bytes()));
        }
        collective.all_gather(&self.sent, &mut self.received)?;
        let logits = self.received.chunks_exact(4);
        let logits = logits.map(|bytes| f32::from_le_bytes(bytes.try_into().expect("4 bytes")));
        Ok(nucleus_floor(logits.collect(), sampling))
    }
}

/// The rank's best token whose logit is at least the pick's floor; `logits`: f32 [V/R] of its row.
pub fn best_of(pick: &Pick, logits: &[f32], sampleable: &Sampleable) -> Candidate {
    let SampleRow { sampling, position, .. } = &pick.row;
    let mut best = Candidate::NONE;
    for (ids, logits) in sampleable.ids.iter().zip(sampleable.parts(logits)) {
        for (token, &logit) in ids.clone().zip(logits) {
            if logit < pick.floor {
                continue;
            }
            let token = token as TokenId;
            let candidate = Candidate { score: sampling.score(logit, *position, token), token };
            if better(candidate, best) {
                best = candidate;
            }
        }
    }
    best
}

/// Why no token could be chosen.
#[derive(Debug, Error)]
pub enum SampleError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

/// Higher score first, then the lower id; a NaN never wins.
fn better(a: Candidate, b: Candidate) -> bool {
    match a.score.partial_cmp(&b.score) {
        Some(Ordering::Greater) => true,
        Some(Ordering::Equal) => a.token < b.token,
        _ => false,
    }
}

fn nucleus_floor(mut logits: Vec<f32>, sampling: &Sampling) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| f64::from((logit - max) / sampling.temperature).exp();
    let total: f64 = logits.iter().map(|&logit| weight(logit)).sum();
    let wanted = total * f64::from(sampling.top_p);
    // Most nuclei are small: sort a head of the list, and more only when it does not reach.
    let mut sorted = 0;
    let mut reached = 0.0;
    while sorted < logits.len() {
        let head = (sorted + 256.max(sorted * 7)).min(logits.len());
        let rest = &mut logits[sorted..];
        if sorted + rest.len() > head {
            rest.select_nth_unstable_by(head - sorted - 1, |a, b| b.total_cmp(a));
        }
        rest[..head - sorted].sort_unstable_by(|a, b| b.total_cmp(a));
        for &logit in &logits[sorted..head] {
            reached += weight(logit);
            if reached >= wanted {
                return logit;
            }
        }
        sorted = head;
    }
    f32::NEG_INFINITY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_p: f32) -> Sampling {
        Sampling { temperature, top_p, seed: 1, ..Sampling::GREEDY }
    }

    #[test]
    fn nucleus_is_the_smallest_set_that_reaches_top_p() {
        // Probabilities .5, .25, .125, .125.
        let logits: Vec<f32> = [0.125f32, 0.5, 0.125, 0.25].iter().map(|p| p.ln()).collect();
        let floor = |top_p| nucleus_floor(logits.clone(), &sampling(1.0, top_p)).exp();
        assert!((floor(0.5) - 0.5).abs() < 1e-6);
        assert!((floor(0.6) - 0.25).abs() < 1e-6);
        assert!((floor(0.9) - 0.125).abs() < 1e-6);
    }

    #[test]
    fn a_wide_nucleus_is_found_past_the_first_head() {
        let logits: Vec<f32> = (0..5000).map(|i| -(i as f32) * 1e-4).collect();
        let floor = nucleus_floor(logits.clone(), &sampling(1.0, 0.9));
        let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let expected = logits.iter().zip(&weights).find(|(_, w)| {
            sum += **w;
            sum >= total * f64::from(0.9f32)
        });
        assert_eq!(floor, *expected.unwrap().0);
    }

    #[test]
    fn ties_go_to_the_lower_id_and_nan_never_wins() {
        let at = |score, token| Candidate { score, token };
        assert!(better(at(1.0, 3), at(1.0, 4)) && !better(at(1.0, 4), at(1.0, 3)));
        assert!(!better(at(f32::NAN, 0), Candidate::NONE) && better(at(-1e30, 7), Candidate::NONE));
    }
}
