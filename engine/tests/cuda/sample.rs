//! Choosing tokens on the card: the same choice as `sample/` makes on the host.

use crate::support;
use flotilla_engine::backend::BackendError;
use flotilla_engine::backend::cuda::sample::{self, SampleKernels, row_words};
use flotilla_engine::collective::Solo;
use flotilla_engine::cuda::{Card, Source};
use flotilla_engine::sample::{SampleRow, Sampleable, Sampler, Shard};
use flotilla_shared::sampling::mix;
use flotilla_shared::{Sampling, TokenId};
use std::ops::Range;

const POISON: u32 = 0xa5a5_a5a5;

/// One replace each in sample.cu that [`check`] must notice.
pub const PLANTED: [(&str, &str, &str); 3] = [
    ("a tie goes to the higher token", "a.token < b.token", "a.token > b.token"),
    (
        "noise without the high half of the seed",
        "(static_cast<unsigned long long>(row.seed_high) << 32) | row.seed_low",
        "row.seed_low",
    ),
    ("noise that is looked at in f32 only", "__fadd_rn(scaled, gumbel(bits))", "about"),
];

#[test]
fn the_card_chooses_what_the_host_chooses() {
    for test in support::cards() {
        check(&test.card, &|source| source).unwrap();
    }
}

pub fn check(card: &Card, edit: &dyn Fn(Source) -> Source) -> Result<(), String> {
    // One block's part, several, a part that begins inside of the vocabulary, one token, nothing that may be chosen.
    let cases: [(Range<usize>, Vec<Range<TokenId>>); 6] = [
        (0..100, vec![0..100]),
        (0..5000, vec![0..4100, 4200..4201, 4300..9000]),
        (3000..7100, vec![0..3010, 3500..7000, 8000..9000]),
        (7..8, vec![0..200]),
        (0..2048, vec![2047..4000]),
        (50..150, vec![0..50, 150..300]),
    ];
    for (seed, (vocab, sampleable)) in cases.into_iter().enumerate() {
        let source = edit(sample::source());
        let mut case = Case {
            card,
            kernels: SampleKernels::compiled(card, &source, vocab.clone(), &sampleable, 12).unwrap(),
            vocab,
            sampleable,
        };
        let name = format!("vocabulary {:?}, seed {seed}", case.vocab);
        case.settings(seed as u64).map_err(|error| format!("{name}: {error}"))?;
        case.edges().map_err(|error| format!("edges, {name}: {error}"))?;
    }
    Ok(())
}

/// Logits in the host's memory.
struct Given(Vec<Vec<f32>>);

impl Shard for Given {
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        Ok(&self.0[row])
    }
}

struct Case<'a> {
    card: &'a Card,
    kernels: SampleKernels,
    vocab: Range<usize>,
    sampleable: Vec<Range<TokenId>>,
}

impl Case<'_> {
    /// Greedy, cold, usual and hot rows over logits with ties.
    fn settings(&mut self, seed: u64) -> Result<(), String> {
        let temperatures = [0.0, 1.0, 0.7, 0.01, 50.0, 1.3, 0.0, 1.0, 1.0, 2.0, 1.0];
        let rows: Vec<SampleRow> = temperatures
            .into_iter()
            .enumerate()
            .map(|(n, temperature)| {
                let seed = mix(seed * 100 + n as u64);
                let sampling = Sampling { temperature, top_p: 1.0, seed, ..Sampling::GREEDY };
                // Rows need not be in the order of their logits.
                SampleRow::new(sampling, 131 * n as u32, temperatures.len() - 1 - n)
            })
            .collect();
        let width = self.vocab.len();
        let noise = |i: usize| (mix(seed << 32 | i as u64) % 4000) as f32 / 400.0 - 5.0;
        let logits: Vec<f32> = (0..rows.len() * width).map(noise).collect();
        let found = self.compare(&rows, &logits)?;

        // What the sampler of the host says.
        let mut sampler = Sampler::new(Sampleable::new(self.vocab.clone(), &self.sampleable));
        let mut given = Given(logits.chunks(width).map(<[f32]>::to_vec).collect());
        let tokens = sampler.sample(&rows, &mut given, &mut Solo::new()).unwrap();
        for (row, chosen) in tokens.into_iter().enumerate() {
            if found[row] != chosen.as_ref().map_or(TokenId::MAX, |chosen| chosen.token) {
                return Err(format!("row {row}: token {}, the sampler takes {chosen:?}", found[row]));
            }
        }
        Ok(())
    }

    /// NaN, infinities, zeros of both signs, rows of nothing else; each greedy and with noise.
    fn edges(&mut self) -> Result<(), String> {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let patterns: [&[f32]; 6] = [
            &[nan],
            &[-inf],
            &[nan, -inf, nan],
            &[0.0, -0.0],
            &[nan, 1.0, 0.5, 1.0, -inf],
            &[1.0, inf, inf, nan],
        ];
        let rows: Vec<SampleRow> = (0..12)
            .map(|n| {
                let temperature = if n < 6 { 0.0 } else { 1.0 };
                let sampling = Sampling { temperature, seed: 5, ..Sampling::GREEDY };
                SampleRow::new(sampling, n, 11 - n as usize)
            })
            .collect();
        let width = self.vocab.len();
        let row =
            |n: usize| (0..width).map(move |i| patterns[(11 - n) % 6][i % patterns[(11 - n) % 6].len()]);
        let logits: Vec<f32> = (0..12).flat_map(row).collect();
        self.compare(&rows, &logits).map(|_| ())
    }

    /// Row i chooses by the logits of row n − 1 − i; the last row of the launch is past those that there are, if
    /// there is more than one.
    fn compare(&mut self, rows: &[SampleRow], logits: &[f32]) -> Result<Vec<TokenId>, String> {
        let (card, n, width) = (self.card, rows.len(), self.vocab.len());
        let launched = (n + 1).min(12);
        let mut all_words: Vec<u32> = rows.iter().flat_map(row_words).collect();
        all_words.resize(launched * sample::ROW_WORDS, u32::MAX);
        let (count, device_rows) = (card.upload(&[n as u32]).unwrap(), card.upload(&all_words).unwrap());
        let device_logits = card.upload(logits).unwrap();
        let mut bests = card.upload(&vec![POISON; launched * 2]).unwrap();
        self.kernels
            .best(
                launched,
                &count.as_view(),
                &device_rows.as_view(),
                &device_logits.as_view(),
                &mut bests.as_view_mut(),
            )
            .unwrap();
        let bests = card.download(&bests).unwrap();
        if bests[n * 2..].iter().any(|&word| word != POISON) {
            return Err("a row past the batch was written".into());
        }
        for i in 0..n {
            let (score, token) = (f32::from_bits(bests[i * 2]), bests[i * 2 + 1]);
            let expected = self.expected(&rows[i], &logits[(n - 1 - i) * width..][..width]);
            // Greedy scores are logits. The log of a card may differ in its last bit, and so may a score.
            let step = if rows[i].sampling.is_greedy() { 0 } else { 1 };
            let apart = score.to_bits().abs_diff(expected.0.to_bits());
            if token != expected.1 || apart > step {
                return Err(format!("row {i}: ({score}, {token}), expected {expected:?}"));
            }
        }
        Ok((0..n).map(|i| bests[i * 2 + 1]).collect())
    }

    /// As `best_of` of sample/best.rs, with the score's own formula.
    fn expected(&self, row: &SampleRow, logits: &[f32]) -> (f32, TokenId) {
        let mut best = (f32::NEG_INFINITY, TokenId::MAX);
        for token in self.sampleable.iter().cloned().flatten() {
            let Some(&logit) = (token as usize).checked_sub(self.vocab.start).and_then(|i| logits.get(i))
            else {
                continue;
            };
            let score = row.sampling.score(logit, row.position, token);
            if score > best.0 || score == best.0 && token < best.1 {
                best = (score, token);
            }
        }
        best
    }
}
