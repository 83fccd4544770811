//! How the ranks of a host come to share memory, once they have met: the first of them makes it and tells the
//! others, over the links on which they have proven themselves; all say whether they could open it. If one
//! could not, all of that host go on by TCP, and each can say why. Afterwards the memory has no name.

use super::ProcessCollective;
use super::slots::Slots;
use crate::collective::agree::gather;
use crate::collective::memory::Invitation;
use crate::collective::{Collective, CollectiveError};
use flotilla_shared::{Links, Rank, Reach};
use std::io;
use std::ops::Range;

/// Opens what a rank is invited to; tests fail here.
pub(super) type Open<'a> = &'a dyn Fn(&Invitation, Vec<Rank>, Rank) -> io::Result<Slots>;

/// What came of it, for the whole group.
pub(super) struct Shared {
    pub(super) reach: Reach,
    /// Whether some ranks share memory: then long vectors go by chunks, everywhere.
    pub(super) any: bool,
    /// Whether all do, so that nothing passes the wire.
    pub(super) all: bool,
}

/// Every rank calls it, with the same `links`.
pub(super) fn share(
    group: &mut ProcessCollective,
    links: &Links,
    open: Open<'_>,
) -> Result<Shared, CollectiveError> {
    let (us, hosts) = (group.rank(), hosts(links, group.seat.ranks()));
    let first_of_stage = group.seat.ranks().start;
    let place = |rank: &Rank| rank.index() - first_of_stage;
    let members = hosts.iter().find(|members| members.contains(&us)).cloned().unwrap_or_default();
    let made = (members.first() == Some(&us)).then(|| Slots::create(members.clone(), us));
    let (mut slots, file, invitation) = match made {
        Some(Ok((slots, file, invitation))) => (Ok(slots), Some(file), Some(Ok(invitation))),
        Some(Err(error)) => (Err(error.to_string()), None, Some(Err(error.to_string()))),
        None => (Err("nobody shares memory with it".to_owned()), None, None),
    };
    let invitations: Vec<Option<Result<Invitation, String>>> = gather(group, &invitation)?;
    if let Some(&first) = members.first().filter(|&&first| first != us) {
        slots = match invitations.get(place(&first)).cloned().flatten() {
            Some(Ok(invitation)) => open(&invitation, members.clone(), us)
                .map_err(|error| format!("cannot open the memory of rank {first}: {error}")),
            Some(Err(reason)) => Err(format!("rank {first} cannot make memory: {reason}")),
            None => Err(format!("rank {first} made no memory")),
        };
    }
    let why_not: Vec<Option<String>> = gather(group, &slots.as_ref().err())?;
    drop(file);
    let fault = |members: &[Rank]| {
        let said = |rank: &Rank| why_not[place(rank)].as_ref().map(|reason| format!("rank {rank}: {reason}"));
        members.iter().find_map(said)
    };
    let faults: Vec<Option<String>> = hosts.iter().map(|members| fault(members)).collect();
    if let (true, Some(reason)) = (links.must_share, faults.iter().flatten().next()) {
        return Err(CollectiveError::NotShared { reason: reason.clone() });
    }
    let reach = match (fault(&members), slots) {
        (None, Ok(slots)) => {
            group.mesh.share(slots);
            Reach { by_memory: members.into_iter().filter(|&rank| rank != us).collect(), not_shared: None }
        }
        (not_shared, _) => {
            Reach { by_memory: Vec::new(), not_shared: not_shared.filter(|_| !members.is_empty()) }
        }
    };
    let any = faults.iter().any(Option::is_none);
    Ok(Shared { reach, any, all: any && hosts[0].len() == group.size() })
}

/// Of `ranks`, those that are to share memory, those of each host; none alone.
fn hosts(links: &Links, ranks: Range<usize>) -> Vec<Vec<Rank>> {
    let mut hosts: Vec<(u16, Vec<Rank>)> = Vec::new();
    for (rank, &host) in links.hosts.iter().enumerate().filter(|(rank, _)| ranks.contains(rank)) {
        match hosts.iter_mut().find(|(number, _)| *number == host) {
            Some((_, members)) => members.push(Rank(rank as u16)),
            None => hosts.push((host, vec![Rank(rank as u16)])),
        }
    }
    hosts.into_iter().map(|(_, members)| members).filter(|members| members.len() > 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::AllReduce;
    use crate::collective::processes::pipe::Pipe;
    use flotilla_shared::Epoch;
    use std::net::TcpListener;
    use std::time::Duration;

    /// Ranks 0, 1 and 3 are of one host, 2 and 4 of another; those of `blind` can open nobody's memory.
    fn meet(must_share: bool, blind: &'static [u16]) -> Vec<Result<(Reach, f32), CollectiveError>> {
        let links = Links { hosts: vec![0, 0, 1, 0, 1], must_share, ..Links::default() };
        let listeners: Vec<_> =
            links.hosts.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
        let ranks = listeners.into_iter().enumerate().map(|(rank, listener)| {
            let (peers, links) = (peers.clone(), links.clone());
            std::thread::spawn(move || {
                let (us, deadline) = (Rank(rank as u16), Duration::from_secs(20));
                let mut group =
                    ProcessCollective::connect(us, listener, &peers, &[1; 32], Epoch(1), deadline)?;
                let reach = group.link_with(
                    &links,
                    &|invitation, members, us| match blind.contains(&us.0) {
                        true => Err(io::Error::other("another container")),
                        false => Slots::open(invitation, members, us),
                    },
                    &Pipe::open,
                )?;
                let mut x = vec![us.0 as f32; 70_000];
                group.all_reduce(&mut x)?;
                Ok((reach, x[69_999]))
            })
        });
        ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect()
    }

    fn ranks(ranks: &[u16]) -> Vec<Rank> {
        ranks.iter().map(|&rank| Rank(rank)).collect()
    }

    #[test]
    fn each_host_has_its_memory() {
        let reached: Vec<_> = meet(true, &[]).into_iter().map(Result::unwrap).collect();
        let memory: Vec<_> = reached.iter().map(|(reach, _)| reach.by_memory.clone()).collect();
        assert_eq!(memory, [ranks(&[1, 3]), ranks(&[0, 3]), ranks(&[4]), ranks(&[0, 1]), ranks(&[2])]);
        assert!(reached.iter().all(|(reach, sum)| reach.not_shared.is_none() && *sum == 10.0));
    }

    #[test]
    fn a_host_where_one_sees_nothing_goes_on_by_tcp_and_says_why() {
        let reached: Vec<_> = meet(false, &[3]).into_iter().map(Result::unwrap).collect();
        for (rank, (reach, sum)) in reached.iter().enumerate() {
            assert_eq!(*sum, 10.0);
            match rank {
                2 | 4 => assert!(reach.by_memory.len() == 1 && reach.not_shared.is_none()),
                _ => {
                    assert!(reach.by_memory.is_empty());
                    let why = reach.not_shared.as_deref();
                    assert_eq!(why, Some("rank 3: cannot open the memory of rank 0: another container"));
                }
            }
        }
    }

    #[test]
    fn where_memory_was_demanded_there_is_no_group_without() {
        for result in meet(true, &[4]) {
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with("cannot share memory between ranks: rank 4: cannot open"), "{error}");
            assert!(error.contains("\nhint: --collective auto"), "{error}");
        }
    }
}
