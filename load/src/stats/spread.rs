//! How times are spread: HDR histograms of microseconds at three digits, told in milliseconds.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub count: u64,
    pub mean_ms: f64,
    pub min_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

/// A bar of a plot.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    pub from_ms: f64,
    pub to_ms: f64,
    pub count: u64,
}

/// Of microseconds.
pub fn histogram(values_us: impl Iterator<Item = u64>) -> Histogram<u64> {
    let mut histogram = Histogram::new(3).expect("three digits are possible");
    // It grows as it must.
    values_us.for_each(|value| histogram.record(value).expect("it has room for every number"));
    histogram
}

impl Spread {
    /// Nothing was measured, so that there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn of(histogram: &Histogram<u64>) -> Spread {
        if histogram.is_empty() {
            return Spread::default();
        }
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Spread {
            count: histogram.len(),
            mean_ms: histogram.mean() / 1e3,
            min_ms: histogram.min() as f64 / 1e3,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: histogram.max() as f64 / 1e3,
        }
    }
}

/// Bars of equal width on a logarithmic scale.
pub fn bins(histogram: &Histogram<u64>, count: usize) -> Vec<Bin> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let (low, high) = (histogram.min().max(1) as f64, histogram.max().max(2) as f64 * 1.001);
    let edge = |index: usize| low * (high / low).powf(index as f64 / count as f64);
    let bin = |index: usize| Bin { from_ms: edge(index) / 1e3, to_ms: edge(index + 1) / 1e3, count: 0 };
    let mut bins: Vec<Bin> = (0..count).map(bin).collect();
    for value in histogram.iter_recorded() {
        let place =
            ((value.value_iterated_to() as f64).max(low) / low).ln() / (high / low).ln() * count as f64;
        bins[(place as usize).min(count - 1)].count += value.count_at_value();
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_values_to_three_digits() {
        let spread = Spread::of(&histogram((1..=10_000).map(|n| n * 100)));
        for (found, exact) in [(spread.p50_ms, 500.0), (spread.p99_ms, 990.0), (spread.p999_ms, 999.0)] {
            assert!((found / exact - 1.0).abs() < 0.001, "{found} is not {exact}");
        }
        assert_eq!(spread.count, 10_000);
        assert_eq!(Spread::of(&histogram([].into_iter())), Spread::default());
    }

    #[test]
    fn bins_hold_every_value_once() {
        let bins = bins(&histogram((0..5000).map(|n| n * n)), 30);
        assert_eq!(bins.iter().map(|bin| bin.count).sum::<u64>(), 5000);
        assert!(bins.windows(2).all(|pair| (pair[0].to_ms - pair[1].from_ms).abs() < 1e-9));
    }
}
