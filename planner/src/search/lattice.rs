//! Which devices can become a stage, and in which order stages use devices up: states, and moves from one to a later one.
//!
//! Devices that are alike (same host, memory, rates) are one class, so a state is how many of each class are used. Where
//! that would be too many states, devices stand in a row instead, and a stage is a run of it.

use crate::fleet::Fleet;
use crate::link::Link;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

/// Moves beyond which hosts that are alike are used in their order, and beyond which devices stand in a row.
const MOVES_FREE_MAX: usize = 1000;
const MOVES_MAX: usize = 7000;

/// Runs of these lengths, and to the end of a host or of the row.
const RUNS: [usize; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48];

/// Devices of one kind in one host.
#[derive(Clone, Debug)]
pub(crate) struct Class {
    pub devices: Vec<usize>,
}

/// Devices that form a stage, as classes, one a rank.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub classes: Vec<usize>,
    /// Groups of equal number take equal time: the same kinds of devices, alike over hosts that are joined alike.
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
    /// By state: devices of each class that may still be used.
    pub left: Vec<Vec<usize>>,
    /// One group of each number of alike ones.
    pub alike: Vec<usize>,
    /// Stages are runs of devices in a row.
    pub in_a_row: bool,
}

/// What makes two devices alike: the bits of its numbers.
type Traits = (u64, u64, u64, u64, usize, u8);

/// What makes two groups alike: the devices of each host, and what joins the hosts.
type Alike = (Vec<Vec<Traits>>, Vec<[u64; 3]>);

fn traits(fleet: &Fleet, device: usize) -> Traits {
    let inventory = &fleet.devices[device];
    let bits = |value: f64| if value.is_finite() { value.max(0.0).to_bits() } else { 0 };
    (
        bits(inventory.bandwidth),
        bits(inventory.compute),
        bits(inventory.expert_compute),
        inventory.memory_bytes,
        inventory.kv.element_bytes(),
        inventory.backend as u8,
    )
}

impl Lattice {
    /// Devices as those of a group: of each class the first.
    pub fn devices(&self, group: &Group) -> Vec<usize> {
        group.classes.iter().map(|&class| self.classes[class].devices[0]).collect()
    }

    /// Over `devices` of the fleet, all of one backend.
    pub fn new(fleet: &Fleet, devices: &[usize]) -> Lattice {
        let mut by_traits: BTreeMap<(u16, Reverse<Traits>), Vec<usize>> = BTreeMap::new();
        for &device in devices {
            let key = (fleet.hosts[device], Reverse(traits(fleet, device)));
            by_traits.entry(key).or_default().push(device);
        }
        let kinds: Vec<(u16, Traits)> = by_traits.keys().map(|(host, kind)| (*host, kind.0)).collect();
        let classes: Vec<Class> = by_traits.into_values().map(|devices| Class { devices }).collect();
        let lattice = Lattice { classes, ..Lattice::default() };
        let mut builder = Builder { fleet, kinds, lattice, alike: BTreeMap::new(), hosts: BTreeMap::new() };
        let counts: Vec<usize> = builder.lattice.classes.iter().map(|class| class.devices.len()).collect();
        let states = builder
            .states(&counts, false, MOVES_FREE_MAX)
            .or_else(|| builder.states(&counts, true, MOVES_MAX));
        match states {
            Some(states) => builder.by_counts(&counts, &states),
            None => builder.by_runs(&counts),
        }
        builder.lattice
    }
}

struct Builder<'a> {
    fleet: &'a Fleet,
    /// By class.
    kinds: Vec<(u16, Traits)>,
    lattice: Lattice,
    alike: BTreeMap<Alike, usize>,
    hosts: BTreeMap<Vec<u16>, usize>,
}

impl Builder<'_> {
    /// How many of each class can be used, from none to all, in rising order; `None` if they have too many moves.
    ///
    /// `in_order`: of hosts that are alike, a later one is never used more than an earlier one.
    fn states(&self, counts: &[usize], in_order: bool, moves_max: usize) -> Option<Vec<Vec<usize>>> {
        let mut states: Vec<Vec<usize>> = vec![vec![]];
        for host in self.hosts_of_classes() {
            let choices = counts[host.clone()].iter().fold(1usize, |n, count| n.saturating_mul(count + 1));
            if choices > moves_max {
                return None;
            }
            let twin = self.twin(counts, &host).filter(|_| in_order);
            let mut longer = Vec::new();
            for state in states {
                for of_host in vectors(&counts[host.clone()]) {
                    if twin.as_ref().is_none_or(|twin| of_host.as_slice() <= &state[twin.clone()]) {
                        longer.push([state.as_slice(), &of_host].concat());
                    }
                }
            }
            if longer.len() * longer.len() > 20 * moves_max {
                return None;
            }
            states = longer;
        }
        let moves = states.iter().map(|to| states.iter().filter(|from| is_within(from, to)).count());
        (moves.sum::<usize>() <= moves_max).then_some(states)
    }

    /// The classes of each host: they lie behind each other.
    fn hosts_of_classes(&self) -> Vec<Range<usize>> {
        let mut hosts: Vec<Range<usize>> = Vec::new();
        for class in 0..self.kinds.len() {
            match hosts.last_mut() {
                Some(last) if self.kinds[last.start].0 == self.kinds[class].0 => last.end = class + 1,
                _ => hosts.push(class..class + 1),
            }
        }
        hosts
    }

    /// The nearest host before that has the same devices and the same ways.
    fn twin(&self, counts: &[usize], host: &Range<usize>) -> Option<Range<usize>> {
        let devices = |host: &Range<usize>| -> Vec<(Traits, usize)> {
            host.clone().map(|class| (self.kinds[class].1, counts[class])).collect()
        };
        let before = self.hosts_of_classes().into_iter().take_while(|other| other.start < host.start);
        let same = |other: &Range<usize>| devices(other) == devices(host) && self.has_same_ways(other, host);
        before.filter(same).last()
    }

    /// Whether two hosts are as far from all others, and their devices from each other.
    fn has_same_ways(&self, a: &Range<usize>, b: &Range<usize>) -> bool {
        if self.fleet.ways.is_empty() {
            return true;
        }
        let (a, b) = (self.kinds[a.start].0, self.kinds[b.start].0);
        let link = |a, b| self.fleet.link(a, b);
        let mut others = self.kinds.iter().map(|(host, _)| *host).filter(|host| *host != a && *host != b);
        link(a, a) == link(b, b) && others.all(|other| link(a, other) == link(b, other))
    }

    /// The bits of what joins hosts, by pairs in their order.
    fn ways(&self, hosts: &[u16]) -> Vec<[u64; 3]> {
        if self.fleet.ways.is_empty() {
            return Vec::new();
        }
        let bits = |link: Option<Link>| {
            link.map_or([u64::MAX; 3], |link| {
                [link.latency_s, link.peer_s, link.bytes_per_s].map(f64::to_bits)
            })
        };
        let pairs = hosts.iter().enumerate().flat_map(|(at, &a)| hosts[at..].iter().map(move |&b| (a, b)));
        pairs.map(|(a, b)| bits(self.fleet.link(a, b))).collect()
    }

    /// Every choice of devices can follow every other.
    fn by_counts(&mut self, counts: &[usize], states: &[Vec<usize>]) {
        let mut groups: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
        for (at, from) in states.iter().enumerate() {
            let mut moves = Vec::new();
            for (to, after) in states.iter().enumerate().skip(at + 1) {
                if is_within(from, after) {
                    let taken: Vec<usize> = after.iter().zip(from).map(|(after, n)| after - n).collect();
                    let group = *groups.entry(taken).or_insert_with_key(|taken| self.group(taken));
                    moves.push(Move { to, group: Some(group) });
                }
            }
            self.lattice.moves.push(moves);
            self.lattice.left.push(counts.iter().zip(from).map(|(of, n)| of - n).collect());
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
                let is_host_end = to == row.len() || self.kinds[row[to]].0 != self.kinds[row[to - 1]].0;
                if is_host_end || RUNS.contains(&(to - from)) {
                    moves.push(Move { to, group: Some(self.group(&taken)) });
                }
            }
            if from < row.len() {
                moves.push(Move { to: from + 1, group: None });
            }
            self.lattice.moves.push(moves);
            let mut left = vec![0; counts.len()];
            row[from..].iter().for_each(|&class| left[class] += 1);
            self.lattice.left.push(left);
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
        let kinds = |classes: &Vec<usize>| classes.iter().map(|&class| self.kinds[class].1).collect();
        let in_order: Vec<u16> = by_host.iter().map(|classes| self.kinds[classes[0]].0).collect();
        let key = (by_host.iter().map(kinds).collect(), self.ways(&in_order));
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

fn is_within(from: &[usize], to: &[usize]) -> bool {
    from.iter().zip(to).all(|(from, to)| from <= to)
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
            expert_compute: 1e14,
            threads: 1,
        };
        Fleet {
            devices: devices.iter().map(|(memory, _)| inventory(*memory)).collect(),
            hosts: devices.iter().map(|(_, host)| *host).collect(),
            within: Link::preset("pcie4"),
            between: Link::preset("10gbe"),
            ways: Default::default(),
            within_cards: None,
            int8: false,
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

    /// Experts are priced by a rate of their own.
    #[test]
    fn what_differs_in_one_rate_is_not_alike() {
        let differ: [fn(&mut Inventory); 3] =
            [|one| one.bandwidth *= 2.0, |one| one.compute *= 2.0, |one| one.expert_compute *= 2.0];
        for differ in differ {
            let mut two = fleet(&[(24, 0); 2]);
            differ(&mut two.devices[1]);
            assert_eq!(Lattice::new(&two, &[0, 1]).classes.len(), 2);
        }
    }

    #[test]
    fn hosts_that_are_joined_by_other_links_are_not_alike() {
        let apart = fleet(&[(16, 0), (16, 1), (16, 2)]);
        let same = Lattice::new(&apart, &[0, 1, 2]);
        // One; two; three.
        assert_eq!((same.groups.len(), same.alike.len()), (7, 3));
        let slow = Fleet { ways: [(0, 1, Some(Link::preset("1gbe")))].into_iter().collect(), ..apart };
        let lattice = Lattice::new(&slow, &[0, 1, 2]);
        assert_eq!((lattice.groups.len(), lattice.alike.len()), (7, 4));
    }

    #[test]
    fn many_kinds_stand_in_a_row() {
        let kinds: Vec<(u64, u16)> = (0..20).map(|n| (10 + n, (n / 4) as u16)).collect();
        let lattice = Lattice::new(&fleet(&kinds), &(0..20).collect::<Vec<_>>());
        assert_eq!(lattice.moves.len(), 21);
        for (from, moves) in lattice.moves.iter().enumerate() {
            assert!(moves.iter().all(|step| step.to > from));
        }
    }
}
