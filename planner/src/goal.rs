//! What is wanted of a plan.

use serde::Serialize;
use std::str::FromStr;

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

/// `latency`, or `throughput:N`.
impl FromStr for Aim {
    type Err = String;

    fn from_str(text: &str) -> Result<Aim, String> {
        if text == "latency" {
            return Ok(Aim::Latency);
        }
        let clients = text.strip_prefix("throughput:").and_then(|clients| clients.parse().ok());
        let clients = clients.filter(|clients| (1..=4096).contains(clients));
        clients.map(|clients| Aim::Throughput { clients }).ok_or_else(|| {
            format!("expected latency or throughput:N with 1 to 4096 sequences, found {text:?}")
        })
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
