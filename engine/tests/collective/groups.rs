//! Groups of every kind, each rank on its own thread.

use flotilla_engine::collective::{
    Collective, CollectiveError, Peers, ProcessCollective, Solo, Stop, threads,
};
use flotilla_shared::{Epoch, Links, Rank};
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

pub const KEY: [u8; 32] = [7; 32];
pub const EPOCH: Epoch = Epoch(3);
/// Long enough for a loaded machine; what must fail fast asks for less.
pub const PATIENT: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Threads,
    Tcp,
    /// Memory between all.
    Shm,
    /// Two hosts: pairs of ranks share memory, others talk by TCP.
    Mixed,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Threads, Kind::Tcp, Kind::Shm, Kind::Mixed];

    /// How `n` ranks are linked that have met over TCP.
    pub fn links(self, n: usize) -> Links {
        let host = |rank: usize| match self {
            Kind::Shm => 0,
            _ => (rank / 2 % 2) as u16,
        };
        match self {
            Kind::Threads | Kind::Tcp => Links::default(),
            Kind::Shm | Kind::Mixed => {
                Links { hosts: (0..n).map(host).collect(), must_share: true, ..Links::default() }
            }
        }
    }
}

/// Listeners on free ports, and their addresses.
pub fn listeners(n: usize) -> (Vec<TcpListener>, Vec<String>) {
    let listeners: Vec<_> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    (listeners, addresses)
}

pub fn connect(
    rank: usize,
    listener: TcpListener,
    peers: &[String],
    deadline: Duration,
) -> Result<ProcessCollective, CollectiveError> {
    ProcessCollective::connect(Rank(rank as u16), listener, peers, &KEY, EPOCH, deadline)
}

/// Runs `body` on every rank, each on its own thread, and returns what they return.
pub fn run<T: Send + 'static>(
    kind: Kind,
    n: usize,
    deadline: Duration,
    body: impl Fn(Box<dyn Collective>) -> T + Clone + Send + 'static,
) -> Vec<T> {
    run_linked(kind, n, deadline, kind.links(n), body)
}

/// The same, linked in another way where the ranks meet over TCP.
pub fn run_linked<T: Send + 'static>(
    kind: Kind,
    n: usize,
    deadline: Duration,
    links: Links,
    body: impl Fn(Box<dyn Collective>) -> T + Clone + Send + 'static,
) -> Vec<T> {
    run_cut(kind, &[n], deadline, links, body)
}

/// The same in stages of so many ranks each.
pub fn run_stages<T: Send + 'static>(
    kind: Kind,
    stages: &[usize],
    deadline: Duration,
    body: impl Fn(Box<dyn Collective>) -> T + Clone + Send + 'static,
) -> Vec<T> {
    run_cut(kind, stages, deadline, kind.links(stages.iter().sum()), body)
}

fn run_cut<T: Send + 'static>(
    kind: Kind,
    stages: &[usize],
    deadline: Duration,
    links: Links,
    body: impl Fn(Box<dyn Collective>) -> T + Clone + Send + 'static,
) -> Vec<T> {
    let n = stages.iter().sum();
    let (listeners, peers) = listeners(if kind == Kind::Threads { 0 } else { n });
    let mut members: Vec<Option<Box<dyn Collective>>> = match kind {
        Kind::Tcp | Kind::Shm | Kind::Mixed => (0..n).map(|_| None).collect(),
        Kind::Threads if n == 1 => vec![Some(Box::new(Solo::new()))],
        Kind::Threads => {
            let group = threads::stages_with_deadline(stages, deadline);
            group.into_iter().map(|member| Some(Box::new(member) as Box<dyn Collective>)).collect()
        }
    };
    let mut listeners: Vec<_> = listeners.into_iter().map(Some).collect();
    let threads: Vec<_> = (0..n)
        .map(|rank| {
            let (body, peers, member) = (body.clone(), peers.clone(), members[rank].take());
            let listener = listeners.get_mut(rank).and_then(Option::take);
            let (links, stages) = (links.clone(), stages.to_vec());
            thread::spawn(move || {
                body(member.unwrap_or_else(|| {
                    let (us, listener) = (Rank(rank as u16), listener.unwrap());
                    let peers = Peers { addresses: &peers, stages: &stages };
                    let stop = Stop::default();
                    let group =
                        ProcessCollective::connect_unless(&stop, us, listener, peers, &KEY, EPOCH, PATIENT);
                    let mut group = group.unwrap();
                    group.link(&links).unwrap();
                    group.set_deadline(deadline);
                    Box::new(group)
                }))
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}
