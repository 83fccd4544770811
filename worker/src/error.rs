//! Why a worker ended, or left a group.

use crate::device::BuildError;
use crate::executor::StepError;
use flotilla_engine::collective::CollectiveError;
use flotilla_engine::cuda::CudaError;
use flotilla_engine::weights::WeightError;
use flotilla_proto::WireError;
use flotilla_trust::{Refusal, TlsError};
use std::net::SocketAddr;
use thiserror::Error;
use tonic::Status;

#[derive(Debug, Error)]
pub enum WorkerError {
    #[error(
        "cannot listen for other workers on {address}: {error}\nhint: choose another --collective-listen"
    )]
    Listen { address: SocketAddr, error: std::io::Error },
    #[error(
        "cannot listen for workers that fetch weights on {address}: {error}\nhint: choose another --weights-listen, or none"
    )]
    ListenForWeights { address: SocketAddr, error: std::io::Error },
    #[error(transparent)]
    Certificates(#[from] TlsError),
    #[error("coordinator address {0} is not a URL\nhint: it looks like http://host:7070")]
    Address(String),
    #[error("the join token has characters that a header cannot carry\nhint: use letters and digits")]
    Token,
    #[error(
        "cannot reach the coordinator at {coordinator}: {error}\nhint: is it running, and is this the coordinator's --worker-listen port (7070), and not its API (8000)?"
    )]
    Unreachable { coordinator: String, error: String },
    #[error("no TLS with the coordinator at {coordinator}: {refusal}")]
    Tls { coordinator: String, refusal: Refusal },
    #[error("the coordinator refused: {0}")]
    Refused(String),
    #[error("the coordinator closed the link")]
    Closed,
    #[error("the link to the coordinator broke: {0}")]
    LinkBroke(String),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("weights: {0}")]
    Weights(String),
    #[error("weights: {0}")]
    Source(#[from] WeightError),
    #[error(
        "the coordinator cannot read the weights that it is asked for: {0}\nhint: look at its log, and at where it has the model from"
    )]
    Unreadable(String),
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error(transparent)]
    Card(#[from] CudaError),
    #[error(
        "this process can do nothing more with its card: {0}\nhint: start the worker again; `flotilla up`, systemd and Kubernetes do"
    )]
    CardIsLost(CudaError),
    #[error("step failed: {0}")]
    Step(#[from] StepError),
    #[error("the engine thread ended without an answer\nhint: what it said last is in this worker's own log")]
    EngineGone,
    #[error("the engine thread hangs: it did not leave its group within {0:?}")]
    EngineHangs(std::time::Duration),
}

impl WorkerError {
    /// Whether another rank is at fault, or the coordinator, or whoever told this one to stop.
    pub fn blames_another(&self) -> bool {
        matches!(
            self,
            WorkerError::Collective(_)
                | WorkerError::Step(StepError::Collective(_))
                | WorkerError::Unreadable(_)
        )
    }

    /// Whether the conversation with the coordinator is over, and another may go better.
    pub fn is_of_the_link(&self) -> bool {
        matches!(self, WorkerError::Closed | WorkerError::LinkBroke(_) | WorkerError::Unreachable { .. })
    }
}

impl From<BuildError> for WorkerError {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Card(error) => error.into(),
            BuildError::Collective(error) => error.into(),
        }
    }
}

/// `words` of an error of the transport, and what lies under it: what the other side said when it closed the connection, say.
pub fn with_causes(mut words: String, error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !words.contains(&more) {
            words += &format!(": {more}");
        }
        cause = error.source();
    }
    words
}

impl From<Status> for WorkerError {
    fn from(status: Status) -> Self {
        use tonic::Code::{
            DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted, Unauthenticated,
        };
        match status.code() {
            Unauthenticated | FailedPrecondition | InvalidArgument | ResourceExhausted => {
                WorkerError::Refused(status.message().into())
            }
            DataLoss => WorkerError::Unreadable(status.message().into()),
            code => WorkerError::LinkBroke(with_causes(format!("{code:?}: {}", status.message()), &status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_coordinator_speaks_reaches_the_workers_log() {
        let words =
            "this coordinator (2.0.0) speaks protocol 9, the worker (1.0.0) protocol 5\nhint: the same";
        let error = WorkerError::from(Status::failed_precondition(words));
        assert_eq!(error.to_string(), format!("the coordinator refused: {words}"));
        assert!(!error.is_of_the_link(), "another try would end the same way");
    }
}
