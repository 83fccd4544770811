//! What there is: devices, the hosts that they are in, the links between them, and what computing costs beside bytes.

use crate::link::Link;
use crate::ways::Ways;
use flotilla_shared::inventory::{RELATIVE_BELOW, comparable};
use flotilla_shared::{BackendKind, Inventory};
use serde::Serialize;

/// Devices and how they are joined.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fleet {
    pub devices: Vec<Inventory>,
    /// By device: devices of equal number are in one host.
    pub hosts: Vec<u16>,
    /// Between devices of one host, and between hosts, where `ways` says nothing else.
    pub within: Link,
    pub between: Link,
    /// Between cards of one host, whatever `within` and `ways` say, where they are beside processors: those share memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within_cards: Option<Link>,
    #[serde(skip_serializing_if = "Ways::is_empty")]
    pub ways: Ways,
    /// Whether sums of CPUs go as int8 between hosts: rounded, so it is never chosen, only told.
    pub int8: bool,
    pub costs: Costs,
}

/// What is not in a device's own numbers, for each kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Costs {
    pub cpu: KindCosts,
    pub cuda: KindCosts,
    /// Times the expected maximum of whole-expert placement: that expectation takes routing for uniform, which it is not.
    pub whole_factor: f64,
}

/// What one kind of device makes of its rates, and what it takes beside them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KindCosts {
    /// Part of the bandwidth at which dense weights and cache are read, and experts' weights.
    pub read_share: f64,
    pub expert_read_share: f64,
    /// Part of the compute rates that prefill reaches.
    pub compute_share: f64,
    /// Of one layer, beside bytes and operations: its ops' starts.
    pub layer_s: f64,
    /// Of one step of a stage: its plan, its batch, sampling.
    pub step_s: f64,
    /// Bytes a second of a device that does not say.
    pub bandwidth_default: f64,
    /// Operations for each byte of bandwidth of a device that does not say.
    pub compute_per_byte: f64,
    /// Operations with experts' weights for each with dense ones, of a device that does not say.
    pub expert_per_dense: f64,
}

/// CPUs: what single kernels reach with AVX-512 (docs/performance-history.md, "Kernels before rows lay side by side"):
/// 0.93 to 0.97 and 0.82 of the read rate, 47 and 100 billion multiply-adds a second and core for 64 rows. Cards: so that
/// one H200 is met within 10 % in decode of 1 and 8 sequences, both models, and a prompt of 512 of the 20b ("On cards" in
/// docs/performance.md; kernels have changed since).
impl Default for Costs {
    fn default() -> Costs {
        let cpu = KindCosts {
            read_share: 0.92,
            expert_read_share: 0.8,
            compute_share: 0.9,
            layer_s: 40e-6,
            step_s: 100e-6,
            bandwidth_default: 30e9,
            compute_per_byte: 5.0,
            expert_per_dense: 2.1,
        };
        let cuda = KindCosts {
            read_share: 0.8,
            expert_read_share: 0.6,
            compute_share: 0.15,
            layer_s: 40e-6,
            step_s: 100e-6,
            bandwidth_default: 500e9,
            compute_per_byte: 75.0,
            expert_per_dense: 1.0,
        };
        Costs { cpu, cuda, whole_factor: 1.05 }
    }
}

impl Costs {
    pub fn of(&self, kind: BackendKind) -> &KindCosts {
        match kind {
            BackendKind::Cpu => &self.cpu,
            BackendKind::Cuda => &self.cuda,
        }
    }
}

/// What a device really does in a second.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Rates {
    pub dense: Rate,
    pub experts: Rate,
}

/// With one kind of weights.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Rate {
    pub bytes_per_s: f64,
    pub ops_per_s: f64,
}

impl Rate {
    /// A roofline with a round corner: what is read and what is computed go on at once, and hinder each other where
    /// they take equally long. MXFP4 on two cores, 2 / 4 / 8 tokens: 22.1 / 18.6 / 9.8 GB/s measured, 21.4 / 16.4 / 10.0
    /// so, 24.5 / 22 / 11 with a sharp one (docs/performance-history.md, "Kernels before rows lay side by side").
    pub fn time_s(self, bytes: f64, ops: f64) -> f64 {
        let (read_s, compute_s) = (bytes / self.bytes_per_s, ops / self.ops_per_s);
        (read_s * read_s + compute_s * compute_s).sqrt()
    }
}

impl Fleet {
    /// Between two hosts, or within one; none where there is no way.
    pub fn link(&self, a: u16, b: u16) -> Option<Link> {
        match self.ways.of(a, b) {
            Some(way) => way.link,
            None if a == b => Some(self.within),
            None => Some(self.between),
        }
    }

    /// Between devices of one host, which are cards or processors.
    pub fn link_within(&self, host: u16, cards: bool) -> Option<Link> {
        let link = self.link(host, host);
        self.within_cards.filter(|_| cards && link.is_some()).or(link)
    }

    /// Whether two devices can be ranks of one group.
    pub fn reaches(&self, a: usize, b: usize) -> bool {
        self.link(self.hosts[a], self.hosts[b]).is_some()
    }

    /// All that join some devices.
    pub(crate) fn links(&self) -> impl Iterator<Item = Link> {
        self.ways.links().chain([self.within, self.between]).chain(self.within_cards)
    }

    /// The rates of every device. Of each kind, bandwidths are taken as they are where every device knows its own, as
    /// relative to the usual one where they are shares, and as equal where one is unknown, or only some are shares: the
    /// other kind says nothing of it, for both are never in one plan.
    pub fn rates(&self) -> Vec<Rates> {
        let (cpus, cards) = (self.told(BackendKind::Cpu), self.told(BackendKind::Cuda));
        let rates = self.devices.iter().map(|device| {
            let costs = self.costs.of(device.backend);
            let (all_known, mean) = if device.backend == BackendKind::Cpu { cpus } else { cards };
            let bandwidth = match device.bandwidth {
                _ if !all_known => costs.bandwidth_default,
                share if mean < RELATIVE_BELOW => costs.bandwidth_default * share / mean,
                bandwidth => bandwidth,
            };
            let or = |told: f64, usual: f64| if told.is_finite() && told > 0.0 { told } else { usual };
            let compute = or(device.compute, costs.compute_per_byte * bandwidth);
            let expert_compute = or(device.expert_compute, costs.expert_per_dense * compute);
            let rate = |read_share: f64, compute: f64| Rate {
                bytes_per_s: bandwidth * read_share,
                ops_per_s: compute * costs.compute_share,
            };
            Rates {
                dense: rate(costs.read_share, compute),
                experts: rate(costs.expert_read_share, expert_compute),
            }
        });
        rates.collect()
    }

    /// Whether what devices of one kind tell of their bandwidths says something of each other, and the mean of it.
    fn told(&self, backend: BackendKind) -> (bool, f64) {
        let of_kind = self.devices.iter().filter(|device| device.backend == backend);
        let of_kind: Vec<Inventory> = of_kind.cloned().collect();
        let total: f64 = of_kind.iter().map(|device| device.bandwidth).sum();
        (comparable(&of_kind), total / of_kind.len() as f64)
    }
}
