//! What a worker brings to the group.

use serde::{Deserialize, Serialize};

/// One device as its worker reports it at join.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// What people call it: a host name and process, or a card.
    pub name: String,
    /// The backend that will compute: `cpu` with its instruction set, later `cuda:0`.
    pub device: String,
    /// Bytes that weights and KV cache may take together: the plan's hard limit.
    pub memory_bytes: u64,
    /// Bytes a second that decode can read, relative to the others': the plan's target. Zero is unknown.
    pub bandwidth: f64,
    /// Threads that compute.
    pub threads: u16,
}
