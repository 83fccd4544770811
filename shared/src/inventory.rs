//! What a worker brings to the group.

use serde::{Deserialize, Serialize};

/// What computes: it decides what a cache element and a step's activations take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    #[default]
    Cpu,
    Cuda,
}

impl BackendKind {
    /// Of one key or value element in the cache: f32, or bf16.
    pub fn kv_element_bytes(self) -> usize {
        match self {
            BackendKind::Cpu => 4,
            BackendKind::Cuda => 2,
        }
    }
}

/// One device as its worker reports it at join.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// What people call it: a host name and process, or a card.
    pub name: String,
    pub backend: BackendKind,
    /// The device in words: `cpu avx512`, or `cuda:0 NVIDIA GeForce RTX 4090`.
    pub device: String,
    /// Bytes that weights and KV cache may take together: the plan's hard limit.
    pub memory_bytes: u64,
    /// Bytes a second that decode can read, relative to the others': the plan's target. Zero is unknown.
    pub bandwidth: f64,
    /// Threads that compute.
    pub threads: u16,
}
