//! Which experts a batch touches, with routing taken for uniform: how many in all, and how long the slowest rank takes
//! where each holds some of them whole.

/// Expected number of different experts of `experts` that `rows` tokens touch, each choosing `per_token` of them:
/// E (1 - (1 - K/E)^T).
pub fn distinct_experts(experts: usize, per_token: usize, rows: usize) -> f64 {
    let (e, k) = (experts as f64, per_token as f64);
    e * (1.0 - (1.0 - k / e).powf(rows as f64))
}

/// Expected time of the slowest rank, of which rank r holds `counts[r]` experts and takes `unit_s[r]` for each that is
/// touched; `touched` of all are, any with the same right as others.
///
/// Exact for whole numbers of touched experts, between which it is linear: how many a rank has of them is distributed as
/// marbles drawn without putting back, which are binomials of any one probability, given their sum.
pub fn slowest_whole_s(counts: &[usize], unit_s: &[f64], touched: f64) -> f64 {
    let experts: usize = counts.iter().sum();
    let touched = touched.clamp(0.0, experts as f64);
    let (below, part) = (touched.floor() as usize, touched.fract());
    let at = |drawn| slowest_of_drawn_s(counts, unit_s, experts, drawn);
    if part < 1e-9 { at(below) } else { (1.0 - part) * at(below) + part * at(below + 1) }
}

fn slowest_of_drawn_s(counts: &[usize], unit_s: &[f64], experts: usize, drawn: usize) -> f64 {
    let slowest = |count: &dyn Fn(usize) -> usize| {
        let times = counts.iter().zip(unit_s).map(|(&held, unit)| count(held) as f64 * unit);
        times.fold(0.0, f64::max)
    };
    if drawn == 0 || drawn >= experts {
        return slowest(&|held| if drawn == 0 { 0 } else { held });
    }
    let mut limits: Vec<f64> = Vec::new();
    for (&held, unit) in counts.iter().zip(unit_s) {
        limits.extend((0..=held.min(drawn)).map(|count| count as f64 * unit));
    }
    limits.sort_by(f64::total_cmp);
    limits.dedup_by(|a, b| (*a - *b).abs() <= 1e-12 * b.abs());
    let odds = Odds::new(counts, experts, drawn);
    // The mean of a quantity that is not negative is the integral of the chance that it is above.
    let mut expected_s = limits[0];
    for pair in limits.windows(2) {
        let above = 1.0 - odds.all_within(unit_s, pair[0]);
        if above < 1e-9 {
            break;
        }
        expected_s += above * (pair[1] - pair[0]);
    }
    expected_s
}

/// Chances of how many drawn experts each rank holds.
struct Odds {
    /// By rank: chance of 0, 1, … of its experts if each were drawn by itself.
    by_rank: Vec<Vec<f64>>,
    drawn: usize,
    /// Chance that all ranks together have `drawn`.
    whole: f64,
}

impl Odds {
    fn new(counts: &[usize], experts: usize, drawn: usize) -> Odds {
        let p = drawn as f64 / experts as f64;
        let ln_factorial: Vec<f64> = std::iter::once(0.0)
            .chain((1..=experts).scan(0.0, |sum, n| {
                *sum += (n as f64).ln();
                Some(*sum)
            }))
            .collect();
        let by_rank = counts.iter().map(|&held| {
            let chance = |count: usize| {
                let ways = ln_factorial[held] - ln_factorial[count] - ln_factorial[held - count];
                (ways + count as f64 * p.ln() + (held - count) as f64 * (1.0 - p).ln()).exp()
            };
            (0..=held.min(drawn)).map(chance).collect()
        });
        let mut odds = Odds { by_rank: by_rank.collect(), drawn, whole: 1.0 };
        odds.whole = odds.chance(&vec![drawn; counts.len()]);
        odds
    }

    /// Chance that no rank takes longer than `limit_s`.
    fn all_within(&self, unit_s: &[f64], limit_s: f64) -> f64 {
        let most: Vec<usize> = unit_s
            .iter()
            .map(
                |&unit| {
                    if unit > 0.0 { (limit_s / unit * (1.0 + 1e-12)).floor() as usize } else { self.drawn }
                },
            )
            .collect();
        self.chance(&most) / self.whole
    }

    /// Chance that the ranks have `drawn` together, none more than `most[r]`.
    fn chance(&self, most: &[usize]) -> f64 {
        let room: usize = self.by_rank.iter().zip(most).map(|(odds, &most)| most.min(odds.len() - 1)).sum();
        if room < self.drawn {
            return 0.0;
        }
        let mut sums = vec![0.0; self.drawn + 1];
        sums[0] = 1.0;
        for (odds, &most) in self.by_rank.iter().zip(most) {
            let odds = &odds[..odds.len().min(most + 1)];
            for sum in (0..=self.drawn).rev() {
                let ways = odds.iter().take(sum + 1).enumerate();
                sums[sum] = ways.map(|(count, odd)| odd * sums[sum - count]).sum();
            }
        }
        sums[self.drawn]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_touches_its_own_and_many_touch_all() {
        assert!((distinct_experts(128, 4, 1) - 4.0).abs() < 1e-9);
        assert!((distinct_experts(32, 4, 2) - 7.5).abs() < 1e-9);
        assert!(distinct_experts(32, 4, 512) > 31.999);
    }

    /// Counted over every choice of 4 of 8 experts.
    #[test]
    fn the_slowest_is_as_counted() {
        let (counts, unit_s) = ([3usize, 3, 2], [1.0, 1.0, 1.7]);
        let (mut total, mut ways) = (0.0, 0.0);
        for choice in 0u32..256 {
            if choice.count_ones() == 4 {
                let of = |mask: u32| f64::from((choice & mask).count_ones());
                total += of(0b111).max(of(0b11_1000)).max(1.7 * of(0b1100_0000));
                ways += 1.0;
            }
        }
        let found = slowest_whole_s(&counts, &unit_s, 4.0);
        assert!((found - total / ways).abs() < 1e-9, "{found} is not {}", total / ways);
    }

    /// One token over four ranks, as drawn 200,000 times for docs/adr/0001.
    #[test]
    fn one_token_waits_for_twice_the_mean() {
        for (held, drawn) in [(8, 2.05), (32, 2.11)] {
            let found = slowest_whole_s(&[held; 4], &[1.0; 4], 4.0);
            assert!((found - drawn).abs() < 0.01, "{found} is not {drawn}");
        }
        assert!((slowest_whole_s(&[32; 4], &[1.0; 4], 128.0) - 32.0).abs() < 1e-9);
        assert_eq!(slowest_whole_s(&[5], &[2.0], 3.0), 6.0);
    }
}
