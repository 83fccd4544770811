//! Whole units over ranks so that the slowest takes as little as can be.

/// How a rank takes units: `base_s`, and `unit_s` for each, `most` of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taker {
    pub base_s: f64,
    pub unit_s: f64,
    pub most: usize,
}

impl Taker {
    fn within(&self, limit_s: f64) -> usize {
        let room = limit_s - self.base_s;
        if room < 0.0 {
            return 0;
        }
        // A unit that takes no time is taken while there is room.
        let units = room / self.unit_s * (1.0 + 1e-12);
        if units < self.most as f64 { units as usize } else { self.most }
    }

    fn time_s(&self, units: usize) -> f64 {
        self.base_s + units as f64 * self.unit_s
    }
}

/// Units by rank; `None` where there is no room for all.
pub(crate) fn level(units: usize, takers: &[Taker]) -> Option<Vec<usize>> {
    let room = takers.iter().fold(0usize, |sum, taker| sum.saturating_add(taker.most));
    if room < units {
        return None;
    }
    let within = |limit| takers.iter().map(|taker| taker.within(limit)).sum::<usize>();
    let (mut low, mut high) = (0.0, takers.iter().map(|taker| taker.time_s(units)).fold(0.0, f64::max));
    for _ in 0..48 {
        let middle = 0.5 * (low + high);
        if within(middle) >= units { high = middle } else { low = middle }
    }
    let mut counts: Vec<usize> = takers.iter().map(|taker| taker.within(high)).collect();
    let mut surplus = counts.iter().sum::<usize>() - units;
    while surplus > 0 {
        let slowest = (0..counts.len()).filter(|&rank| counts[rank] > 0);
        let slowest = slowest.max_by(|&a, &b| {
            takers[a].time_s(counts[a]).total_cmp(&takers[b].time_s(counts[b])).then(a.cmp(&b))
        });
        let rank = slowest.expect("what is too much is somebody's");
        // Ranks that take no time for a unit may have far too many.
        let many = if takers[rank].unit_s > 0.0 { 1 } else { surplus.min(counts[rank]) };
        counts[rank] -= many;
        surplus -= many;
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takers(list: &[(f64, usize)]) -> Vec<Taker> {
        list.iter().map(|&(unit_s, most)| Taker { base_s: 0.0, unit_s, most }).collect()
    }

    #[test]
    fn equal_ranks_get_equal_parts() {
        let four = takers(&[(1.0, 90); 4]);
        assert_eq!(level(90, &four), Some(vec![23, 23, 22, 22]));
        assert_eq!(level(8, &takers(&[(1.0, 8); 3])), Some(vec![3, 3, 2]));
    }

    #[test]
    fn the_fast_get_more_within_their_room() {
        assert_eq!(level(9, &takers(&[(1.0, 9), (2.0, 9)])), Some(vec![6, 3]));
        assert_eq!(level(9, &takers(&[(1.0, 4), (2.0, 9)])), Some(vec![4, 5]));
        assert_eq!(level(9, &takers(&[(1.0, 4), (2.0, 4)])), None);
        assert_eq!(level(5, &takers(&[(0.0, 3), (1.0, 9)])), Some(vec![3, 2]));
    }

    /// Against every way to hand out the units.
    #[test]
    fn no_way_is_faster() {
        let takers = [(1.0, 7), (1.6, 3), (2.3, 9)];
        let takers: Vec<Taker> =
            takers.iter().map(|&(unit_s, most)| Taker { base_s: 0.3 * unit_s, unit_s, most }).collect();
        let slowest = |counts: &[usize]| {
            counts.iter().zip(&takers).map(|(&count, taker)| taker.time_s(count)).fold(0.0, f64::max)
        };
        for units in 0..=19 {
            let mut best = f64::INFINITY;
            for a in 0..=units.min(7) {
                for b in (0..=(units - a).min(3)).filter(|b| units - a - b <= 9) {
                    best = best.min(slowest(&[a, b, units - a - b]));
                }
            }
            let found = level(units, &takers).unwrap();
            assert_eq!(found.iter().sum::<usize>(), units);
            assert!(slowest(&found) <= best + 1e-9, "{units}: {found:?}");
        }
    }
}
