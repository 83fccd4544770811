//! Groups of every kind, each rank on its own thread.

use flotilla_engine::collective::{Collective, CollectiveError, Solo, TcpCollective, threads};
use flotilla_shared::{Epoch, Rank};
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
) -> Result<TcpCollective, CollectiveError> {
    TcpCollective::connect(Rank(rank as u16), listener, peers, &KEY, EPOCH, deadline)
}

/// Runs `body` on every rank, each on its own thread, and returns what they return.
pub fn run<T: Send + 'static>(
    kind: Kind,
    n: usize,
    deadline: Duration,
    body: impl Fn(Box<dyn Collective>) -> T + Clone + Send + 'static,
) -> Vec<T> {
    let (listeners, peers) = listeners(if kind == Kind::Tcp { n } else { 0 });
    let mut members: Vec<Option<Box<dyn Collective>>> = match kind {
        Kind::Tcp => (0..n).map(|_| None).collect(),
        Kind::Threads if n == 1 => vec![Some(Box::new(Solo::new()))],
        Kind::Threads => {
            let group = threads::group_with_deadline(n, deadline);
            group.into_iter().map(|member| Some(Box::new(member) as Box<dyn Collective>)).collect()
        }
    };
    let mut listeners: Vec<_> = listeners.into_iter().map(Some).collect();
    let threads: Vec<_> = (0..n)
        .map(|rank| {
            let (body, peers, member) = (body.clone(), peers.clone(), members[rank].take());
            let listener = listeners.get_mut(rank).and_then(Option::take);
            thread::spawn(move || {
                body(member.unwrap_or_else(|| {
                    let mut group = connect(rank, listener.unwrap(), &peers, PATIENT).unwrap();
                    group.set_deadline(deadline);
                    Box::new(group)
                }))
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}
