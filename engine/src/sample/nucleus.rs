//! Where the tokens end that may be drawn: by min-p, and by top-p. A nucleus ends at the same token wherever the
//! vocabulary is cut. Which tokens a rank has, and what it sends, is not known here.

use super::candidates::Likely;
use super::weights::{WEIGHT_MAX, Weigher};
use flotilla_shared::Sampling;

/// The lowest logit that min-p keeps: at least min_p times as likely as the likeliest.
pub(super) fn min_p_floor(max: f32, sampling: &Sampling) -> f32 {
    floor(max, (f64::from(sampling.min_p) * WEIGHT_MAX) as u64, sampling.temperature)
}

/// The lowest logit that weighs so much; beside an infinite one, all are as low.
pub(super) fn floor(max: f32, least: u64, temperature: f32) -> f32 {
    if least == 0 || !max.is_finite() {
        return f32::NEG_INFINITY;
    }
    let weigher = Weigher::new(max, temperature);
    let is_kept = |logit| weigher.weight(logit) >= least;
    // By the order of the bits of floats: `low` is never kept, `high` always is.
    let (mut low, mut high) = (rank_of(f32::NEG_INFINITY), rank_of(max));
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if is_kept(of_rank(middle)) { high = middle } else { low = middle }
    }
    of_rank(high)
}

/// A float's place in the order of all floats.
fn rank_of(value: f32) -> i64 {
    let bits = value.to_bits() as i32;
    i64::from(if bits < 0 { i32::MIN.wrapping_sub(bits) } else { bits })
}

fn of_rank(rank: i64) -> f32 {
    let rank = rank as i32;
    f32::from_bits(if rank < 0 { i32::MIN.wrapping_sub(rank) } else { rank } as u32)
}

/// What the weights of a nucleus must reach, of `total`.
pub(super) fn wanted(total: u128, top_p: f32) -> u128 {
    (total as f64 * f64::from(top_p)) as u128
}

/// No token of the nucleus weighs less: all `count` of the vocabulary that did would not weigh together what the
/// nucleus leaves. Half of that, because neighbours may be in the wrong order by the last bits of their weights.
pub(super) fn least_weight(total: u128, wanted: u128, count: u64) -> u64 {
    let least = (total - wanted) / u128::from(count.max(1)) / 2;
    u64::try_from(least).unwrap_or(u64::MAX).min(WEIGHT_MAX as u64)
}

/// How many of `tokens`, in order, first reach `wanted`. If they do not: what they reach.
pub(super) fn reaching(tokens: &[Likely], wanted: u128, weigher: Weigher) -> Result<usize, u128> {
    let mut reached = 0;
    let reaches = tokens.iter().position(|&(logit, _)| {
        reached += u128::from(weigher.weight(logit));
        reached >= wanted
    });
    reaches.map(|last| last + 1).ok_or(reached)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(logit: f32, max: f32, temperature: f32) -> u64 {
        Weigher::new(max, temperature).weight(logit)
    }

    fn likely(logits: impl IntoIterator<Item = f32>) -> Vec<Likely> {
        logits.into_iter().zip(0..).collect()
    }

    /// How many of the tokens with these probabilities, in order, are in the nucleus.
    fn count(probabilities: &[f32], top_p: f32) -> usize {
        let tokens = likely(probabilities.iter().map(|p| p.ln()));
        let max = tokens[0].0;
        let weigher = Weigher::new(max, 1.0);
        let total = tokens.iter().map(|token| u128::from(weigher.weight(token.0))).sum();
        reaching(&tokens, wanted(total, top_p), weigher).unwrap()
    }

    #[test]
    fn a_nucleus_is_the_smallest_set_that_reaches_top_p() {
        let found = [0.0, 0.49, 0.6, 0.8, 0.9].map(|top_p| count(&[0.5, 0.25, 0.125, 0.125], top_p));
        assert_eq!(found, [1, 1, 2, 3, 4]);
        assert_eq!([0.5, 0.51].map(|top_p| count(&[0.125; 8], top_p)), [4, 5]);
    }

    #[test]
    fn what_is_known_may_not_reach() {
        let tokens = likely([1.0, 1.0]);
        let weigher = Weigher::new(1.0, 1.0);
        let total = weigher.sum(&[1.0; 30], f32::NEG_INFINITY);
        assert_eq!(reaching(&tokens, wanted(total, 0.066), weigher), Ok(2));
        assert_eq!(reaching(&tokens, wanted(total, 0.48), weigher), Err(2 * WEIGHT_MAX as u128));
    }

    #[test]
    fn min_p_keeps_what_is_likely_enough_and_not_one_float_less() {
        for (max, min_p, temperature) in [(3.0f32, 0.1f32, 1.0f32), (-40.0, 0.5, 0.7), (0.001, 1e-4, 2.0)] {
            let sampling = Sampling { min_p, temperature, ..Sampling::GREEDY };
            let floor = min_p_floor(max, &sampling);
            let probability = |logit: f32| (f64::from(logit - max) / f64::from(temperature)).exp();
            assert!((probability(floor) / f64::from(min_p) - 1.0).abs() < 1e-4, "{floor}");
            let least = (f64::from(min_p) * WEIGHT_MAX) as u64;
            assert!(weight(floor, max, temperature) >= least);
            assert!(weight(floor.next_down(), max, temperature) < least);
        }
        let all = Sampling { min_p: 1.0, temperature: 1.0, ..Sampling::GREEDY };
        assert_eq!(min_p_floor(3.0, &all), 3.0);
    }

    #[test]
    fn an_infinite_logit_has_all_the_weight_and_a_nan_none() {
        let inf = f32::INFINITY;
        assert_eq!([inf, 1.0, -inf, f32::NAN].map(|l| weight(l, inf, 1.0) > 0), [true, false, false, false]);
        assert_eq!(weight(-inf, -inf, 1.0), WEIGHT_MAX as u64);
    }
}
