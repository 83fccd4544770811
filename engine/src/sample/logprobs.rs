//! How likely the model found a token: of the softmax over its own logits, whatever was done to them before
//! the token was chosen. Each rank says what its part sums up to, and all know the same.

use super::candidates::{Head, Known, Likely};
use super::gathered::Sent;
use super::weights::{WEIGHT_MAX, Weigher};
use super::{Sampleable, replicated};
use flotilla_shared::TokenId;
use flotilla_shared::step::Logprobs;

/// What a rank knows of a row.
#[derive(Debug)]
pub(super) struct Part {
    max: f32,
    /// Σ exp(logit − max)
    sum: f64,
    /// Of the token that was chosen, if it is this rank's.
    chosen: Option<f32>,
    head: Head,
}

impl Part {
    /// `logits`: f32 [V/R], the model's own.
    pub fn of(logits: &[f32], sampleable: &Sampleable, chosen: TokenId, count: usize) -> Part {
        let head = Head::of(logits, sampleable, count);
        let (max, parts) = (head.max(), sampleable.parts(logits));
        let weigher = Weigher::new(max, 1.0);
        let sum: u128 = parts.map(|(_, logits)| weigher.sum(logits, f32::NEG_INFINITY)).sum();
        let own = (chosen as usize).checked_sub(sampleable.vocab.start);
        let chosen = own.and_then(|at| logits.get(at)).copied();
        Part { max, sum: sum as f64 / WEIGHT_MAX, chosen, head }
    }

    pub fn put(&self, out: &mut Vec<u8>) {
        (self.max, self.sum).put(out);
        (u8::from(self.chosen.is_some()), self.chosen.unwrap_or_default()).put(out);
        self.head.put(out);
    }

    pub fn take(from: &mut &[u8]) -> Option<Part> {
        let (max, sum) = Sent::take(from)?;
        let (has_chosen, chosen): (u8, f32) = Sent::take(from)?;
        Some(Part { max, sum, chosen: (has_chosen != 0).then_some(chosen), head: Head::take(from)? })
    }
}

/// Of every rank's part, in rank order.
pub(super) fn logprobs(parts: Vec<Part>, count: usize) -> Logprobs {
    let max = parts.iter().map(|part| part.max).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = parts.iter().map(|part| part.sum * likelihood(part.max, max)).sum();
    let of = |logit: f32| match logit == max {
        true => -replicated::ln(sum) as f32,
        false => (f64::from(logit) - f64::from(max) - replicated::ln(sum)) as f32,
    };
    let chosen = parts.iter().find_map(|part| part.chosen).map_or(f32::NEG_INFINITY, of);
    let known = Known::of(parts.into_iter().map(|part| part.head).collect());
    let top = known.tokens.into_iter().take(count).map(|(logit, token): Likely| (token, of(logit)));
    Logprobs { chosen, top: top.collect() }
}

/// exp(logit − max)
fn likelihood(logit: f32, max: f32) -> f64 {
    // Also where both are infinite.
    if logit == max { 1.0 } else { replicated::exp(f64::from(logit) - f64::from(max)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(logits: [f32; 4], chosen: TokenId, count: usize) -> Logprobs {
        let part = |vocab: std::ops::Range<usize>| {
            Part::of(&logits[vocab.clone()], &Sampleable::new(vocab, &[0..4]), chosen, count)
        };
        let whole = logprobs(vec![part(0..4)], count);
        let mut sent = Vec::new();
        [part(0..1), part(1..1), part(1..4)].iter().for_each(|part| part.put(&mut sent));
        let mut from = &sent[..];
        let parts = (0..3).map(|_| Part::take(&mut from).unwrap()).collect();
        assert_eq!(logprobs(parts, count), whole);
        whole
    }

    #[test]
    fn logprobs_are_those_of_the_softmax_over_all_ranks() {
        let logits = [0.125f32, 0.5, 0.25, 0.125].map(|p| p.ln() + 7.0);
        let found = of(logits, 3, 3);
        assert_eq!(found.top.iter().map(|top| top.0).collect::<Vec<_>>(), [1, 2, 0]);
        for (logprob, p) in found.top.iter().map(|top| top.1).zip([0.5f32, 0.25, 0.125]) {
            assert!((logprob - p.ln()).abs() < 1e-6, "{found:?}");
        }
        assert_eq!(found.chosen, found.top[2].1);
        assert_eq!(of(logits, 0, 0).top, []);
    }

    #[test]
    fn impossible_tokens_and_no_numbers_are_no_trouble() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let found = of([nan, 1.0, -inf, nan], 1, 4);
        assert_eq!(found, Logprobs { chosen: 0.0, top: vec![(1, 0.0), (2, -inf)] });
        assert_eq!(of([1.0, inf, 2.0, inf], 2, 0).chosen, -inf);
    }
}
