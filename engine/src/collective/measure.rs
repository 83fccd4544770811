//! What a link does, by sums over it: how long a short one takes, and at which rate a long one goes.

use super::{Collective, CollectiveError};
use flotilla_shared::LinkRate;
use std::time::{Duration, Instant};

const SHORT_RUNS: usize = 200;
const LONG_RUNS: usize = 7;
const SHORT: usize = 16;
/// Elements of a long vector: goes in pieces, two messages deep.
const LONG: usize = 256 << 10;

/// Of a group of two; both call it. Medians, after some sums that do not count.
pub fn link(group: &mut dyn Collective) -> Result<LinkRate, CollectiveError> {
    assert_eq!(group.size(), 2, "a link has two ends");
    let latency = sums(group, SHORT, SHORT_RUNS)?;
    let long = sums(group, LONG, LONG_RUNS)?;
    let moving = long.saturating_sub(2 * latency).max(Duration::from_nanos(1));
    Ok(LinkRate { latency_s: latency.as_secs_f64(), bytes_per_s: (4 * LONG) as f64 / moving.as_secs_f64() })
}

fn sums(group: &mut dyn Collective, elements: usize, runs: usize) -> Result<Duration, CollectiveError> {
    let mut x = vec![0.0f32; elements];
    let mut times = Vec::with_capacity(runs);
    for run in 0..runs + runs.div_ceil(4) {
        let start = Instant::now();
        group.all_reduce(&mut x)?;
        if run >= runs.div_ceil(4) {
            times.push(start.elapsed());
        }
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
