//! How long something took, each time: a histogram of fixed buckets, small enough to be copied at each scrape.

use std::time::Duration;

/// Upper bounds of the buckets: what goes on within a step takes from some microseconds to a long prompt's second.
pub const BOUNDS_S: [f64; 14] =
    [50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1.0];

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Durations {
    /// Each bucket's own; the last is beyond all bounds.
    counts: [u64; BOUNDS_S.len() + 1],
    sum: Duration,
}

impl Durations {
    pub(super) fn add(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.counts[BOUNDS_S.partition_point(|bound| *bound < seconds)] += 1;
        self.sum += time;
    }

    pub fn sum(&self) -> Duration {
        self.sum
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Upper bounds in seconds, the last infinite, each with how many are in just that bucket.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        BOUNDS_S.into_iter().chain([f64::INFINITY]).zip(self.counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_first_bucket_that_holds_it() {
        let mut durations = Durations::default();
        for us in [0, 50, 51, 1_000, 1_001, 1_000_000, 1_000_001, 9_000_000] {
            durations.add(Duration::from_micros(us));
        }
        let filled: Vec<_> = durations.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(50e-6, 2), (100e-6, 1), (1e-3, 1), (2e-3, 1), (1.0, 1), (f64::INFINITY, 2)]);
        assert_eq!((durations.count(), durations.sum().as_micros()), (8, 11_002_103));
        assert!(BOUNDS_S.is_sorted());
    }
}
