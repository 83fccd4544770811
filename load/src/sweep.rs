//! The highest rate that holds a level: doubled until it does not, then halved between the last two. A rate is only
//! ever asked for; who asks it runs it and says whether it held.

#[derive(Clone, Debug)]
pub struct Search {
    /// Where it starts, and the bounds that are known since.
    start: f64,
    held: Option<f64>,
    failed: Option<f64>,
    /// It ends when the bounds are so near to each other, as a part of the lower.
    precision: f64,
    left: usize,
}

impl Search {
    pub fn new(start: f64, precision: f64, runs_max: usize) -> Search {
        Search { start, held: None, failed: None, precision, left: runs_max }
    }

    /// The next rate to try.
    pub fn next(&self) -> Option<f64> {
        if self.left == 0 {
            return None;
        }
        match (self.held, self.failed) {
            (None, None) => Some(self.start),
            (Some(held), None) => Some(2.0 * held),
            (None, Some(failed)) => Some(failed / 2.0),
            (Some(held), Some(failed)) if failed / held - 1.0 <= self.precision => None,
            // The middle of what is a ratio.
            (Some(held), Some(failed)) => Some((held * failed).sqrt()),
        }
    }

    pub fn tell(&mut self, rate: f64, holds: bool) {
        self.left = self.left.saturating_sub(1);
        let bound = if holds { &mut self.held } else { &mut self.failed };
        *bound = Some(rate);
    }

    /// The highest that held.
    pub fn best(&self) -> Option<f64> {
        self.held
    }

    /// Whether the bounds came as near as was asked for.
    pub fn is_precise(&self) -> bool {
        self.held.zip(self.failed).is_some_and(|(held, failed)| failed / held - 1.0 <= self.precision)
    }
}

#[cfg(test)]
mod tests {
    use super::Search;

    fn found(limit: f64, start: f64, runs: usize) -> (Option<f64>, usize) {
        let mut search = Search::new(start, 0.05, runs);
        let mut tried = 0;
        while let Some(rate) = search.next() {
            search.tell(rate, rate <= limit);
            tried += 1;
        }
        (search.best(), tried)
    }

    #[test]
    fn a_limit_is_found_from_below_and_from_above() {
        for (limit, start) in [(37.3, 1.0), (37.3, 1000.0), (0.02, 1.0), (5.0, 5.0)] {
            let (best, tried) = found(limit, start, 40);
            let best = best.unwrap();
            assert!(best <= limit && limit < best * 1.05 + 1e-9, "{best} for {limit}");
            assert!(tried <= 18, "{tried} runs for {limit}");
        }
    }

    #[test]
    fn it_ends_where_nothing_holds_or_everything_does() {
        assert_eq!(found(0.0, 8.0, 12), (None, 12));
        assert_eq!(found(f64::INFINITY, 1.0, 5), (Some(16.0), 5));
    }
}
