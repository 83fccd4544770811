//! The workers of one group as the driver sees them: something that runs a step and answers, or is
//! lost. Who they are, and how they are spoken to, is the business of whoever forms the group.

use std::future::Future;

use flotilla_scheduler::GroupFault;
use flotilla_shared::{Rank, StepId, StepOutcome, StepPlan};

pub trait Group: Send + 'static {
    /// Runs one step on every rank. After an error the group is not asked again. The future may be
    /// dropped before it is done: the group is then dropped with it.
    fn step(&mut self, plan: StepPlan) -> impl Future<Output = Result<StepOutcome, GroupError>> + Send;
}

/// Why a group is no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    #[error("worker of rank {rank} is lost: {reason}")]
    Lost { rank: Rank, reason: String },
    #[error("worker of rank {rank} refused step {step}: {reason}")]
    Refused { rank: Rank, step: StepId, reason: String },
    /// Every rank must sample the same tokens; where they do not, none can be trusted.
    #[error("ranks {} and {} disagree on step {step}: {difference}", ranks.0, ranks.1)]
    Disagree { step: StepId, ranks: (Rank, Rank), difference: String },
    #[error("{0}")]
    Abandoned(GroupFault),
}
