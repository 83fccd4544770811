//! Which devices can become a stage, and in which order stages use devices up: states, and moves from one to a later one.
//!
//! Devices that are alike (same host, memory, rates) are one class, so a state is how many of each class are used. Where
//! that would be too many states, devices stand in a row instead, and a stage is a run of it.

use crate::fleet::Fleet;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Moves beyond which devices stand in a row.
const MOVES_MAX: usize = 8000;

/// Devices of one kind in one host.
#[derive(Clone, Debug)]
pub(crate) struct Class {
    pub devices: Vec<usize>,
}

/// Devices that form a stage, as classes, one a rank.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub classes: Vec<usize>,
    /// Groups of equal number take equal time: the same kinds of devices, alike over hosts.
    pub alike: usize,
    /// Number of its set of hosts.
    pub hosts: usize,
}

/// From a state to a later one; without a group, a device is left out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move {
    pub to: usize,
    pub group: Option<usize>,
}

#[derive(Debug, Default)]
pub(crate) struct Lattice {
    pub classes: Vec<Class>,
    pub groups: Vec<Group>,
    /// By state; the first is where nothing is used.
    pub moves: Vec<Vec<Move>>,
    /// One group of each number of alike ones.
    pub alike: Vec<usize>,
    /// Stages are runs of devices in a row.
    pub in_a_row: bool,
}

/// What makes two devices alike: the bits of its numbers.
type Traits = (u64, u64, u64, usize, u8);

fn traits(fleet: &Fleet, device: usize) -> Traits {
    let inventory = &fleet.devices[device];
    let bits = |value: f64| if value.is_finite() { value.max(0.0).to_bits() } else { 0 };
    (
        bits(inventory.bandwidth),
        bits(inventory.compute),
        inventory.memory_bytes,
        inventory.kv.element_bytes(),
        inventory.backend as u8,
    )
}

impl Lattice {
    /// Over `devices` of the fleet, all of one backend.
    pub fn new(fleet: &Fleet, devices: &[usize]) -> Lattice {
        let mut by_traits: BTreeMap<(u16, Reverse<Traits>), Vec<usize>> = BTreeMap::new();
        for &device in devices {
            let key = (fleet.hosts[device], Reverse(traits(fleet, device)));
            by_traits.entry(key).or_default().push(device);
        }
        let kinds: Vec<(u16, Traits)> = by_traits.keys().map(|(host, kind)| (*host, kind.0)).collect();
        let classes: Vec<Class> = by_traits.into_values().map(|devices| Class { devices }).collect();
        let mut builder = Builder { kinds, lattice: Lattice { classes, ..Lattice::default() }, ..Builder::default() };
        let counts: Vec<usize> = builder.lattice.classes.iter().map(|class| class.devices.len()).collect();
        let moves = counts.iter().fold(1usize, |moves, n| moves.saturating_mul((n + 1) * (n + 2) / 2));
        if moves <= MOVES_MAX { builder.by_counts(&counts) } else { builder.by_runs(&counts) }
        builder.lattice
    }

}

#[derive(Default)]
struct Builder {
    /// By class.
    kinds: Vec<(u16, Traits)>,
    lattice: Lattice,
    alike: BTreeMap<Vec<Vec<Traits>>, usize>,
    hosts: BTreeMap<Vec<u16>, usize>,
}

impl Builder {
    /// Every choice of devices can follow every other.
    fn by_counts(&mut self, counts: &[usize]) {
        let vectors: Vec<Vec<usize>> = vectors(counts);
        let number = |vector: &[usize]| vector.iter().zip(counts).fold(0, |at, (n, of)| at * (of + 1) + n);
        let groups: Vec<usize> = vectors[1..].iter().map(|vector| self.group(vector)).collect();
        for from in &vectors {
            let mut moves = Vec::new();
            for (taken, &group) in vectors[1..].iter().zip(&groups) {
                let to: Vec<usize> = from.iter().zip(taken).map(|(a, b)| a + b).collect();
                if to.iter().zip(counts).all(|(n, of)| n <= of) {
                    moves.push(Move { to: number(&to), group: Some(group) });
                }
            }
            self.lattice.moves.push(moves);
        }
    }

    /// A stage is a run of devices in the order of classes; any device may be passed over.
    fn by_runs(&mut self, counts: &[usize]) {
        self.lattice.in_a_row = true;
        let row: Vec<usize> = counts.iter().enumerate().flat_map(|(class, &n)| vec![class; n]).collect();
        for from in 0..=row.len() {
            let mut moves = Vec::new();
            let mut taken = vec![0; counts.len()];
            for to in from + 1..=row.len() {
                taken[row[to - 1]] += 1;
                moves.push(Move { to, group: Some(self.group(&taken)) });
            }
            if from < row.len() {
                moves.push(Move { to: from + 1, group: None });
            }
            self.lattice.moves.push(moves);
        }
    }

    /// `taken`: of each class so many. Ranks are in an order that is the same for all alike groups.
    fn group(&mut self, taken: &[usize]) -> usize {
        let mut by_host: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for (class, &count) in taken.iter().enumerate() {
            by_host.entry(self.kinds[class].0).or_default().extend(vec![class; count]);
        }
        by_host.retain(|_, classes| !classes.is_empty());
        let hosts: Vec<u16> = by_host.keys().copied().collect();
        let mut by_host: Vec<Vec<usize>> = by_host.into_values().collect();
        by_host.sort_by_key(|classes| classes.iter().map(|&class| self.kinds[class].1).collect::<Vec<_>>());
        let key: Vec<Vec<Traits>> = by_host
            .iter()
            .map(|classes| classes.iter().map(|&class| self.kinds[class].1).collect())
            .collect();
        let next = self.hosts.len();
        let hosts = *self.hosts.entry(hosts).or_insert(next);
        let number = self.lattice.groups.len();
        let next = self.alike.len();
        let alike = *self.alike.entry(key).or_insert(next);
        if alike == next {
            self.lattice.alike.push(number);
        }
        self.lattice.groups.push(Group { classes: by_host.concat(), alike, hosts });
        number
    }
}

/// Every vector of counts up to `counts`, in the order of their numbers.
fn vectors(counts: &[usize]) -> Vec<Vec<usize>> {
    counts.iter().fold(vec![vec![]], |vectors, &most| {
        let longer = vectors.into_iter().flat_map(|vector| {
            (0..=most).map(move |n| {
                let mut longer: Vec<usize> = vector.clone();
                longer.push(n);
                longer
            })
        });
        longer.collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Costs;
    use crate::link::Link;
    use flotilla_shared::{BackendKind, Inventory, KvDtype};

    fn fleet(devices: &[(u64, u16)]) -> Fleet {
        let inventory = |memory_bytes| Inventory {
            name: "d".into(),
            backend: BackendKind::Cuda,
            kv: KvDtype::Bf16,
            device: "any".into(),
            memory_bytes,
            bandwidth: 1e12,
            compute: 1e14,
            threads: 1,
        };
        Fleet {
            devices: devices.iter().map(|(memory, _)| inventory(*memory)).collect(),
            hosts: devices.iter().map(|(_, host)| *host).collect(),
            within: Link::preset("pcie4"),
            between: Link::preset("10gbe"),
            costs: Costs::default(),
        }
    }

    #[test]
    fn what_is_alike_is_one_class() {
        let lattice = Lattice::new(&fleet(&[(24, 0); 4]), &[0, 1, 2, 3]);
        assert_eq!((lattice.classes.len(), lattice.moves.len(), lattice.groups.len()), (1, 5, 4));
        let two_hosts = fleet(&[(16, 0), (16, 1), (16, 0), (16, 1)]);
        let lattice = Lattice::new(&two_hosts, &[0, 1, 2, 3]);
        assert_eq!((lattice.classes.len(), lattice.moves.len(), lattice.groups.len()), (2, 9, 8));
        // One; two together; two apart; three; four.
        assert_eq!(lattice.alike.len(), 5);
    }

    #[test]
    fn many_kinds_stand_in_a_row() {
        let kinds: Vec<(u64, u16)> = (0..20).map(|n| (10 + n, (n / 4) as u16)).collect();
        let lattice = Lattice::new(&fleet(&kinds), &(0..20).collect::<Vec<_>>());
        assert_eq!((lattice.moves.len(), lattice.groups.len()), (21, 210));
        for (from, moves) in lattice.moves.iter().enumerate() {
            assert!(moves.iter().all(|step| step.to > from));
        }
    }
}
