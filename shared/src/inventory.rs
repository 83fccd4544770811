//! What a worker brings to the group.

use serde::{Deserialize, Serialize};

/// What computes: it decides what a step's activations take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    #[default]
    Cpu,
    Cuda,
}

/// What one key or value element is in a device's cache: the plan counts its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// CPUs, unless they are told otherwise.
    #[default]
    F16,
    /// Cards.
    Bf16,
    /// CPUs that are compared with exact values.
    F32,
}

impl KvDtype {
    pub fn element_bytes(self) -> usize {
        match self {
            KvDtype::F16 | KvDtype::Bf16 => 2,
            KvDtype::F32 => 4,
        }
    }
}

/// One device as its worker reports it at join.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// What people call it: a host name and process, or a card.
    pub name: String,
    pub backend: BackendKind,
    pub kv: KvDtype,
    /// The device in words: `cpu avx512`, or `cuda:0 NVIDIA GeForce RTX 4090`.
    pub device: String,
    /// Bytes that weights and KV cache may take together: the plan's hard limit.
    pub memory_bytes: u64,
    /// Bytes a second that decode can read, or a share relative to the others': the plan's target. Zero is unknown.
    pub bandwidth: f64,
    /// Operations a second that prefill can do with dense weights, a multiply-add being two. Zero is unknown.
    pub compute: f64,
    /// The same with experts' weights, which may be multiplied in another way. Zero is unknown.
    pub expert_compute: f64,
    /// Threads that compute.
    pub threads: u16,
}

/// Bandwidths below this are no rates but shares, as `--bandwidth` takes them.
pub const RELATIVE_BELOW: f64 = 1e6;

impl Inventory {
    fn knows_bandwidth(&self) -> bool {
        self.bandwidth.is_finite() && self.bandwidth > 0.0
    }

    fn has_rate(&self) -> bool {
        self.bandwidth >= RELATIVE_BELOW
    }
}

/// Whether bandwidths say something of each other: every device knows its own, and all are rates or all are shares.
pub fn comparable(devices: &[Inventory]) -> bool {
    devices.iter().all(Inventory::knows_bandwidth) && mixed(devices).is_none()
}

/// One that knows its rate, and one that was given a share: nothing says how much one is of the other.
pub fn mixed(devices: &[Inventory]) -> Option<(&Inventory, &Inventory)> {
    let mut known = devices.iter().filter(|device| device.knows_bandwidth());
    let rate = known.clone().find(|device| device.has_rate())?;
    Some((rate, known.find(|device| !device.has_rate())?))
}
