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
    let (us, hosts) = (group.rank(), hosts(links, group.size()));
    let members = hosts.iter().find(|members| members.contains(&us)).cloned().unwrap_or_default();
    let made = (members.first() == Some(&us)).then(|| Slots::create(members.clone(), us));
    let (mut slots, file, invitation) = match made {
        Some(Ok((slots, file, invitation))) => (Ok(slots), Some(file), Some(Ok(invitation))),
        Some(Err(error)) => (Err(error.to_string()), None, Some(Err(error.to_string()))),
        None => (Err("nobody shares memory with it".to_owned()), None, None),
    };
    let invitations: Vec<Option<Result<Invitation, String>>> = gather(group, &invitation)?;
    if let Some(&first) = members.first().filter(|&&first| first != us) {
        slots = match invitations.get(first.index()).cloned().flatten() {
            Some(Ok(invitation)) => open(&invitation, members.clone(), us)
                .map_err(|error| format!("cannot open the memory of rank {first}: {error}")),
            Some(Err(reason)) => Err(format!("rank {first} cannot make memory: {reason}")),
            None => Err(format!("rank {first} made no memory")),
        };
    }
    let why_not: Vec<Option<String>> = gather(group, &slots.as_ref().err())?;
    drop(file);
    let fault = |members: &[Rank]| {
        let said =
            |rank: &Rank| why_not[rank.index()].as_ref().map(|reason| format!("rank {rank}: {reason}"));
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

/// Ranks that are to share memory, those of each host; none alone.
fn hosts(links: &Links, size: usize) -> Vec<Vec<Rank>> {
    let mut hosts: Vec<(u16, Vec<Rank>)> = Vec::new();
    for (rank, &host) in links.hosts.iter().enumerate().take(size) {
        match hosts.iter_mut().find(|(number, _)| *number == host) {
            Some((_, members)) => members.push(Rank(rank as u16)),
            None => hosts.push((host, vec![Rank(rank as u16)])),
        }
    }
    hosts.into_iter().map(|(_, members)| members).filter(|members| members.len() > 1).collect()
}
