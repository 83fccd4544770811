//! The workers of one group as the driver sees them: something that is sent steps and answers them in
//! order, or is lost. Who they are, and how they are spoken to, is the business of whoever forms the group.

use std::future::Future;

use flotilla_scheduler::GroupFault;
use flotilla_shared::{Rank, StepId, StepOutcome, StepPlan};

pub trait Group: Send + 'static {
    /// Stages that a step passes, one after the other.
    fn stages(&self) -> usize {
        1
    }

    /// Sends one step to every rank, behind those that are under way: they are carried out in this order.
    /// After an error the group is not asked again.
    fn send(&mut self, plan: &StepPlan) -> Result<(), GroupError>;

    /// The outcome of the oldest step that was sent and is not answered. The future may be dropped before it
    /// is done, and asked for again: nothing of the outcome is lost.
    fn outcome(&mut self) -> impl Future<Output = Result<StepOutcome, GroupError>> + Send;
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
    /// Nothing is wrong with it.
    #[error("more workers have come, and form a larger group")]
    Outgrown,
}
