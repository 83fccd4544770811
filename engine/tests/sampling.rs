//! Sampling on shards: the same token for every number of ranks, and none that may not be sampled.

use flotilla_engine::backend::BackendError;
use flotilla_engine::collective::{Collective, Solo, threads};
use flotilla_engine::sample::{SampleRow, Sampleable, Sampler, Shard};
use flotilla_shared::plan::apportion;
use flotilla_shared::sampling::mix;
use flotilla_shared::{Sampling, TokenId};
use std::ops::Range;

const VOCAB: usize = 1000;

/// Logits of row `row`: fixed, spread, with ties.
fn logits(row: usize) -> Vec<f32> {
    let noise = |token: usize| (mix((row * VOCAB + token) as u64) % 4000) as f32 / 400.0 - 5.0;
    (0..VOCAB).map(noise).collect()
}

fn rows() -> Vec<SampleRow> {
    let settings = [(0.0, 1.0), (1.0, 1.0), (0.7, 0.9), (2.0, 0.3), (0.01, 0.5), (1.3, 1e-6)];
    let row = |(n, (temperature, top_p))| SampleRow {
        sampling: Sampling { temperature, top_p, seed: 77 + n as u64, ..Sampling::GREEDY },
        position: 10 * n as u32,
        logit_row: n,
    };
    settings.into_iter().enumerate().map(row).collect()
}

fn sampleable() -> Vec<Range<TokenId>> {
    vec![0..100, 150..151, 400..VOCAB as u32 - 3]
}

/// Logits that nothing computed.
struct Given(Vec<Vec<f32>>);

impl Shard for Given {
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        Ok(&self.0[row])
    }
}

fn sample(vocab: Range<usize>, collective: &mut impl Collective) -> Vec<Option<TokenId>> {
    let shard = (0..rows().len()).map(|row| logits(row)[vocab.clone()].to_vec()).collect();
    let mut sampler = Sampler::new(Sampleable::new(vocab, &sampleable()));
    sampler.sample(&rows(), &mut Given(shard), collective).unwrap()
}

#[test]
fn every_number_of_ranks_samples_the_same_tokens() {
    let alone = sample(0..VOCAB, &mut Solo::new());
    for ranks in 1..=8 {
        // Uneven on purpose; some ranks own nothing.
        let shares: Vec<f64> = (0..ranks).map(|rank| [3.0, 0.0, 1.0][rank % 3]).collect();
        let members = threads::group(ranks).into_iter().zip(apportion(VOCAB, &shares));
        let ranks: Vec<_> = members
            .map(|(mut member, vocab)| std::thread::spawn(move || sample(vocab, &mut member)))
            .collect();
        for rank in ranks {
            assert_eq!(rank.join().unwrap(), alone);
        }
    }
}

#[test]
fn greedy_and_a_tiny_nucleus_take_the_best_token_that_may_be_sampled() {
    let tokens = sample(0..VOCAB, &mut Solo::new());
    for row in [0, 5] {
        let logits = logits(row);
        let allowed = sampleable().into_iter().flatten();
        let best = allowed.reduce(|a, b| if logits[b as usize] > logits[a as usize] { b } else { a });
        assert_eq!(tokens[row], best, "row {row}");
    }
}

/// Draws at top_p stay in the nucleus and follow the renormalised probabilities.
#[test]
fn a_nucleus_is_drawn_from_as_its_probabilities_say() {
    let probabilities = [0.4f32, 0.3, 0.2, 0.1];
    let logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
    let all: Vec<Range<TokenId>> = std::iter::once(0..4).collect();
    let mut sampler = Sampler::new(Sampleable::new(0..4, &all));
    let mut shard = Given(vec![logits]);
    let sampling = Sampling { temperature: 1.0, top_p: 0.75, seed: 3, ..Sampling::GREEDY };
    let draws = 20_000;
    let mut counts = [0f64; 4];
    for position in 0..draws {
        let row = [SampleRow { sampling: sampling.clone(), position, logit_row: 0 }];
        let token = sampler.sample(&row, &mut shard, &mut Solo::new()).unwrap()[0].unwrap();
        counts[token as usize] += 1.0;
    }
    // 0.4 + 0.3 is short of 0.75: the third token is in, the fourth is not.
    let expected = [0.4 / 0.9, 0.3 / 0.9, 0.2 / 0.9].map(|p| p * f64::from(draws));
    let chi: f64 = expected.iter().zip(counts).map(|(e, n)| (n - e).powi(2) / e).sum();
    assert_eq!(counts[3], 0.0);
    // 2 degrees of freedom: 13.8 is exceeded once in a thousand; the seed is fixed.
    assert!(chi < 13.8, "chi-square {chi}, counts {counts:?}");
}
