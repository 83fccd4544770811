//! Ranks that are processes of their own, this test program again: that they open each other's memory, and
//! that one which dies or stops, as only a process can, is named.

use crate::groups::{KEY, Kind, PATIENT, connect, listeners};
use flotilla_engine::collective::{AllReduce, CollectiveError, ProcessCollective};
use flotilla_shared::{Epoch, Rank};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RANK: &str = "FLOTILLA_TEST_RANK";
const PEERS: &str = "FLOTILLA_TEST_PEERS";
const KIND: &str = "FLOTILLA_TEST_KIND";
const SHORT: Duration = Duration::from_millis(500);
/// Far less than [`PATIENT`].
const SOON: Duration = Duration::from_secs(10);

/// Ends with the test, however that ends.
struct Member(Child);

impl Drop for Member {
    fn drop(&mut self) {
        // One that has ended cannot be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Member {
    /// A rank that sums until the group ends.
    fn start(kind: Kind, rank: usize, peers: &[String]) -> Member {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "processes::a_process_that_is_killed_is_named"]);
        command.env(RANK, rank.to_string()).env(PEERS, peers.join(",")).env(KIND, format!("{kind:?}"));
        Member(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

/// What a process does that was started as `rank`.
fn be_member(rank: &str) {
    let (rank, peers): (usize, Vec<String>) =
        (rank.parse().unwrap(), std::env::var(PEERS).unwrap().split(',').map(String::from).collect());
    let kind = *Kind::ALL.iter().find(|kind| std::env::var(KIND) == Ok(format!("{kind:?}"))).unwrap();
    let listener = TcpListener::bind(&peers[rank]).unwrap();
    let mut group = connect(rank, listener, &peers, PATIENT).unwrap();
    group.link(&kind.links(peers.len())).unwrap();
    while group.all_reduce(&mut [rank as f32; 2880]).is_ok() {}
}

/// Rank 0 here, all others processes of their own.
fn group(kind: Kind, n: usize) -> (ProcessCollective, Vec<Member>) {
    let (mut listeners, peers) = listeners(n);
    let first = listeners.remove(0);
    // The others bind what is free by now.
    drop(listeners);
    let members = (1..n).map(|rank| Member::start(kind, rank, &peers)).collect();
    let mut group = ProcessCollective::connect(Rank(0), first, &peers, &KEY, Epoch(3), PATIENT).unwrap();
    let reach = group.link(&kind.links(n)).unwrap();
    assert_eq!(
        reach.by_memory.len(),
        kind.links(n).hosts.iter().filter(|host| **host == 0).count().saturating_sub(1)
    );
    for _ in 0..100 {
        let mut x = [0.0f32; 2880];
        group.all_reduce(&mut x).unwrap();
        assert!(x.iter().all(|x| *x == (0..n).sum::<usize>() as f32));
    }
    (group, members)
}

fn error_after(group: &mut ProcessCollective) -> CollectiveError {
    let start = Instant::now();
    let error = loop {
        if let Err(error) = group.all_reduce(&mut [0.0; 2880]) {
            break error;
        }
    };
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    error
}

const OF_PROCESSES: [Kind; 3] = [Kind::Tcp, Kind::Shm, Kind::Mixed];

#[test]
fn a_process_that_is_killed_is_named() {
    // This test is also what `Member::start` runs in the other processes.
    if let Ok(rank) = std::env::var(RANK) {
        return be_member(&rank);
    }
    for kind in OF_PROCESSES {
        let (mut group, members) = group(kind, 3);
        members[1].signal("-KILL");
        let error = error_after(&mut group);
        assert_eq!(error.culprit(), Some(Rank(2)), "{kind:?}: {error}");
    }
}

#[test]
fn a_process_that_is_stopped_is_named_at_the_deadline() {
    for kind in OF_PROCESSES {
        let (mut group, members) = group(kind, 3);
        group.set_deadline(SHORT);
        members[0].signal("-STOP");
        let error = error_after(&mut group);
        assert_eq!(error.culprit(), Some(Rank(1)), "{kind:?}: {error}");
        assert!(matches!(error, CollectiveError::Deadline { .. }), "{kind:?}: {error}");
    }
}

/// A rank that goes while it is asleep beside its memory holds nobody's memory: nothing has a name.
#[test]
fn nothing_is_left_of_memory_that_was_shared() {
    let (group, members) = group(Kind::Shm, 2);
    let name = |process: u32| {
        let files = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        targets.filter(|target| target.to_string_lossy().contains("flotilla-ranks")).count()
    };
    // Other tests of this process may be meeting right now; the other process is this group's alone.
    assert_eq!(name(members[0].0.id()), 0);
    drop(group);
}
