//! Which devices can be ranks of one group. All ranks of a group meet, those of different stages too, so of two that do not
//! reach each other one is left out.

use crate::fleet::Fleet;

/// Sets that are planned for: with few pairs cut there are few.
const SETS_MAX: usize = 8;
/// Sets that are found at most, of which those with the most memory stay.
const FOUND_MAX: usize = 64;

/// The largest sets of `devices` in which everybody reaches everybody, the one with the most memory first.
pub(crate) fn islands(fleet: &Fleet, devices: &[usize]) -> Vec<Vec<usize>> {
    if !fleet.ways.has_cuts() {
        return vec![devices.to_vec()];
    }
    let (nodes, mut found) = (nodes(fleet, devices), Vec::new());
    divide(fleet, nodes.clone(), &mut found);
    found.iter_mut().for_each(|set| complete(fleet, set, &nodes));
    found.sort_by_key(|set| (std::cmp::Reverse(memory(fleet, set)), set.clone()));
    let mut largest: Vec<Vec<usize>> = Vec::new();
    for set in found {
        let is_part = |other: &Vec<usize>| set.iter().all(|device| other.contains(device));
        if largest.len() < SETS_MAX && !largest.iter().any(is_part) {
            largest.push(set);
        }
    }
    largest
}

/// Devices that are left out together or not at all: those of a host, unless they do not even reach each other.
fn nodes(fleet: &Fleet, devices: &[usize]) -> Vec<Vec<usize>> {
    let mut nodes: Vec<Vec<usize>> = Vec::new();
    for &device in devices {
        let host = fleet.hosts[device];
        let same = |node: &&mut Vec<usize>| fleet.hosts[node[0]] == host && fleet.link(host, host).is_some();
        match nodes.iter_mut().find(same) {
            Some(node) => node.push(device),
            None => nodes.push(vec![device]),
        }
    }
    nodes
}

/// Either the node that is cut from most others goes, or those others do.
fn divide(fleet: &Fleet, nodes: Vec<Vec<usize>>, found: &mut Vec<Vec<usize>>) {
    if found.len() == FOUND_MAX {
        return;
    }
    let is_cut = |a: &Vec<usize>, b: &Vec<usize>| a[0] != b[0] && !fleet.reaches(a[0], b[0]);
    let cuts = |node: &Vec<usize>| nodes.iter().filter(|other| is_cut(node, other)).count();
    let Some(worst) = nodes.iter().max_by_key(|node| cuts(node)).filter(|node| cuts(node) > 0) else {
        return found.push(nodes.concat());
    };
    let without: Vec<Vec<usize>> = nodes.iter().filter(|node| *node != worst).cloned().collect();
    let with: Vec<Vec<usize>> = nodes.iter().filter(|node| !is_cut(worst, node)).cloned().collect();
    divide(fleet, without, found);
    divide(fleet, with, found);
}

/// Whoever reaches all of a set joins it: it may have gone for one that went later.
fn complete(fleet: &Fleet, set: &mut Vec<usize>, nodes: &[Vec<usize>]) {
    for node in nodes {
        if !set.contains(&node[0]) && set.iter().all(|&device| fleet.reaches(device, node[0])) {
            set.extend(node);
        }
    }
    set.sort_unstable();
}

fn memory(fleet: &Fleet, devices: &[usize]) -> u64 {
    devices.iter().fold(0, |sum, &device| sum.saturating_add(fleet.devices[device].memory_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Costs;
    use crate::link::Link;
    use flotilla_shared::{BackendKind, Inventory, KvDtype};

    /// A device for each host of `hosts`; memory is its number and one.
    fn fleet(hosts: &[u16], cuts: &[(u16, u16)]) -> Fleet {
        let device = |(at, _): (usize, &u16)| Inventory {
            name: format!("d{at}"),
            backend: BackendKind::Cpu,
            kv: KvDtype::F16,
            device: "any".into(),
            memory_bytes: at as u64 + 1,
            bandwidth: 0.0,
            compute: 0.0,
            expert_compute: 0.0,
            threads: 1,
        };
        Fleet {
            devices: hosts.iter().enumerate().map(device).collect(),
            hosts: hosts.to_vec(),
            within: Link::preset("shm"),
            between: Link::preset("10gbe"),
            ways: cuts.iter().map(|&(a, b)| (a, b, None)).collect(),
            within_cards: None,
            int8: false,
            costs: Costs::default(),
        }
    }

    fn sets(hosts: &[u16], cuts: &[(u16, u16)]) -> Vec<Vec<usize>> {
        let devices: Vec<usize> = (0..hosts.len()).collect();
        islands(&fleet(hosts, cuts), &devices)
    }

    #[test]
    fn of_a_pair_that_is_cut_one_goes() {
        assert_eq!(sets(&[0, 1, 2], &[]), [[0, 1, 2]]);
        assert_eq!(sets(&[0, 1, 2], &[(2, 0)]), [[1, 2], [0, 1]]);
        // All devices of a host go with it; host 0 and its two.
        assert_eq!(sets(&[0, 1, 0, 2], &[(0, 1)]), [vec![0, 2, 3], vec![1, 3]]);
        // Whoever reaches nobody is alone.
        assert_eq!(sets(&[0, 1, 2], &[(0, 1), (0, 2)]), [vec![1, 2], vec![0]]);
        // Two islands.
        let apart = [(0, 2), (0, 3), (1, 2), (1, 3)];
        assert_eq!(sets(&[0, 1, 2, 3], &apart), [[2, 3], [0, 1]]);
    }

    #[test]
    fn devices_of_a_host_may_not_reach_each_other_either() {
        assert_eq!(sets(&[0, 0, 1], &[(0, 0)]), [[1, 2], [0, 2]]);
    }

    /// Every subset of hosts, for every set of cuts of four, against what is found.
    #[test]
    fn none_that_is_larger_is_missed() {
        let pairs = [(0u16, 1u16), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)];
        for chosen in 0u32..64 {
            let cuts: Vec<(u16, u16)> = pairs
                .iter()
                .enumerate()
                .filter(|(at, _)| chosen >> at & 1 == 1)
                .map(|(_, pair)| *pair)
                .collect();
            let whole = |set: u32| !cuts.iter().any(|&(a, b)| set >> a & 1 == 1 && set >> b & 1 == 1);
            let largest =
                |set: u32| whole(set) && (0..4).all(|more| set >> more & 1 == 1 || !whole(set | 1 << more));
            let mut expected: Vec<Vec<usize>> = (1u32..16)
                .filter(|&set| largest(set))
                .map(|set| (0..4).filter(|device| set >> device & 1 == 1).collect())
                .collect();
            let mut found = sets(&[0, 1, 2, 3], &cuts);
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{cuts:?}");
        }
    }

    #[test]
    fn however_many_are_cut_it_ends() {
        let hosts: Vec<u16> = (0..64).collect();
        let ring: Vec<(u16, u16)> = (0..64).map(|host| (host, (host + 1) % 64)).collect();
        let found = sets(&hosts, &ring);
        assert!(!found.is_empty() && found.len() <= SETS_MAX);
        assert!(found.iter().all(|set| set.len() > 20), "{found:?}");
    }
}
