//! How fast something comes, and how long it still takes: of the last seconds, for people.

use std::collections::VecDeque;
use std::time::Duration;

/// What lies further back says nothing about now.
const WINDOW: Duration = Duration::from_secs(5);
/// A rate of less time is noise.
const SPAN_MIN: Duration = Duration::from_millis(500);

/// Bytes by time. The clock is the caller's.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// When, and how many were there.
    seen: VecDeque<(Duration, u64)>,
    bytes_total: u64,
}

impl Pace {
    /// At `now` there are `bytes_done` of `bytes_total`.
    pub fn see(&mut self, now: Duration, bytes_done: u64, bytes_total: u64) {
        // Another load.
        if self.bytes_total != bytes_total || self.bytes_done() > bytes_done {
            self.seen.clear();
            self.bytes_total = bytes_total;
        }
        while self.seen.get(1).is_some_and(|(then, _)| *then + WINDOW <= now) {
            self.seen.pop_front();
        }
        self.seen.push_back((now, bytes_done));
    }

    pub fn bytes_done(&self) -> u64 {
        self.seen.back().map_or(0, |(_, bytes)| *bytes)
    }

    pub fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    /// None before it is known.
    pub fn bytes_per_second(&self, now: Duration) -> Option<f64> {
        let (then, before) = self.seen.front()?;
        let span = now.saturating_sub(*then);
        (span >= SPAN_MIN).then(|| (self.bytes_done() - before) as f64 / span.as_secs_f64())
    }

    /// None before it is known, or while nothing comes.
    pub fn seconds_left(&self, now: Duration) -> Option<f64> {
        let left = self.bytes_total - self.bytes_done();
        if left == 0 {
            return Some(0.0);
        }
        self.bytes_per_second(now).filter(|rate| *rate > 0.0).map(|rate| left as f64 / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn the_pace_is_that_of_the_last_seconds() {
        let mut pace = Pace::default();
        assert_eq!(pace.seconds_left(at(0.0)), Some(0.0), "of nothing");
        pace.see(at(0.0), 0, 10_000);
        assert_eq!((pace.bytes_per_second(at(0.1)), pace.seconds_left(at(0.1))), (None, None));
        for tick in 1..=20u32 {
            pace.see(at(f64::from(tick)), u64::from(tick) * 100, 10_000);
        }
        assert_eq!(pace.bytes_per_second(at(20.0)), Some(100.0));
        assert_eq!(pace.seconds_left(at(20.0)), Some(80.0));
        // Twice as fast now.
        for tick in 1..=10u32 {
            pace.see(at(20.0 + f64::from(tick)), 2000 + u64::from(tick) * 200, 10_000);
        }
        assert_eq!(pace.bytes_per_second(at(30.0)), Some(200.0));
        assert_eq!(pace.seconds_left(at(30.0)), Some(30.0));
    }

    #[test]
    fn a_standstill_has_no_end_and_another_load_begins_anew() {
        let mut pace = Pace::default();
        pace.see(at(0.0), 0, 100);
        pace.see(at(1.0), 50, 100);
        for tick in 2..20 {
            pace.see(at(f64::from(tick)), 50, 100);
        }
        assert_eq!((pace.bytes_per_second(at(20.0)), pace.seconds_left(at(20.0))), (Some(0.0), None));
        pace.see(at(21.0), 10, 70);
        assert_eq!((pace.bytes_done(), pace.bytes_total()), (10, 70));
        assert_eq!(pace.bytes_per_second(at(21.1)), None);
    }
}
