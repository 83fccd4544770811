//! A group's first step: one row of a sequence that nobody asked for, before the group is said to serve. What is wrong
//! with a device, a kernel or a link is then found by us, and not by whoever asks first.
//!
//! It is the first step on the wire, so that whoever drives the group counts from one as ever, and its own first step
//! is the second there.

use super::remote::RemoteGroup;
use crate::group::{Group, GroupError};
use flotilla_shared::step::{Admission, SequenceWork};
use flotilla_shared::{BlockId, Rank, Sampling, SequenceId, StepId, StepPlan, TokenId};
use std::time::Duration;

/// Others are counted from one.
pub(super) const SEQUENCE: SequenceId = SequenceId(0);

/// Kernels may be compiled in it, and weights read for the first time.
const TIMEOUT: Duration = Duration::from_secs(300);

impl RemoteGroup {
    /// Carries it out. After an error the group is of no use.
    pub(super) async fn try_out(&mut self, token: TokenId) -> Result<(), GroupError> {
        let plan = StepPlan { epoch: self.epoch(), step: StepId(1), ..of(token) };
        self.send(&plan)?;
        let outcome = tokio::time::timeout(TIMEOUT, self.outcome()).await;
        let silent = |_| GroupError::Lost {
            rank: self.silent().unwrap_or(Rank(0)),
            reason: format!("no outcome of the first step in {} s", TIMEOUT.as_secs()),
        };
        outcome.map_err(silent)??;
        self.begin_behind(StepId(1), SEQUENCE);
        Ok(())
    }
}

/// One row, and a token after it. Its blocks are given again as soon as the sequence is released.
fn of(token: TokenId) -> StepPlan {
    let admission = Admission { sequence: SEQUENCE, sampling: Sampling::GREEDY, ..Admission::default() };
    let work = SequenceWork {
        sequence: SEQUENCE,
        tokens: vec![token],
        blocks: vec![BlockId(0)],
        window_blocks: vec![BlockId(0)],
        sample: true,
        ..SequenceWork::default()
    };
    StepPlan { admit: vec![admission], work: vec![work], ..StepPlan::default() }
}
