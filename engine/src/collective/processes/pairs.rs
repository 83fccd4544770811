//! How ranks of one host that are of different stages come to share memory: pair by pair, those that have something to
//! say to each other. The lower rank makes it and tells the upper over their link; the upper says whether it could open
//! it. If not, that pair goes on by TCP.

use super::ProcessCollective;
use super::pipe::Pipe;
use crate::collective::memory::Invitation;
use crate::collective::stages::Courier;
use crate::collective::{Collective, CollectiveError, Operation};
use flotilla_shared::{LinkKind, Links, Rank};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;

/// Opens what a rank is invited to; tests fail here.
pub(super) type Open<'a> = &'a dyn Fn(&Invitation) -> io::Result<Pipe>;

/// Every rank calls it, with the same `links`. Why a pair of this rank's shares no memory, where one should and cannot.
pub(super) fn share(
    group: &mut ProcessCollective,
    links: &Links,
    open: Open<'_>,
) -> Result<Option<String>, CollectiveError> {
    let us = group.rank().index();
    let partners = group.seat.partners().into_iter();
    let partners: Vec<usize> = partners.filter(|&of| links.kind(us, of) == LinkKind::Shm).collect();
    let mut made = Vec::new();
    // All invite before anybody waits for an answer.
    for &upper in partners.iter().filter(|&&of| of > us) {
        let pipe = Pipe::create().map_err(|error| format!("rank {us} cannot make memory: {error}"));
        say(group, upper, &pipe.as_ref().map(|(_, _, invitation)| invitation).map_err(Clone::clone))?;
        made.push((upper, pipe));
    }
    let mut why_not = None;
    for &lower in partners.iter().filter(|&&of| of < us) {
        let invitation: Result<Invitation, String> = hear(group, lower)?;
        let opened = invitation.and_then(|invitation| {
            open(&invitation)
                .map_err(|error| format!("rank {us}: cannot open the memory of rank {lower}: {error}"))
        });
        say(group, lower, &opened.as_ref().map(|_| ()).map_err(Clone::clone))?;
        match opened {
            Ok(pipe) => group.neighbours.share(lower, pipe),
            Err(reason) => why_not = Some(reason),
        }
    }
    for (upper, made) in made {
        // The file is kept until the answer is here.
        let opened: Result<(), String> = hear(group, upper)?;
        match (opened, made) {
            (Ok(()), Ok((pipe, _file, _))) => group.neighbours.share(upper, pipe),
            (Err(reason), _) | (_, Err(reason)) => why_not = Some(reason),
        }
    }
    match why_not {
        Some(reason) if links.must_share => Err(CollectiveError::NotShared { reason }),
        why_not => Ok(why_not),
    }
}

fn say(group: &mut ProcessCollective, to: usize, word: &impl Serialize) -> Result<(), CollectiveError> {
    let word = serde_json::to_vec(word).expect("what ranks tell each other can be written");
    group.deliver(to, Operation::Tokens, &word)
}

fn hear<T: DeserializeOwned>(group: &mut ProcessCollective, from: usize) -> Result<T, CollectiveError> {
    let mut word = Vec::new();
    group.collect_next(from, Operation::Tokens, true, &mut word)?;
    serde_json::from_slice(&word).map_err(|_| CollectiveError::Mismatch {
        peer: Rank(from as u16),
        operation: Operation::Tokens,
        field: "word on shared memory",
        expected: std::any::type_name::<T>().into(),
        found: String::from_utf8_lossy(&word).chars().take(200).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::processes::slots::Slots;
    use crate::collective::{AllReduce, Peers, Stop};
    use flotilla_shared::{Epoch, Reach};
    use std::net::TcpListener;
    use std::time::Duration;

    /// Stages of one, two and one ranks, all of one host; those of `blind` can open nobody's memory.
    fn meet(must_share: bool, blind: &'static [u16]) -> Vec<Result<Reach, CollectiveError>> {
        let listeners: Vec<_> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
        let ranks = listeners.into_iter().enumerate().map(|(rank, listener)| {
            let addresses = addresses.clone();
            std::thread::spawn(move || {
                let peers = Peers { addresses: &addresses, stages: &[1, 2, 1] };
                let (us, stop, patience) = (Rank(rank as u16), Stop::default(), Duration::from_secs(20));
                let mut group = ProcessCollective::connect_unless(
                    &stop,
                    us,
                    listener,
                    peers,
                    &[1; 32],
                    Epoch(1),
                    patience,
                )?;
                let links = Links { hosts: vec![0; 4], must_share, ..Links::default() };
                let reach =
                    group.link_with(&links, &Slots::open, &|invitation| match blind.contains(&us.0) {
                        true => Err(io::Error::other("another container")),
                        false => Pipe::open(invitation),
                    })?;
                // Longer than a ring, and in pieces where there are two to take it.
                let mut x = vec![us.0 as f32; 700_000];
                match us.0 {
                    0 => group.hand_on(&mut x)?,
                    1 | 2 => {
                        group.take_over(&mut x)?;
                        group.hand_on(&mut x)?;
                    }
                    _ => {
                        group.take_over(&mut x)?;
                        group.tell(b"seven")?;
                    }
                }
                assert!(x.iter().all(|x| *x == 0.0));
                let mut told = Vec::new();
                assert!(us != Rank(0) || group.hear(true, &mut told)? && told == b"seven");
                Ok(reach)
            })
        });
        ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect()
    }

    #[test]
    fn partners_of_one_host_share_memory() {
        let reached: Vec<Reach> = meet(true, &[]).into_iter().map(Result::unwrap).collect();
        // Rank 2 says nothing to rank 3, which is given x by rank 1.
        let partners = [&[1, 2, 3][..], &[0, 2, 3], &[0, 1], &[0, 1]];
        for (reach, partners) in reached.iter().zip(partners) {
            assert_eq!(reach.by_memory.iter().map(|rank| rank.0).collect::<Vec<_>>(), partners);
            assert_eq!(reach.not_shared, None);
        }
    }

    #[test]
    fn a_pair_where_one_sees_nothing_goes_on_by_tcp_and_says_why() {
        let reached: Vec<Reach> = meet(false, &[2]).into_iter().map(Result::unwrap).collect();
        let why = Some("rank 2: cannot open the memory of rank 0: another container");
        assert_eq!([0, 2].map(|rank| reached[rank].not_shared.as_deref()), [why; 2]);
        assert_eq!(reached[2].by_memory, [Rank(1)]);
        assert!(reached[1].not_shared.is_none() && reached[1].by_memory.len() == 3);
    }

    #[test]
    fn where_memory_was_demanded_there_is_no_group_without() {
        let results = meet(true, &[2]);
        let told = results[2].as_ref().unwrap_err().to_string();
        assert!(told.starts_with("cannot share memory between ranks: rank 2: cannot open"), "{told}");
        assert!(results.iter().all(Result::is_err), "{results:?}");
    }
}
