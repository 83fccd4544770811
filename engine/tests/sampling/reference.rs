//! The choice of a token over the whole vocabulary, plainly and in f64. Nothing here is shared with the sampler
//! but the noise and what the history says of a token.

use crate::shards::sampleable;
use flotilla_engine::sample::SampleRow;
use flotilla_shared::sampling::gumbel;
use flotilla_shared::{Sampling, TokenId};

/// A token that may be drawn, with its probability.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub token: TokenId,
    pub logit: f64,
    pub probability: f64,
}

/// What a row's history says, as the test knows it: tokens of the prompt, and tokens that were generated.
#[derive(Clone, Debug, Default)]
pub struct Past {
    pub prompt: Vec<TokenId>,
    pub generated: Vec<TokenId>,
}

/// mask → bias → penalties. The last three are of f32, as the logits are.
fn adjusted(row: &SampleRow, past: &Past, token: TokenId, logit: f32) -> f32 {
    let sampling = &row.sampling;
    let mut logit = logit;
    if let Some((_, bias)) = sampling.logit_bias.iter().find(|(biased, _)| *biased == token) {
        logit += bias;
    }
    let generated = past.generated.iter().filter(|past| **past == token).count();
    if row.history.is_none() || (generated == 0 && !past.prompt.contains(&token)) {
        return logit;
    }
    let repetition = sampling.repetition_penalty;
    logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
    logit -= if generated > 0 { sampling.presence_penalty } else { 0.0 };
    logit - sampling.frequency_penalty * generated as f32
}

/// Every token that may be drawn, likeliest first; greedy rows keep all, with a temperature of 1.
pub fn kept(row: &SampleRow, past: &Past, logits: &[f32]) -> Vec<Kept> {
    let Sampling { temperature, top_p, top_k, min_p, .. } = *row.sampling;
    let ids = sampleable().into_iter().flatten().filter(|token| (*token as usize) < logits.len());
    let allowed = ids.filter(|token| row.mask.as_ref().is_none_or(|mask| mask.allows(*token)));
    let all = allowed.map(|token| (token, adjusted(row, past, token, logits[token as usize])));
    let mut all: Vec<(TokenId, f64)> =
        all.filter(|(_, logit)| !logit.is_nan()).map(|(token, logit)| (token, f64::from(logit))).collect();
    // Stable: equal ones stay in the order of their ids.
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    let max = all.first().map_or(0.0, |first| first.1);
    let temperature = if row.sampling.is_greedy() { 1.0 } else { f64::from(temperature) };
    let weight = |logit: f64| ((logit - max) / temperature).exp();
    if !row.sampling.is_greedy() {
        all.retain(|(_, logit)| weight(*logit) >= f64::from(min_p));
        if top_k > 0 {
            all.truncate(top_k as usize);
        }
        let total: f64 = all.iter().map(|(_, logit)| weight(*logit)).sum();
        let mut reached = 0.0;
        let reaching = all.iter().position(|(_, logit)| {
            reached += weight(*logit);
            reached >= total * f64::from(top_p)
        });
        all.truncate(reaching.map_or(all.len(), |last| last + 1));
    }
    let total: f64 = all.iter().map(|(_, logit)| weight(*logit)).sum();
    let kept = |(token, logit)| Kept { token, logit, probability: weight(logit) / total };
    all.into_iter().map(kept).collect()
}

/// The token of the highest score, of equal ones the lowest.
pub fn token(row: &SampleRow, kept: &[Kept]) -> Option<TokenId> {
    let Sampling { temperature, seed, .. } = *row.sampling;
    let score = |kept: &Kept| match row.sampling.is_greedy() {
        true => kept.logit,
        false => kept.logit / f64::from(temperature) + f64::from(gumbel(seed, row.position, kept.token)),
    };
    let scored = kept.iter().map(|kept| (score(kept), kept.token));
    let best = scored.reduce(|a, b| if b.0 > a.0 || b.0 == a.0 && b.1 < a.1 { b } else { a });
    best.map(|best| best.1)
}
