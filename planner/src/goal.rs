//! What is wanted of a plan.

use serde::Serialize;

/// What must be short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aim {
    /// The time of a token of one sequence.
    Latency,
    /// The time of a token over so many sequences that decode at once.
    Throughput { clients: usize },
}

impl Aim {
    /// Sequences that decode at once.
    pub fn sequences(self) -> usize {
        match self {
            Aim::Latency => 1,
            Aim::Throughput { clients } => clients.max(1),
        }
    }
}

/// What a plan is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Goal {
    pub aim: Aim,
    /// Tokens that each sequence has behind it.
    pub context: usize,
    /// Stages at most: one, where the engine cannot hand over.
    pub stages_max: usize,
}
