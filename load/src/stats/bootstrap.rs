//! Confidence by the bootstrap: what was measured is drawn from again and again, with putting back, and a figure is as
//! sure as it varies little. Blocks of neighbours are drawn, not single values: requests that ran beside each other
//! were slow or fast together, and single draws would take noise for knowledge.

use crate::chance::Chance;
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl Interval {
    /// Whether nothing lies within it too.
    pub fn may_be_none(&self) -> bool {
        self.low <= 0.0 && self.high >= 0.0
    }
}

const DRAWS: usize = 2000;
/// 95 %.
const OUTSIDE: f64 = 0.05;

/// `figure` of `after` less that of `before`, and where 95 of 100 draws of it lie. Values are in order of time.
pub fn difference(before: &[f64], after: &[f64], figure: &dyn Fn(&mut [f64]) -> f64, seed: u64) -> Interval {
    let value = figure(&mut after.to_vec()) - figure(&mut before.to_vec());
    let mut chance = Chance::new(seed);
    let mut draw = || figure(&mut drawn(after, &mut chance)) - figure(&mut drawn(before, &mut chance));
    let mut differences: Vec<f64> = (0..DRAWS).map(|_| draw()).collect();
    differences.sort_by(f64::total_cmp);
    let at = |share: f64| differences[((DRAWS - 1) as f64 * share).round() as usize];
    Interval { value, low: at(OUTSIDE / 2.0), high: at(1.0 - OUTSIDE / 2.0) }
}

/// As many values, in blocks of the cube root of their number, which begin anywhere; behind the last comes the first.
fn drawn(values: &[f64], chance: &mut Chance) -> Vec<f64> {
    let block = (values.len() as f64).cbrt().ceil() as usize;
    let mut drawn = Vec::with_capacity(values.len() + block);
    while drawn.len() < values.len() {
        let start = chance.below(values.len());
        drawn.extend((start..start + block).map(|index| values[index % values.len()]));
    }
    drawn.truncate(values.len());
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(values: &mut [f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    fn noise(seed: u64, count: usize, around: f64) -> Vec<f64> {
        let mut chance = Chance::new(seed);
        (0..count).map(|_| around + chance.normal()).collect()
    }

    /// Of 200 pairs without a difference about ten are taken for one; of pairs that differ by a deviation, all.
    #[test]
    fn noise_is_told_from_a_difference() {
        let wrong = |around: f64| {
            let differs = |seed: &u64| {
                let (before, after) = (noise(2 * seed, 60, 0.0), noise(2 * seed + 1, 60, around));
                !difference(&before, &after, &mean, *seed).may_be_none()
            };
            (0..200).filter(differs).count()
        };
        let (without, with) = (wrong(0.0), wrong(1.0));
        assert!((2..=30).contains(&without), "seeds 0 to 399: {without} of 200");
        assert!(with >= 198, "seeds 0 to 399: {with} of 200");
    }

    #[test]
    fn an_interval_has_the_width_that_statistics_know() {
        let interval = difference(&noise(1, 400, 0.0), &noise(2, 400, 0.5), &mean, 3);
        // 2 x 1.96 x sqrt(2 / 400)
        let width = interval.high - interval.low;
        assert!((0.2..0.36).contains(&width), "{interval:?}");
        assert!(interval.low < interval.value && interval.value < interval.high);
        assert_eq!(interval, difference(&noise(1, 400, 0.0), &noise(2, 400, 0.5), &mean, 3));
    }

    /// Neighbours that are alike hold less knowledge than as many strangers: the interval is wider.
    #[test]
    fn values_that_come_in_runs_are_not_trusted_as_single_ones() {
        let runs = |seed| noise(seed, 40, 0.0).into_iter().flat_map(|value| [value; 8]).collect::<Vec<_>>();
        let interval = difference(&runs(1), &runs(2), &mean, 3);
        let alone = difference(&noise(1, 320, 0.0), &noise(2, 320, 0.0), &mean, 3);
        assert!(interval.high - interval.low > 1.6 * (alone.high - alone.low), "{interval:?} {alone:?}");
    }
}
