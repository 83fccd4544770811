//! Where the group sits, with the steps that it was sent and has not answered.

use std::collections::VecDeque;
use std::future::pending;

use flotilla_shared::StepOutcome;
use tokio::time::Instant;

use super::losses::Rows;
use super::traced::TracedStep;
use crate::group::{Group, GroupError};

pub enum Seat<G> {
    Empty,
    /// Steps in flight, the oldest first.
    Taken {
        group: G,
        in_flight: VecDeque<InFlight>,
    },
}

pub struct InFlight {
    pub sent: Instant,
    pub traced: Option<TracedStep>,
    pub rows: Vec<Rows>,
}

impl<G: Group> Seat<G> {
    /// Never, while no step is in flight.
    pub async fn outcome(&mut self) -> Result<StepOutcome, GroupError> {
        match self {
            Self::Taken { group, in_flight } if !in_flight.is_empty() => group.outcome().await,
            Self::Empty | Self::Taken { .. } => pending().await,
        }
    }
}
