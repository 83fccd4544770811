//! What a link does, by sums over it: how long a short one takes, and at which rate a long one goes.

use super::{Collective, CollectiveError};
use flotilla_shared::LinkRate;
use std::time::{Duration, Instant};

const SHORT: usize = 16;
/// Elements of a long vector: goes in pieces, two messages deep.
const LONG: usize = 256 << 10;

/// Sums of one kind: at most so many, and no more than take this long together; those before do not count.
struct Runs {
    elements: usize,
    before: usize,
    max: usize,
    budget: Duration,
}

const SHORT_RUNS: Runs = Runs { elements: SHORT, before: 10, max: 200, budget: Duration::from_secs(1) };
const LONG_RUNS: Runs = Runs { elements: LONG, before: 1, max: 7, budget: Duration::from_secs(2) };

/// Of a group of two; both call it. Medians.
pub fn link(group: &mut dyn Collective) -> Result<LinkRate, CollectiveError> {
    assert_eq!(group.size(), 2, "a link has two ends");
    let latency = SHORT_RUNS.median(group)?;
    let long = LONG_RUNS.median(group)?;
    // Where all of it seems to be latency, something else was going on.
    let moving = long.saturating_sub(2 * latency).max(long / 4);
    let bytes_per_s = (4 * LONG) as f64 / moving.as_secs_f64().max(1e-9);
    Ok(LinkRate { latency_s: latency.as_secs_f64(), bytes_per_s })
}

impl Runs {
    fn median(&self, group: &mut dyn Collective) -> Result<Duration, CollectiveError> {
        let mut x = vec![0.0f32; self.elements];
        let is_first = group.place() == 0;
        let mut time = |x: &mut [f32]| {
            let start = Instant::now();
            group.all_reduce(x).map(|()| start.elapsed())
        };
        let mut slowest = Duration::ZERO;
        for _ in 0..self.before {
            slowest = slowest.max(time(&mut x)?);
        }
        // Both must make as many: the first end says how many, and a sum tells the other.
        let runs = self.budget.as_secs_f64() / slowest.as_secs_f64().max(1e-9);
        x[0] = if is_first { runs.clamp(1.0, self.max as f64).floor() as f32 } else { 0.0 };
        time(&mut x)?;
        let runs = x[0] as usize;
        x[0] = 0.0;
        let mut times = (0..runs).map(|_| time(&mut x)).collect::<Result<Vec<_>, _>>()?;
        times.sort_unstable();
        Ok(times[times.len() / 2])
    }
}
