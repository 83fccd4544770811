//! Draws follow the full distribution that the parameters leave: chi-square at one in a thousand, with fixed
//! seeds, so that a failure is a failure every time.

use crate::reference::{self, Past};
use crate::shards::{Rows, tokens};
use flotilla_engine::sample::{History, SampleRow};
use flotilla_shared::step::TokenMask;
use flotilla_shared::{Sampling, TokenId};

const DRAWS: u32 = 20_000;

/// Exceeded once in a thousand, by degrees of freedom from 1 on.
const CRITICAL: [f64; 11] = [10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12, 27.88, 29.59, 31.26];

/// Twelve tokens, from likely to unlikely, two of them alike.
fn logits() -> Vec<f32> {
    vec![1.0, 2.5, 0.3, -0.4, 2.0, 0.3, 1.6, -1.0, 0.8, -0.1, 1.3, 0.5]
}

fn check(name: &str, sampling: Sampling, mask: Option<TokenMask>, past: &Past) {
    let context = [&past.prompt[..], &past.generated[..]].concat();
    let history = sampling.has_penalties().then(|| History::new(&context, past.generated.len()).into());
    let row = SampleRow { mask, history, ..SampleRow::new(sampling, 0, 0) };
    let kept = reference::kept(&row, past, &logits());
    let mut counts = vec![0f64; logits().len()];
    for first in (0..DRAWS).step_by(1000) {
        let mut rows = Rows::default();
        (first..first + 1000).for_each(|position| rows.push(SampleRow { position, ..row.clone() }, logits()));
        tokens(&rows.on(2)).into_iter().for_each(|token| counts[token.unwrap() as usize] += 1.0);
    }
    let mut chi = 0.0;
    for kept in &kept {
        let expected = kept.probability * f64::from(DRAWS);
        chi += (counts[kept.token as usize] - expected).powi(2) / expected;
        counts[kept.token as usize] = 0.0;
    }
    assert!(counts.iter().all(|count| *count == 0.0), "{name}: drawn, and not kept: {counts:?}");
    let critical = CRITICAL[kept.len() - 2];
    assert!(chi < critical, "{name}: chi-square {chi:.1} over {} tokens, {critical} at most", kept.len());
}

#[test]
fn draws_follow_the_distribution_that_is_left() {
    let warm = Sampling { temperature: 0.9, seed: 2026, ..Sampling::GREEDY };
    let none = Past::default();
    check("temperature", warm.clone(), None, &none);
    check("hot", Sampling { temperature: 2.5, ..warm.clone() }, None, &none);
    check("top-k", Sampling { top_k: 5, ..warm.clone() }, None, &none);
    check("top-p", Sampling { top_p: 0.8, ..warm.clone() }, None, &none);
    check("min-p", Sampling { min_p: 0.2, ..warm.clone() }, None, &none);
    let logit_bias: Vec<(TokenId, f32)> = vec![(1, -1.5), (7, 2.0), (11, 0.5)];
    check("bias", Sampling { logit_bias: logit_bias.clone(), ..warm.clone() }, None, &none);
    check("mask", warm.clone(), Some([0, 3, 4, 8, 9].into_iter().collect()), &none);
    let past = Past { prompt: vec![0, 1, 3], generated: vec![4, 4, 4, 6, 7, 1] };
    check("repetition", Sampling { repetition_penalty: 1.5, ..warm.clone() }, None, &past);
    check("presence", Sampling { presence_penalty: 0.8, ..warm.clone() }, None, &past);
    check("frequency", Sampling { frequency_penalty: 0.4, ..warm.clone() }, None, &past);
    let all = Sampling {
        top_k: 8,
        top_p: 0.95,
        min_p: 0.05,
        repetition_penalty: 1.2,
        presence_penalty: 0.3,
        frequency_penalty: 0.2,
        logit_bias,
        ..warm
    };
    check("all", all, Some((0..11).collect()), &past);
}
