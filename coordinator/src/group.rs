//! The workers of one group as the driver sees them: something that is sent steps and answers them in
//! order, or is lost. Who they are, and how they are spoken to, is the business of whoever forms the group.

use std::future::Future;

use flotilla_scheduler::GroupFault;
use flotilla_shared::step::StepTimes;
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

    /// What each rank took for the step whose outcome came last, by rank; nothing, if it is not known.
    fn rank_times(&self) -> &[RankTime] {
        &[]
    }

    /// The step that failed is not to be counted against the workers: what was in it is suspected.
    fn acquit(&mut self) {}
}

/// What a step took on one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankTime {
    pub compute_us: u64,
    pub times: StepTimes,
    pub memory_bytes: Option<u64>,
}

impl From<&StepOutcome> for RankTime {
    fn from(outcome: &StepOutcome) -> RankTime {
        let StepOutcome { compute_us, times, memory_bytes, .. } = *outcome;
        RankTime { compute_us, times, memory_bytes }
    }
}

/// Why a group is no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    #[error("worker of rank {rank} is lost: {reason}")]
    Lost { rank: Rank, reason: String },
    /// It was told to go, and said so.
    #[error("worker of rank {rank} has left: {reason}")]
    Left { rank: Rank, reason: String },
    #[error("worker of rank {rank} refused step {step}: {reason}")]
    Refused { rank: Rank, step: StepId, reason: String },
    /// Another rank, or the link to it, is at fault.
    #[error("worker of rank {rank} was left alone in step {step}: {reason}")]
    Stranded { rank: Rank, step: StepId, reason: String },
    /// Every rank must sample the same tokens; where they do not, none can be trusted.
    #[error("ranks {} and {} disagree on step {step}: {difference}", ranks.0, ranks.1)]
    Disagree { step: StepId, ranks: (Rank, Rank), difference: String },
    #[error("{0}")]
    Abandoned(GroupFault),
    /// Nothing is wrong with it.
    #[error("more workers have come, and form a larger group")]
    Outgrown,
    /// Nor here; no other takes its place.
    #[error("the replica was dissolved by order")]
    Dissolved,
}

/// [`GroupError`] in a word, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReason {
    WorkerLost,
    StepRefused,
    RanksDisagree,
    OutcomeUnfit,
    Outgrown,
    Dissolved,
}

impl LossReason {
    pub const ALL: [LossReason; 6] = [
        LossReason::WorkerLost,
        LossReason::StepRefused,
        LossReason::RanksDisagree,
        LossReason::OutcomeUnfit,
        LossReason::Outgrown,
        LossReason::Dissolved,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            LossReason::WorkerLost => "worker_lost",
            LossReason::StepRefused => "step_refused",
            LossReason::RanksDisagree => "ranks_disagree",
            LossReason::OutcomeUnfit => "outcome_unfit",
            LossReason::Outgrown => "outgrown",
            LossReason::Dissolved => "dissolved",
        }
    }
}

impl GroupError {
    pub fn reason(&self) -> LossReason {
        match self {
            GroupError::Lost { .. } | GroupError::Left { .. } => LossReason::WorkerLost,
            GroupError::Refused { .. } | GroupError::Stranded { .. } => LossReason::StepRefused,
            GroupError::Disagree { .. } => LossReason::RanksDisagree,
            GroupError::Abandoned(_) => LossReason::OutcomeUnfit,
            GroupError::Outgrown => LossReason::Outgrown,
            GroupError::Dissolved => LossReason::Dissolved,
        }
    }

    /// Whether a worker is gone without a word, or cannot be reached by another: by chance, as a rule.
    pub fn is_loss(&self) -> bool {
        matches!(self, GroupError::Lost { .. } | GroupError::Stranded { .. })
    }

    /// Whether what was in the step may be why workers failed in it. That some are gone is judged by itself.
    pub fn may_be_of_a_request(&self) -> bool {
        match self {
            GroupError::Refused { .. } | GroupError::Disagree { .. } => true,
            GroupError::Abandoned(fault) => !matches!(fault, GroupFault::NoBlocks),
            GroupError::Lost { .. } | GroupError::Left { .. } | GroupError::Stranded { .. } => false,
            GroupError::Outgrown | GroupError::Dissolved => false,
        }
    }
}
