//! The course of a run: what came in each of equal parts of its time.

use crate::record::Record;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    pub part_s: f64,
    /// Tokens that came, those of a piece at its time, and those of an answer without pieces at its end.
    pub tokens: Vec<f64>,
    pub done: Vec<u64>,
    pub failed: Vec<u64>,
}

/// Not fewer, so that a bootstrap has something to draw from; the parts are a second at most.
const PARTS_MIN: u64 = 60;

impl Timeline {
    pub fn of(records: &[Record], elapsed_us: u64) -> Timeline {
        let part_us = (elapsed_us / PARTS_MIN).clamp(1, 1_000_000);
        let parts = (elapsed_us / part_us + 1) as usize;
        let place = |us: u64| ((us / part_us) as usize).min(parts - 1);
        let mut line = Timeline {
            part_s: part_us as f64 / 1e6,
            tokens: vec![0.0; parts],
            done: vec![0; parts],
            failed: vec![0; parts],
        };
        for record in records {
            // What one piece holds is not said: the tokens are dealt out evenly.
            let each = record.tokens() as f64 / record.pieces_us.len().max(1) as f64;
            record.pieces_us.iter().for_each(|us| line.tokens[place(*us)] += each);
            if record.pieces_us.is_empty() {
                line.tokens[place(record.ended_us)] += each;
            }
            line.done[place(record.ended_us)] += u64::from(record.is_done());
            line.failed[place(record.ended_us)] += u64::from(record.failure().is_some());
        }
        line
    }

    /// Tokens a second in each whole part: the last has only what was left of the time, and would look slow.
    pub fn tokens_per_s(&self) -> impl Iterator<Item = f64> {
        let whole = self.tokens.len().saturating_sub(1);
        self.tokens[..whole].iter().map(move |tokens| tokens / self.part_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token each 10 ms, over a time that ends in the middle of a part.
    #[test]
    fn a_steady_run_is_steady_to_its_end() {
        let pieces_us: Vec<u64> = (0..9040).map(|n| n * 10_000).collect();
        let record = Record { pieces_us, ended_us: 90_400_000, ..Record::default() };
        let line = Timeline::of(&[record], 90_400_000);
        assert_eq!((line.tokens.len(), line.tokens.iter().sum::<f64>()), (91, 9040.0));
        assert_eq!(line.tokens_per_s().collect::<Vec<_>>(), [100.0; 90]);
        assert_eq!(Timeline::of(&[], 0).tokens_per_s().count(), 0);
        assert_eq!(Timeline::default().tokens_per_s().count(), 0);
    }
}
