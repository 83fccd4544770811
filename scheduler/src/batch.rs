//! A step being put together, in a plan whose vectors were used before: a step allocates nothing once its
//! like has been.

use crate::accounts::AccountId;
use crate::lanes::Lane;
use crate::line::Line;
use crate::sequence::{Seat, Sequence};
use flotilla_shared::step::SequenceWork;
use flotilla_shared::{SequenceId, StepPlan, TokenId};
use std::time::Duration;

/// Plans and lists that came back.
#[derive(Default)]
pub struct Spares {
    plans: Vec<StepPlan>,
    works: Vec<SequenceWork>,
    samples: Vec<Vec<Sample>>,
}

/// More than are ever in use at once.
const PLANS_MAX: usize = 64;
const WORKS_MAX: usize = 1024;

impl Spares {
    pub fn plan(&mut self) -> StepPlan {
        self.plans.pop().unwrap_or_default()
    }

    pub fn samples(&mut self) -> Vec<Sample> {
        self.samples.pop().unwrap_or_default()
    }

    /// A plan that was carried out, or sent.
    pub fn take_back(&mut self, mut plan: StepPlan) {
        for mut work in plan.work.drain(..) {
            if self.works.len() < WORKS_MAX {
                work.tokens.clear();
                work.blocks.clear();
                work.window_blocks.clear();
                self.works.push(SequenceWork {
                    tokens: work.tokens,
                    blocks: work.blocks,
                    window_blocks: work.window_blocks,
                    ..SequenceWork::default()
                });
            }
        }
        plan.release.clear();
        plan.admit.clear();
        if self.plans.len() < PLANS_MAX {
            self.plans.push(plan);
        }
    }

    pub fn take_back_samples(&mut self, mut samples: Vec<Sample>) {
        samples.clear();
        if self.samples.len() < PLANS_MAX {
            self.samples.push(samples);
        }
    }
}

/// A token, or several with guesses, that is to come. The seat finds the sequence, and finds none if it
/// ended meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub seat: Seat,
    pub sequence: SequenceId,
    pub drafts: usize,
}

pub struct Batch<'a> {
    pub now: Duration,
    /// Whose sequences decode.
    pub lane: Lane,
    pub rows_free: usize,
    pub plan: StepPlan,
    pub samples: Vec<Sample>,
    /// Rows for each client, which are not on its account yet: of each position one, however often it is computed.
    pub served: &'a mut Vec<(AccountId, usize)>,
    pub spares: &'a mut Spares,
}

impl Batch<'_> {
    /// So many rows of the sequence, which has blocks for them, and guesses after them.
    pub fn add(&mut self, sequence: &mut Sequence, rows: usize, drafts: &[TokenId]) {
        if rows == 0 {
            return;
        }
        if !std::mem::replace(&mut sequence.announced, true) {
            self.plan.admit.push(sequence.admission());
        }
        let mut work = self.spares.works.pop().unwrap_or_default();
        let before = sequence.computed;
        sequence.next_work(rows, drafts, &mut work);
        if work.sample {
            let (seat, sequence) = (sequence.seat, sequence.id);
            self.samples.push(Sample { seat, sequence, drafts: drafts.len() });
        }
        self.rows_free -= work.tokens.len();
        self.served.push((sequence.account(), sequence.charge(before)));
        self.plan.work.push(work);
    }

    /// Puts the rows so far on the accounts of those who have them.
    pub fn charge(&mut self, line: &mut Line) {
        self.served.drain(..).for_each(|(account, rows)| line.serve(account, rows));
    }
}
