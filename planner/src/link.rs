//! What joins two devices: a latency and a rate, with names for the usual kinds.

use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// One exchange of n bytes takes `latency_s`, `peer_s` for each peer, and n / `bytes_per_s`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Link {
    pub name: &'static str,
    /// From giving a short message to having the peer's.
    pub latency_s: f64,
    /// What each peer takes of the one who waits for it: a look at its memory, two calls of the system.
    pub peer_s: f64,
    /// Each way, of a device within a host, and of a whole host between hosts.
    pub bytes_per_s: f64,
}

const fn link(name: &'static str, latency_us: f64, peer_us: f64, gb_per_s: f64) -> Link {
    Link { name, latency_s: latency_us * 1e-6, peer_s: peer_us * 1e-6, bytes_per_s: gb_per_s * 1e9 }
}

/// Memory between processes was measured (docs/performance.md, "Sums over processes"; two ranks). The others are
/// assumed: nine tenths of what the link is sold with, and a latency as software of today reaches it.
pub const PRESETS: [Link; 9] = [
    link("shm", 0.8, 0.2, 4.5),
    link("pcie3", 12.0, 0.5, 12.0),
    link("pcie4", 10.0, 0.5, 24.0),
    link("pcie5", 8.0, 0.5, 48.0),
    link("nvlink", 6.0, 0.5, 250.0),
    link("1gbe", 50.0, 3.0, 0.115),
    link("10gbe", 25.0, 3.0, 1.15),
    link("25gbe", 20.0, 3.0, 2.9),
    link("100gbe", 12.0, 3.0, 11.5),
];

impl Link {
    /// One round in which each gives `bytes` over its way, in all, and waits for so many peers.
    pub(crate) fn round_s(&self, peers: usize, bytes: f64) -> f64 {
        self.latency_s + peers as f64 * self.peer_s + bytes / self.bytes_per_s
    }

    /// # Panics
    /// If there is no such preset.
    pub fn preset(name: &str) -> Link {
        name.parse().unwrap_or_else(|error| panic!("{error}"))
    }
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = PRESETS.into_iter().find(|link| link.name == text);
        found.ok_or_else(|| {
            let names = PRESETS.map(|link| link.name).join(", ");
            format!("no link is called {text:?}\nhint: known are {names}")
        })
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
