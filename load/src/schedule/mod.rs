//! When requests are due, whatever the server does: an open loop. All of it is decided before the first is sent, by the
//! seed; it is worked out as it is needed, since a run may be meant to last until somebody stops it.

mod trace;

use crate::chance::Chance;
use std::time::Duration;

pub use trace::{Trace, TraceError};

/// One request, or the first of a conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Due {
    /// Microseconds from the beginning.
    pub at_us: u64,
    /// As a trace says.
    pub prompt_tokens: Option<usize>,
    pub max_tokens: Option<usize>,
}

/// Rates are requests a second.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// Independent of each other, as those of many users are.
    Poisson {
        rate: f64,
    },
    Constant {
        rate: f64,
    },
    /// `size` at once, evenly spaced, so that the rate is kept.
    Burst {
        rate: f64,
        size: usize,
    },
    /// Poisson, with a rate that goes evenly from one to the other over the whole duration.
    Ramp {
        from: f64,
        to: f64,
    },
    Replay(Trace),
}

/// Where it ends: whichever comes first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limit {
    pub requests: Option<usize>,
    pub duration: Option<Duration>,
}

impl Limit {
    fn seconds(&self) -> f64 {
        self.duration.map_or(f64::INFINITY, |duration| duration.as_secs_f64())
    }
}

impl Arrivals {
    /// In order of time. Without any limit only a trace has an end.
    pub fn dues(&self, seed: u64, limit: &Limit) -> impl Iterator<Item = Due> + Send + use<> {
        let seconds = limit.seconds();
        let within = move |due: &Due| (due.at_us as f64) < seconds * 1e6;
        let dues: Box<dyn Iterator<Item = Due> + Send> = match self {
            Arrivals::Replay(trace) => Box::new(trace.dues.clone().into_iter()),
            _ => Box::new(
                self.times(seed, seconds).map(|time| Due { at_us: (time * 1e6) as u64, ..Due::default() }),
            ),
        };
        dues.take_while(within).take(limit.requests.unwrap_or(usize::MAX))
    }

    /// Seconds, ascending, without an end.
    fn times(&self, seed: u64, seconds: f64) -> Box<dyn Iterator<Item = f64> + Send> {
        let mut chance = Chance::of(seed, 0);
        // The n-th arrival of a Poisson process of rate 1.
        let unit = (0..).scan(0.0, move |sum, _: u64| {
            *sum += chance.exponential();
            Some(*sum)
        });
        match *self {
            Arrivals::Poisson { rate } => Box::new(unit.map(move |expected| expected / rate)),
            Arrivals::Constant { rate } => Box::new((0u64..).map(move |n| n as f64 / rate)),
            Arrivals::Burst { rate, size } => {
                Box::new((0u64..).map(move |n| (n / size as u64) as f64 * size as f64 / rate))
            }
            Arrivals::Ramp { from, to } => {
                Box::new(unit.map(move |expected| ramp_time(from, to, seconds, expected)))
            }
            Arrivals::Replay(_) => unreachable!("a trace has its own times"),
        }
    }
}

/// When so many are expected, by the integral of the rate: `from t + (to - from) t² / 2 seconds`.
fn ramp_time(from: f64, to: f64, seconds: f64, expected: f64) -> f64 {
    let slope = (to - from) / seconds;
    let below_root = from * from + 2.0 * slope * expected;
    if slope == 0.0 {
        expected / from
    } else if below_root < 0.0 {
        // A rate that falls to nothing: so many are never reached.
        f64::INFINITY
    } else {
        (below_root.sqrt() - from) / slope
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 11;

    fn seconds(arrivals: &Arrivals, seconds: u64) -> Vec<f64> {
        let limit = Limit { requests: None, duration: Some(Duration::from_secs(seconds)) };
        arrivals.dues(SEED, &limit).map(|due| due.at_us as f64 / 1e6).collect()
    }

    #[test]
    fn poisson_has_its_rate_and_gaps_that_vary_as_much_as_they_last() {
        let times = seconds(&Arrivals::Poisson { rate: 50.0 }, 400);
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Of 20000 exponential gaps both have a deviation below one hundredth.
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "seed {SEED}: {mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.04, "seed {SEED}: {variance}");
    }

    #[test]
    fn constant_and_bursts_keep_their_rate_exactly() {
        let times = seconds(&Arrivals::Constant { rate: 4.0 }, 10);
        assert_eq!((times.len(), times[1], times[39]), (40, 0.25, 9.75));
        let times = seconds(&Arrivals::Burst { rate: 4.0, size: 8 }, 10);
        assert_eq!(times.len(), 40);
        assert!(times[..8].iter().all(|time| *time == 0.0) && times[8..16].iter().all(|time| *time == 2.0));
    }

    #[test]
    fn a_ramp_has_a_quarter_in_its_first_half_if_it_begins_at_nothing() {
        let times = seconds(&Arrivals::Ramp { from: 0.0, to: 100.0 }, 100);
        let first = times.iter().filter(|time| **time < 50.0).count();
        let share = first as f64 / times.len() as f64;
        assert!((times.len() as f64 / 5000.0 - 1.0).abs() < 0.06, "seed {SEED}: {}", times.len());
        assert!((share - 0.25).abs() < 0.03, "seed {SEED}: {share}");
        let falling = seconds(&Arrivals::Ramp { from: 100.0, to: 0.0 }, 100);
        let first = falling.iter().filter(|time| **time < 50.0).count() as f64 / falling.len() as f64;
        assert!((first - 0.75).abs() < 0.03, "seed {SEED}: {first}");
    }

    #[test]
    fn limits_end_it_and_a_seed_repeats_it() {
        let limit = Limit { requests: Some(3), duration: None };
        let poisson = Arrivals::Poisson { rate: 1.0 };
        let dues = |seed| poisson.dues(seed, &limit).collect::<Vec<Due>>();
        assert_eq!(dues(SEED).len(), 3);
        assert_eq!(dues(SEED), dues(SEED));
        assert_ne!(dues(SEED), dues(SEED + 1));
    }

    /// It was written down whole before the first request: this one would take a terabyte.
    #[test]
    fn a_run_until_somebody_stops_it_begins_at_once() {
        let limit = Limit { requests: None, duration: Some(Duration::from_secs(365 * 86_400)) };
        for arrivals in [Arrivals::Poisson { rate: 1000.0 }, Arrivals::Ramp { from: 1000.0, to: 0.0 }] {
            assert_eq!(arrivals.dues(SEED, &limit).take(3).count(), 3, "{arrivals:?}");
        }
    }
}
