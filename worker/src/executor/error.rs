//! Why a step was not run. What is wrong with one sequence's work is said in words by `held`.

use flotilla_engine::backend::BackendError;
use flotilla_engine::collective::CollectiveError;
use flotilla_engine::sample::SampleError;
use flotilla_shared::{Epoch, SequenceId, StepId};
use thiserror::Error;

/// Why a step was not run, or not finished. The group is unusable afterwards.
#[derive(Debug, Error)]
pub enum StepError {
    #[error(
        "stale step: expected step {step} of epoch {epoch}, got step {found_step} of epoch {found_epoch}"
    )]
    Stale { epoch: Epoch, step: StepId, found_epoch: Epoch, found_step: StepId },
    #[error("step has {found} rows, at most {max} were announced")]
    TooManyRows { found: usize, max: usize },
    #[error("sequence {0} is not held here")]
    UnknownSequence(SequenceId),
    #[error("sequence {0} is held here already, or has two works in one step")]
    DuplicateSequence(SequenceId),
    #[error("sequence {sequence}: {problem}")]
    Work { sequence: SequenceId, problem: String },
    #[error("sequence {0}: nothing can be sampled, for no logit is a number, or the mask allows no token")]
    NoToken(SequenceId),
    #[error("the last stage told tokens that cannot be read\nhint: the ranks do not run the same version")]
    Unreadable,
    #[error("sequence {0}: the last stage did not tell the token that its rows begin with")]
    Untold(SequenceId),
    #[error(transparent)]
    Sample(SampleError),
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl From<SampleError> for StepError {
    fn from(error: SampleError) -> Self {
        match error {
            SampleError::Backend(error) => error.into(),
            SampleError::Collective(error) => error.into(),
            error @ SampleError::Unreadable { .. } => StepError::Sample(error),
        }
    }
}
