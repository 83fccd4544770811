//! Who is let into a group over TCP, and who is not.

use crate::groups::{self, EPOCH, KEY, PATIENT, connect, listeners};
use flotilla_engine::collective::{AllReduce, Collective, CollectiveError, Peers, ProcessCollective, Stop};
use flotilla_shared::{Epoch, Rank};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_secs(2);

/// Each rank connects with what `with` gives for it: key, epoch, deadline.
fn meet(
    n: usize,
    with: impl Fn(usize) -> ([u8; 32], Epoch, Duration),
) -> Vec<Result<ProcessCollective, CollectiveError>> {
    let (listeners, peers) = listeners(n);
    let start = Instant::now();
    let threads: Vec<_> = listeners
        .into_iter()
        .enumerate()
        .map(|(rank, listener)| {
            let (peers, (key, epoch, deadline)) = (peers.clone(), with(rank));
            thread::spawn(move || {
                ProcessCollective::connect(Rank(rank as u16), listener, &peers, &key, epoch, deadline)
            })
        })
        .collect();
    let groups = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    groups
}

fn error_of(result: &Result<ProcessCollective, CollectiveError>) -> String {
    result.as_ref().err().expect("it must not get in").to_string()
}

#[test]
fn a_rank_that_never_comes_is_named() {
    let (mut listeners, mut peers) = listeners(3);
    // Rank 0 has no listener at all: its port is closed.
    drop(listeners.remove(0));
    peers[2] = "127.0.0.1:1".to_owned();
    let error = connect(1, listeners.remove(0), &peers, SHORT).err().unwrap();
    assert_eq!(error.culprit(), Some(Rank(0)));
    let error = error.to_string();
    for word in [
        "epoch 3 did not form within 2s",
        "rank 0 is missing (127.0.0.1:",
        "refused",
        "rank 2 is missing (did not dial in)",
    ] {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn a_rank_that_starts_late_is_waited_for() {
    let (mut listeners, peers) = listeners(2);
    let (second, first) = (listeners.pop().unwrap(), listeners.pop().unwrap());
    let address = first.local_addr().unwrap();
    drop(first);
    let late = {
        let peers = peers.clone();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(150));
            connect(0, TcpListener::bind(address).unwrap(), &peers, PATIENT).map(drop)
        })
    };
    assert!(connect(1, second, &peers, PATIENT).is_ok());
    assert_eq!(late.join().unwrap(), Ok(()));
}

#[test]
fn a_wrong_key_keeps_out() {
    // Rank 0 stays longer: the last that rank 1 hears of it is not a closed port.
    let groups = meet(2, |rank| ([rank as u8; 32], EPOCH, SHORT * (2 - rank as u32)));
    for group in &groups {
        let error = error_of(group);
        assert!(error.contains("did not form") && error.contains("same group key"), "{error}");
    }
    assert!(error_of(&groups[1]).contains("rank 0 is missing (127.0.0.1:"), "{}", error_of(&groups[1]));
    assert!(error_of(&groups[1]).contains("it does not hold the group's key"), "{}", error_of(&groups[1]));
}

#[test]
fn a_member_of_an_epoch_that_is_over_learns_so() {
    let groups = meet(2, |rank| (KEY, Epoch(if rank == 0 { 9 } else { 8 }), SHORT));
    let error = error_of(&groups[1]);
    assert!(error.starts_with("this rank is of epoch 8, rank 0 is already of epoch 9"), "{error}");
    let error = error_of(&groups[0]);
    assert!(error.contains("rank 1 is missing") && error.contains("left behind in epoch 8"), "{error}");
    // The other way round, the one who listens is behind.
    let groups = meet(2, |rank| (KEY, Epoch(if rank == 0 { 8 } else { 9 }), SHORT));
    let error = error_of(&groups[0]);
    assert!(error.starts_with("this rank is of epoch 8, rank 1 is already of epoch 9"), "{error}");
    assert!(error_of(&groups[1]).contains("did not form"), "{}", error_of(&groups[1]));
}

#[test]
fn ranks_with_different_plans_say_so() {
    let (mut listeners, peers) = listeners(2);
    let mut more = peers.clone();
    more.push("127.0.0.1:1".to_owned());
    let second = listeners.pop().unwrap();
    let dialer = thread::spawn(move || connect(1, second, &more, SHORT).err().unwrap().to_string());
    let error = connect(0, listeners.pop().unwrap(), &peers, SHORT).err().unwrap().to_string();
    assert!(error.contains("has group size 3, expected 2"), "{error}");
    let error = dialer.join().unwrap();
    assert!(error.contains("has group size 2, expected 3"), "{error}");
}

/// Some say nothing, some say rubbish, some go at once, some are curious: the group forms all the same.
#[test]
fn strangers_disturb_nobody() {
    let (listeners, peers) = listeners(3);
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(&peers[0]).unwrap()).collect();
    let mut rubbish = TcpStream::connect(&peers[0]).unwrap();
    rubbish.write_all(&[0xa5; 4096]).unwrap();
    drop(TcpStream::connect(&peers[0]).unwrap());
    let mut http = TcpStream::connect(&peers[1]).unwrap();
    http.write_all(b"GET / HTTP/1.1\r\nHost: a-name-that-is-long-enough-for-a-hello\r\n\r\n").unwrap();
    let start = Instant::now();
    let members = listeners.into_iter().enumerate().map(|(rank, listener)| {
        let peers = peers.clone();
        thread::spawn(move || {
            let mut group = connect(rank, listener, &peers, PATIENT).unwrap();
            let mut x = [rank as f32 + 1.0];
            group.all_reduce(&mut x).unwrap();
            x[0]
        })
    });
    let sums: Vec<f32> =
        members.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(sums, [6.0; 3]);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // Who spoke no hello was told nothing.
    let mut answer = Vec::new();
    let _ = http.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{answer:?}");
    drop(silent);
}

/// As many as the listener's queue holds come before the meeting, and ever more during it: each was listened to for two
/// seconds, 64 at once, and the members behind them were never heard.
#[test]
fn strangers_without_end_keep_no_member_out() {
    let (listeners, peers) = listeners(2);
    let address = peers[0].parse().unwrap();
    let silent = move || TcpStream::connect_timeout(&address, Duration::from_millis(100));
    let before: Vec<_> = (0..140).map_while(|_| silent().ok()).collect();
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let flood = thread::spawn(move || {
        let mut kept = VecDeque::new();
        while !is_over.load(Ordering::Relaxed) {
            kept.extend(silent());
            // A process may have so many files open.
            kept.drain(..kept.len().saturating_sub(300));
            thread::sleep(Duration::from_millis(5));
        }
    });
    let members = listeners.into_iter().enumerate().map(|(rank, listener)| {
        let peers = peers.clone();
        thread::spawn(move || connect(rank, listener, &peers, PATIENT).map(drop))
    });
    let met: Vec<_> = members.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect();
    over.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    assert!(met.iter().all(Result::is_ok), "{met:?}");
    drop(before);
}

/// What one side says cannot be said back to it: a stranger that plays one member against itself.
#[test]
fn a_mirror_does_not_get_in() {
    let (mut listeners, peers) = listeners(2);
    let target = peers[0].clone();
    let mirror = thread::spawn(move || {
        let mut stream = TcpStream::connect(target).unwrap();
        let hello = [b"FLOTILLA".as_slice(), &1u32.to_le_bytes(), &[9; 32]].concat();
        stream.write_all(&hello).unwrap();
        let mut challenge = [0; 76];
        stream.read_exact(&mut challenge).unwrap();
        // Epoch 3, rank 1, size 2, "proven" by the only MAC that it has seen.
        let claim =
            [&3u64.to_le_bytes()[..], &1u16.to_le_bytes(), &2u16.to_le_bytes(), &challenge[44..]].concat();
        stream.write_all(&claim).unwrap();
        let mut welcome = Vec::new();
        let _ = stream.read_to_end(&mut welcome);
        welcome
    });
    let error = connect(0, listeners.remove(0), &peers, SHORT).err().unwrap().to_string();
    assert!(
        error.contains("someone was turned away") && error.contains("does not hold the group's key"),
        "{error}"
    );
    assert!(mirror.join().unwrap().is_empty());
}

/// Whoever waits for a rank that never comes can be told to stop, and so can who is in its group.
#[test]
fn a_meeting_that_is_stopped_ends_at_once() {
    let (mut listeners, peers) = listeners(2);
    let stop = Stop::default();
    let waits = {
        let (stop, listener) = (stop.clone(), listeners.remove(0));
        thread::spawn(move || {
            let peers = Peers { addresses: &peers, stages: &[2] };
            ProcessCollective::connect_unless(&stop, Rank(0), listener, peers, &KEY, EPOCH, PATIENT)
        })
    };
    thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    stop.stop();
    assert_eq!(waits.join().unwrap().err(), Some(CollectiveError::Aborted));
    assert!(start.elapsed() < PATIENT / 2, "{:?}", start.elapsed());
    // Stopped before it begins.
    let (mut listeners, peers) = groups::listeners(1);
    let mut group = connect(0, listeners.remove(0), &peers, PATIENT).unwrap();
    stop.watch_over(group.abort_handle());
    assert_eq!(group.barrier(), Err(CollectiveError::Aborted));
}
