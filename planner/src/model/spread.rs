//! Where the ranks of a stage are.

use crate::fleet::Fleet;
use flotilla_shared::BackendKind;

/// How many ranks of a stage are in each host that has some, and what they sum on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spread {
    hosts: Vec<(u16, usize)>,
    /// The host of each rank.
    places: Vec<u16>,
    cards: bool,
}

impl Spread {
    /// `devices`: of each rank.
    pub fn of(fleet: &Fleet, devices: &[usize]) -> Spread {
        let mut hosts: Vec<(u16, usize)> = Vec::new();
        for &device in devices {
            let host = fleet.hosts[device];
            match hosts.binary_search_by_key(&host, |(host, _)| *host) {
                Ok(at) => hosts[at].1 += 1,
                Err(at) => hosts.insert(at, (host, 1)),
            }
        }
        let cards = devices.iter().any(|&device| fleet.devices[device].backend == BackendKind::Cuda);
        let places = devices.iter().map(|&device| fleet.hosts[device]).collect();
        Spread { hosts, places, cards }
    }

    /// Each with its ranks.
    pub fn hosts(&self) -> &[(u16, usize)] {
        &self.hosts
    }

    /// The host of each rank, in their order.
    pub fn places(&self) -> &[u16] {
        &self.places
    }

    pub fn size(&self) -> usize {
        self.hosts.iter().map(|(_, count)| *count).sum()
    }

    pub fn is_one_host(&self) -> bool {
        self.hosts.len() < 2
    }

    /// Whether some ranks share a host.
    pub fn shares(&self) -> bool {
        self.hosts.iter().any(|(_, count)| *count > 1)
    }

    pub fn on_cards(&self) -> bool {
        self.cards
    }
}
