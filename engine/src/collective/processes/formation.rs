//! How the ranks of a group meet: each dials those below it and accepts those above it, and each proves
//! to the other that it is a member ([`Member`]).
//!
//! Who fails is a stranger: its connection is dropped, and it cannot hold up the others, since each
//! connection has its own thread for a bounded time, and where there are too many the oldest goes for the next: nobody
//! waits behind those that say nothing. Dialers try again until the deadline: the peer may
//! start later, or still be ending the epoch before.

use super::handshake::{HANDSHAKE_MAX, Identity, Member, Refusal};
use crate::collective::{CollectiveError, Stop};
use flotilla_shared::{Epoch, Rank};
use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Connections that are being proven at once. More than the listener's queue holds: what gathered there before the
/// meeting is taken at once, and none of it goes unheard.
const PENDING_MAX: usize = 256;
/// Strangers of one meeting that the log tells of.
const STRANGERS_TOLD: usize = 16;
const RETRY: Duration = Duration::from_millis(20);
/// Between looks at the listener.
const ACCEPT_TICK: Duration = Duration::from_millis(2);

/// Meets all other ranks; returns their streams in rank order.
pub(super) fn meet(
    stop: &Stop,
    rank: Rank,
    listener: TcpListener,
    peers: &[String],
    key: &[u8; 32],
    epoch: Epoch,
    deadline: Duration,
) -> Result<Vec<(Rank, TcpStream)>, CollectiveError> {
    let member = Member { key: *key, identity: Identity { epoch, rank, size: peers.len() as u16 } };
    let meeting = Arc::new(Meeting {
        member,
        until: Instant::now() + deadline,
        over: AtomicBool::new(false),
        pending: Mutex::default(),
    });
    let (sender, arrivals) = mpsc::channel();
    for (peer, address) in peers.iter().enumerate().take(rank.index()) {
        let (meeting, address, sender) = (Arc::clone(&meeting), address.clone(), sender.clone());
        thread::spawn(move || meeting.dial(Rank(peer as u16), &address, &sender));
    }
    let result = collect(stop, &meeting, &listener, &sender, &arrivals, deadline);
    meeting.over.store(true, Ordering::Relaxed);
    // The flag is the socket's, so that a clone of the listener has it too.
    let _ = listener.set_nonblocking(false);
    result
}

/// Takes what the dialing and accepting threads bring until all ranks are there.
fn collect(
    stop: &Stop,
    meeting: &Arc<Meeting>,
    listener: &TcpListener,
    sender: &Sender<Arrival>,
    arrivals: &mpsc::Receiver<Arrival>,
    deadline: Duration,
) -> Result<Vec<(Rank, TcpStream)>, CollectiveError> {
    let system = |doing| move |error: io::Error| CollectiveError::System { doing, reason: error.to_string() };
    listener.set_nonblocking(true).map_err(system("listen"))?;
    let us = meeting.member.identity;
    let others = (0..us.size).map(Rank).filter(|&rank| rank != us.rank);
    let mut reasons: BTreeMap<Rank, String> = others.map(|rank| (rank, absent(rank, us.rank))).collect();
    let mut streams: BTreeMap<Rank, TcpStream> = BTreeMap::new();
    let mut strangers = 0;
    while streams.len() < reasons.len() {
        if Instant::now() >= meeting.until {
            reasons.retain(|rank, _| !streams.contains_key(rank));
            let missing = reasons.into_iter().collect();
            return Err(CollectiveError::NotFormed { epoch: us.epoch, missing, waited: deadline });
        }
        if stop.is_asked() {
            return Err(CollectiveError::Aborted);
        }
        accept_all(meeting, listener, sender);
        match arrivals.recv_timeout(ACCEPT_TICK) {
            // A dialer that tries again gave up its first connection.
            Ok(Arrival::Member(rank, stream)) => drop(streams.insert(rank, stream)),
            Ok(Arrival::NotYet(rank, reason)) => drop(reasons.insert(rank, reason)),
            Ok(Arrival::Fatal(error)) => return Err(error),
            Ok(Arrival::Stranger(reason)) => {
                strangers += 1;
                say_turned_away(strangers, &reason);
                // It may have been one of those who are missing, with another key.
                let waiting = reasons.iter_mut().filter(|(rank, _)| **rank > us.rank);
                let said = format!("did not dial in, but someone was turned away: {reason}");
                waiting.for_each(|(_, why)| why.clone_from(&said));
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
    Ok(streams.into_iter().collect())
}

fn absent(peer: Rank, us: Rank) -> String {
    if peer > us { "did not dial in".to_owned() } else { "was not reached".to_owned() }
}

fn say_turned_away(count: usize, reason: &str) {
    if count <= STRANGERS_TOLD {
        tracing::warn!("collective: a connection was turned away: {reason}");
    }
    if count == STRANGERS_TOLD {
        tracing::warn!("collective: further ones that are turned away in this meeting are not told of");
    }
}

/// Gives each waiting connection a thread; beyond [`PENDING_MAX`] at once the oldest goes for it.
fn accept_all(meeting: &Arc<Meeting>, listener: &TcpListener, sender: &Sender<Arrival>) {
    for _ in 0..PENDING_MAX {
        // What fails here failed for one connection, or will be better at the next tick.
        let Ok((stream, address)) = listener.accept() else { return };
        let Ok(number) = meeting.begin(&stream) else { continue };
        let (meeting, sender) = (Arc::clone(meeting), sender.clone());
        thread::spawn(move || {
            // Who is proven is cut off no more: it hears that it is welcome.
            let proven = || meeting.end(number);
            let accepted = meeting.member.accept(&stream, &address.to_string(), meeting.until, proven);
            meeting.end(number);
            let arrival = match accepted {
                Ok(rank) => Arrival::Member(rank, stream),
                Err(Refusal::Stranger(reason)) => Arrival::Stranger(format!("{address}: {reason}")),
                Err(Refusal::Fatal(error)) => Arrival::Fatal(error),
            };
            // The meeting may be over.
            let _ = sender.send(arrival);
        });
    }
}

enum Arrival {
    Member(Rank, TcpStream),
    /// Why a rank that is dialed is not there yet.
    NotYet(Rank, String),
    Stranger(String),
    Fatal(CollectiveError),
}

/// What the threads of one meeting share.
struct Meeting {
    member: Member,
    until: Instant,
    over: AtomicBool,
    pending: Mutex<Pending>,
}

/// Those that are being proven, in the order in which they came.
#[derive(Default)]
struct Pending {
    came: u64,
    streams: BTreeMap<u64, TcpStream>,
}

impl Meeting {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One is to be proven; if there are too many, the oldest is not any more, and its thread ends.
    fn begin(&self, stream: &TcpStream) -> io::Result<u64> {
        let held = stream.try_clone()?;
        let mut pending = self.pending();
        if pending.streams.len() >= PENDING_MAX
            && let Some((_, oldest)) = pending.streams.pop_first()
        {
            let _ = oldest.shutdown(Shutdown::Both);
        }
        pending.came += 1;
        let number = pending.came;
        pending.streams.insert(number, held);
        Ok(number)
    }

    /// Whether it was let be until now.
    fn end(&self, number: u64) -> bool {
        self.pending().streams.remove(&number).is_some()
    }

    /// Dials until it is let in, or the meeting is over.
    fn dial(&self, peer: Rank, address: &str, sender: &Sender<Arrival>) {
        while !self.over.load(Ordering::Relaxed) && Instant::now() < self.until {
            let arrival = match self.dial_once(peer, address) {
                Ok(stream) => Arrival::Member(peer, stream),
                Err(Refusal::Fatal(error)) => Arrival::Fatal(error),
                Err(Refusal::Stranger(reason)) => Arrival::NotYet(peer, format!("{address}: {reason}")),
            };
            let again = matches!(arrival, Arrival::NotYet(..));
            if sender.send(arrival).is_err() || !again {
                return;
            }
            thread::sleep(RETRY);
        }
    }

    fn dial_once(&self, peer: Rank, address: &str) -> Result<TcpStream, Refusal> {
        let addresses = address.to_socket_addrs().map_err(Refusal::from)?;
        let mut refusal = Refusal::Stranger("the name has no address".to_owned());
        for resolved in addresses {
            let left = self.until.saturating_duration_since(Instant::now()).min(HANDSHAKE_MAX);
            let left = left.max(Duration::from_millis(1));
            match TcpStream::connect_timeout(&resolved, left) {
                Ok(stream) => {
                    return self.member.dial(&stream, peer, address, self.until).map(|()| stream);
                }
                Err(error) => refusal = error.into(),
            }
        }
        Err(refusal)
    }
}
