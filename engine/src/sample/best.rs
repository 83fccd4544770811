//! The best token of a rank's part of the vocabulary, on the host. Noise costs two logarithms, so a token
//! whose noise cannot make it the best, as most cannot, is passed over by a bound that costs a look into a table.

use super::candidates::Likely;
use super::span::Visitor;
use super::{Candidate, SampleRow, Sampleable};
use flotilla_shared::TokenId;
use flotilla_shared::sampling::{CHANCE_BITS, Chance, gumbel_of};
use std::sync::LazyLock;

/// The rank's best token; `logits`: f32 [V/R] of the row, as anything that changes them has left them.
pub fn best_of(row: &SampleRow, logits: &[f32], sampleable: &Sampleable) -> Candidate {
    best_among(row, sampleable.tokens(logits))
}

/// The best of some tokens; none if no logit is a number.
pub(super) fn best_among(row: &SampleRow, tokens: impl Iterator<Item = (TokenId, f32)>) -> Candidate {
    if row.sampling.is_greedy() {
        let mut best = Candidate::NONE;
        tokens.for_each(|(token, logit)| best.meet(Candidate { score: logit, token }));
        return best;
    }
    let mut best = Best::new(row);
    tokens.for_each(|(token, logit)| best.meet(token, logit));
    best.found()
}

/// The best of the tokens of a row with noise that were met so far.
pub(super) struct Best {
    best: Candidate,
    chance: Chance,
    temperature: f32,
    bounds: &'static [f32],
}

impl Best {
    pub fn new(row: &SampleRow) -> Best {
        let chance = Chance::new(row.sampling.seed, row.position);
        Best { best: Candidate::NONE, chance, temperature: row.sampling.temperature, bounds: &BOUNDS }
    }

    #[inline(always)]
    pub fn meet(&mut self, token: TokenId, logit: f32) {
        let (scaled, bits) = (logit / self.temperature, self.chance.of(token));
        // Never true of a NaN, which is what a mask leaves of most tokens.
        if scaled + self.bounds[leading(bits)] >= self.best.score {
            self.best.meet(Candidate { score: scaled + gumbel_of(bits), token });
        }
    }

    pub fn found(self) -> Candidate {
        self.best
    }
}

impl Visitor for Best {
    #[inline(always)]
    fn meet(&mut self, (logit, token): Likely) {
        Best::meet(self, token, logit);
    }
}

/// Leading bits of a chance that the table knows.
const TABLE_BITS: u32 = 10;

/// At least the noise of every chance with these leading bits; above all noise for the last.
static BOUNDS: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let end = 1u64 << TABLE_BITS;
    // The noise rises with the chance. A step up, for what a logarithm may be off by.
    let bound = |leading: u64| match leading + 1 < end {
        true => gumbel_of((leading + 1) << (CHANCE_BITS - TABLE_BITS)).next_up(),
        false => f32::MAX,
    };
    (0..end).map(bound).collect()
});

fn leading(chance: u64) -> usize {
    (chance >> (CHANCE_BITS - TABLE_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::Sampling;
    use flotilla_shared::sampling::mix;

    #[test]
    fn ties_go_to_the_lower_id_and_nan_never_wins() {
        let at = |score, token: TokenId| Candidate { score, token };
        assert!(at(1.0, 3).beats(at(1.0, 4)) && !at(1.0, 4).beats(at(1.0, 3)));
        assert!(!at(f32::NAN, 0).beats(Candidate::NONE) && at(-1e30, 7).beats(Candidate::NONE));
    }

    #[test]
    fn no_noise_is_above_its_bound() {
        let edges = (0..1u64 << TABLE_BITS).flat_map(|leading| {
            let first = leading << (CHANCE_BITS - TABLE_BITS);
            let last = first + (1 << (CHANCE_BITS - TABLE_BITS)) - 1;
            [first, last - 1, last]
        });
        for bits in edges.chain((0..100_000).map(|i| mix(i) >> (64 - CHANCE_BITS))) {
            // Of the last chance of all, f64 makes a noise that is infinite.
            let is_last = bits == (1 << CHANCE_BITS) - 1;
            assert!(gumbel_of(bits) <= BOUNDS[leading(bits)] || is_last, "{bits}");
        }
    }

    /// Cold and hot, flat and steep: the same token as by every score.
    #[test]
    fn what_is_passed_over_was_not_the_best() {
        let sampleable = Sampleable::new(100..4000, &[0..300, 500..5000]);
        for seed in 0..60u64 {
            let steep = [0.0, 0.1, 1.0, 6.0][seed as usize % 4];
            let logits: Vec<f32> =
                (0..3900).map(|i| (mix(seed << 20 | i) % 1000) as f32 / 250.0 * steep).collect();
            let temperature = [0.05, 1.0, 9.0][seed as usize % 3];
            let sampling = Sampling { temperature, seed, ..Sampling::GREEDY };
            let row = SampleRow::new(sampling.clone(), seed as u32, 0);
            let scores = sampleable.tokens(&logits);
            let scores = scores.map(|(token, logit)| (sampling.score(logit, seed as u32, token), token));
            let mut best = Candidate::NONE;
            scores.for_each(|(score, token)| best.meet(Candidate { score, token }));
            assert_eq!(best_of(&row, &logits, &sampleable), best, "seed {seed}");
        }
    }
}
