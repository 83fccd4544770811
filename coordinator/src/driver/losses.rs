//! Which request may be why workers are lost. Who was in flight in two losses in a row, and got no further between them, is
//! let in alone; who is alone in flight in three losses, and gets no further between them, is given up. Chance kills workers
//! too: whoever gets further starts from zero.
//!
//! It knows ids and positions only. How steps that fail are judged is told in `suspects.rs`.

use std::collections::BTreeMap;

use flotilla_scheduler::Trial;
use flotilla_shared::{SequenceId, StepPlan};

/// In a row, and without getting further; then it is tried alone.
const TRIALS_FROM: u32 = 2;
/// Likewise; then it is tried here, and goes to another replica only if this one does not come back, or that one has nothing
/// to do. One more than above: two replicas may lose a worker at once by chance, and whoever fled from one to the other need
/// not wait.
const HELD_FROM: u32 = 3;
/// Alone in flight, in a row, and without getting further; then it is given up.
const ALONE_MAX: u32 = 3;
/// Rows from the first that was in flight, after which it has got further: the first of a decode is computed again as part
/// of a prompt, and only the second is by a decode.
const FURTHER_ROWS: u32 = 2;

/// The rows of one sequence in a step, without guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    pub sequence: SequenceId,
    from: u32,
    to: u32,
}

impl Rows {
    pub fn of(plan: &StepPlan) -> Vec<Rows> {
        let rows = plan.work.iter().map(|work| Rows {
            sequence: work.sequence,
            from: work.position,
            to: work.position + (work.tokens.len() as u32).saturating_sub(work.drafts),
        });
        rows.collect()
    }
}

/// Of one sequence that was in flight when a worker was lost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Met {
    /// Its rows before this position were answered, in whatever group.
    reached: u32,
    /// Losses in a row.
    losses: u32,
    /// Of those, while nothing else was in flight.
    alone: u32,
}

#[derive(Default)]
pub struct Losses {
    met: BTreeMap<SequenceId, Met>,
    on_trial: Option<SequenceId>,
}

impl Losses {
    /// A worker was lost with these rows in flight; `is_here` is of those that have not ended. Says who is given up.
    pub fn lost(&mut self, rows: &[Rows], is_here: impl Fn(SequenceId) -> bool) -> Option<SequenceId> {
        let first = rows.first()?.sequence;
        let alone = rows.iter().all(|rows| rows.sequence == first);
        let tried = self.on_trial.filter(|tried| rows.iter().any(|rows| rows.sequence == *tried));
        // Whoever runs beside one on trial has got further.
        let counts = |sequence: SequenceId| is_here(sequence) && tried.is_none_or(|tried| tried == sequence);
        let mut in_flight: BTreeMap<SequenceId, u32> = BTreeMap::new();
        for rows in rows.iter().filter(|rows| counts(rows.sequence)) {
            let from = in_flight.entry(rows.sequence).or_insert(rows.from);
            *from = rows.from.min(*from);
        }
        for (sequence, from) in in_flight {
            let met = self.met.entry(sequence).or_default();
            met.reached = met.reached.max(from);
            met.losses += 1;
            met.alone += u32::from(alone);
        }
        self.met.get(&first).filter(|met| alone && met.alone >= ALONE_MAX).map(|_| first)
    }

    /// A step of these was answered.
    pub fn answered(&mut self, rows: &[Rows]) {
        if self.met.is_empty() {
            return;
        }
        for rows in rows {
            let Some(met) = self.met.get_mut(&rows.sequence) else { continue };
            if met.losses > 0 && rows.to >= met.reached + FURTHER_ROWS {
                *met = Met { reached: rows.to, ..Met::default() };
                self.on_trial.take_if(|tried| *tried == rows.sequence);
            }
        }
    }

    /// Who alone is let in now; nobody: all are. The newest first: those that were there before were sound so far. Wherever one
    /// goes that is held, whoever runs there makes way for it.
    pub fn on_trial(&mut self) -> Option<Trial> {
        let suspects = self.met.iter().filter(|(_, met)| met.losses >= TRIALS_FROM);
        self.on_trial = self.on_trial.or_else(|| suspects.map(|(sequence, _)| *sequence).next_back());
        self.on_trial.map(|sequence| Trial { sequence, alone: self.holds(sequence) })
    }

    /// Whether it should be tried here, and not go on in another replica, where its trial would hold others up.
    pub fn holds(&self, sequence: SequenceId) -> bool {
        self.met.get(&sequence).is_some_and(|met| met.losses >= HELD_FROM)
    }

    /// It ended, or goes elsewhere with what it met here.
    pub fn forget(&mut self, sequence: SequenceId) -> Option<Met> {
        self.on_trial.take_if(|tried| *tried == sequence);
        self.met.remove(&sequence)
    }

    /// It comes from elsewhere.
    pub fn adopt(&mut self, sequence: SequenceId, met: Met) {
        self.met.insert(sequence, met);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: SequenceId = SequenceId(1);
    const OTHER: SequenceId = SequenceId(2);

    fn tried(sequence: SequenceId, alone: bool) -> Option<Trial> {
        Some(Trial { sequence, alone })
    }

    fn rows(sequence: SequenceId, from: u32, to: u32) -> Rows {
        Rows { sequence, from, to }
    }

    #[test]
    fn two_losses_make_a_trial_and_three_alone_an_end() {
        let mut losses = Losses::default();
        let both = [rows(ONE, 90, 91), rows(OTHER, 0, 80)];
        for trial in [None, tried(OTHER, false)] {
            assert_eq!(losses.lost(&both, |_| true), None);
            assert_eq!(losses.on_trial(), trial);
        }
        let ends: Vec<_> = (0..3)
            .map(|_| {
                let end = losses.lost(&both[1..], |_| true);
                assert_eq!(losses.on_trial(), tried(OTHER, true));
                end
            })
            .collect();
        assert_eq!(ends, [None, None, Some(OTHER)]);
        losses.forget(OTHER);
        assert_eq!(losses.on_trial(), tried(ONE, false), "it is let in next");
        losses.answered(&[rows(ONE, 0, 92)]);
        assert_eq!(losses.on_trial(), None);
    }

    #[test]
    fn what_is_computed_again_is_not_further() {
        let mut losses = Losses::default();
        for (further, end) in [(101, None), (101, None), (102, Some(ONE))] {
            assert_eq!(losses.lost(&[rows(ONE, 100, 101), rows(ONE, 101, 102)], |_| true), end);
            losses.answered(&[rows(ONE, 0, further)]);
        }
        // An outcome on its way when the worker was lost: the rows were answered before.
        for end in [None, None, Some(ONE)] {
            assert_eq!(losses.lost(&[rows(ONE, 0, 101)], |_| true), end);
            losses.answered(&[rows(ONE, 0, 103)]);
        }
    }

    #[test]
    fn who_gets_further_starts_from_zero_however_often_workers_are_lost() {
        let mut losses = Losses::default();
        for at in (0..300).step_by(2) {
            for _ in 0..2 {
                assert_eq!(losses.lost(&[rows(ONE, at, at + 1)], |_| true), None);
            }
            losses.answered(&[rows(ONE, 0, at + 2)]);
            assert_eq!(losses.on_trial(), None);
        }
    }

    #[test]
    fn another_in_flight_that_has_ended_leaves_it_not_alone() {
        let mut losses = Losses::default();
        for _ in 0..9 {
            assert_eq!(losses.lost(&[rows(ONE, 5, 6), rows(OTHER, 5, 6)], |sequence| sequence == ONE), None);
        }
        assert_eq!(losses.forget(OTHER).map(|met| met.losses), None);
        assert!(losses.holds(ONE));
    }
}
