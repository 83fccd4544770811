//! The links to all peers, and the one loop that moves messages over all of them at once.
//!
//! Sockets do not block, and a rank that cannot send goes on receiving, so that two ranks with more to
//! send than the kernel buffers do not wait for each other. The loop spins while messages are expected
//! at once, then sleeps in poll(2). Peers in shared memory ring by their sockets, and only whom they find
//! asleep; so one sleep is for both kinds, and a peer that dies wakes it too.

use super::frame::Frame;
use super::link::{Inbox, Link};
use super::slots::Slots;
use crate::collective::{CollectiveError, Operation, SPIN};
use flotilla_shared::{Epoch, Rank};
use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub(super) struct Mesh {
    rank: Rank,
    /// Among the ranks of the group.
    position: usize,
    epoch: Epoch,
    /// In rank order, without this rank.
    links: Vec<Link>,
    streams: Arc<Streams>,
    /// What ranks of this host show each other.
    slots: Option<Slots>,
    poll: Vec<libc::pollfd>,
    /// Of the exchange that runs, or ran last.
    frame: Frame,
    deadline: Duration,
    /// How long the loop looks before it sleeps.
    spin: Duration,
}

/// What one rank gives to an exchange. Links have ranges of it ([`Link::expect`], [`Link::look`]).
pub(super) struct Outgoing<'a> {
    pub(super) by_wire: &'a [u8],
    pub(super) in_memory: &'a [u8],
    /// The length that the header in memory gives.
    pub(super) announced: u64,
}

impl<'a> Outgoing<'a> {
    /// The same bytes for both kinds of links.
    pub(super) fn plain(bytes: &'a [u8]) -> Self {
        Outgoing { by_wire: bytes, in_memory: bytes, announced: bytes.len() as u64 }
    }
}

/// The sockets, shared with the abort handle.
pub(super) struct Streams {
    aborted: AtomicBool,
    /// In the order of the links.
    sockets: Vec<TcpStream>,
}

impl Mesh {
    /// `streams`: one for each other rank of the group, in rank order.
    pub(super) fn new(
        rank: Rank,
        epoch: Epoch,
        streams: Vec<(Rank, TcpStream)>,
        deadline: Duration,
        spin: Duration,
    ) -> Result<Self, CollectiveError> {
        Streams::prepare(&streams)?;
        let position = streams.iter().filter(|(peer, _)| *peer < rank).count();
        let link = |(slot, (peer, _)): (usize, &(Rank, TcpStream))| {
            Link::new(*peer, slot + usize::from(slot >= position), slot)
        };
        let links = streams.iter().enumerate().map(link).collect();
        let streams = Streams::new(streams);
        Ok(Mesh {
            rank,
            position,
            epoch,
            links,
            poll: streams.to_poll(),
            streams: Arc::new(streams),
            frame: Frame { epoch, sequence: 0, operation: Operation::Barrier },
            slots: None,
            deadline,
            spin,
        })
    }

    /// From now on, the members of `slots` are reached by memory.
    pub(super) fn share(&mut self, slots: Slots) {
        for link in &mut self.links {
            if let Some(place) = slots.place(link.peer()) {
                link.share(place);
            }
        }
        self.spin = self.spin.min(spin(slots.members().len()));
        self.slots = Some(slots);
    }

    /// Lets each link in memory keep what its peer shows: `part` of the length that its header gave.
    pub(super) fn keep_shown(&mut self, is_first: bool, part: impl Fn(usize) -> usize) {
        for link in &mut self.links {
            if let Some((place, slots)) = link.place().zip(self.slots.as_ref()) {
                link.keep(slots.bytes(place, part(link.length())), is_first);
            }
        }
    }

    /// What a peer in memory shows in the exchange that was last.
    pub(super) fn shown(&self, link: &Link, length: usize) -> Option<&[u8]> {
        link.place().zip(self.slots.as_ref()).map(|(place, slots)| slots.bytes(place, length))
    }

    pub(super) fn rank(&self) -> Rank {
        self.rank
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn links(&self) -> &[Link] {
        &self.links
    }

    pub(super) fn links_mut(&mut self) -> &mut [Link] {
        &mut self.links
    }

    pub(super) fn streams(&self) -> &Arc<Streams> {
        &self.streams
    }

    pub(super) fn set_spin(&mut self, spin: Duration) {
        self.spin = spin;
    }

    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(super) fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Sends each link its range of what goes out and receives from each as it expects; shows each peer in
    /// memory its range, and sees that all of them have shown theirs.
    pub(super) fn exchange(
        &mut self,
        operation: Operation,
        out: &Outgoing<'_>,
        mut inbox: Inbox<'_>,
    ) -> Result<(), CollectiveError> {
        self.frame = Frame { epoch: self.epoch, sequence: self.frame.sequence + 1, operation };
        self.links.iter_mut().for_each(|link| link.start(&self.frame));
        self.show(out);
        let start = Instant::now();
        let mut moved_last = start;
        loop {
            let (moved, done) = self.advance(out.by_wire, &mut inbox)?;
            if self.streams.aborted.load(Ordering::Relaxed) {
                return Err(CollectiveError::Aborted);
            }
            if done {
                return Ok(());
            }
            let now = Instant::now();
            let Some(left) = self.deadline.checked_sub(now - start).filter(|left| !left.is_zero()) else {
                return Err(self.late(now - start));
            };
            if moved {
                moved_last = now;
            } else if now - moved_last < self.spin {
                std::hint::spin_loop();
            } else {
                self.sleep(left)?;
                moved_last = Instant::now();
            }
        }
    }

    /// Whether anything moved, and whether all is done.
    fn advance(&mut self, out: &[u8], inbox: &mut Inbox<'_>) -> Result<(bool, bool), CollectiveError> {
        let (mut moved, mut done) = (false, true);
        for (link, socket) in self.links.iter_mut().zip(&self.streams.sockets) {
            let result = match link.place().zip(self.slots.as_ref()) {
                Some((place, slots)) => link.advance_in_memory(place, slots, &self.frame),
                None => link.advance(socket, out, inbox, &self.frame),
            };
            moved |= result.map_err(|error| self.streams.cause(error))?;
            done &= link.is_done();
        }
        Ok((moved, done))
    }

    /// Lets the peers in memory read what is for them, and wakes those that sleep.
    fn show(&mut self, out: &Outgoing<'_>) {
        let Some(slots) = &mut self.slots else {
            return;
        };
        let ranges = self.links.iter().filter(|link| link.place().is_some()).map(Link::out);
        slots.show(&self.frame.header(out.announced), out.in_memory, ranges);
        for (link, mut socket) in self.links.iter_mut().zip(&self.streams.sockets) {
            if let Some(place) = link.place() {
                link.is_shown();
                if slots.is_asleep(place) {
                    // A link that is full of bells has one to wake by; one that is closed is seen elsewhere.
                    let _ = socket.write(&self.frame.rings());
                }
            }
        }
    }

    /// Blocks until some unfinished link can go on, or `left` is over.
    fn sleep(&mut self, left: Duration) -> Result<(), CollectiveError> {
        self.say_asleep(true);
        // Who shows something after this look sees a sleeper.
        let result = if self.is_any_shown() { Ok(()) } else { self.wait_for_sockets(left) };
        self.say_asleep(false);
        result?;
        self.hear()
    }

    fn say_asleep(&self, asleep: bool) {
        if let Some(slots) = &self.slots {
            slots.say_asleep(asleep);
        }
    }

    /// Whether a peer in memory has shown what is still waited for.
    fn is_any_shown(&self) -> bool {
        let is_new = |link: &Link| {
            let place = link.place().zip(self.slots.as_ref());
            !link.is_received() && place.is_some_and(|(place, slots)| slots.has_shown(place))
        };
        self.links.iter().any(is_new)
    }

    fn wait_for_sockets(&mut self, left: Duration) -> Result<(), CollectiveError> {
        for ((link, socket), poll) in self.links.iter().zip(&self.streams.sockets).zip(&mut self.poll) {
            // poll(2) passes over negative descriptors.
            poll.fd = if link.is_done() { -1 } else { socket.as_raw_fd() };
            poll.events = if link.is_sent() { 0 } else { libc::POLLOUT };
            poll.events |= if link.is_received() { 0 } else { libc::POLLIN };
            poll.revents = 0;
        }
        let milliseconds = left.as_millis().saturating_add(1).min(i32::MAX as u128) as libc::c_int;
        // SAFETY: the pointer and the length are those of one vector, which nobody else uses.
        let ready =
            unsafe { libc::poll(self.poll.as_mut_ptr(), self.poll.len() as libc::nfds_t, milliseconds) };
        let error = io::Error::last_os_error();
        if ready < 0 && error.kind() != ErrorKind::Interrupted {
            return Err(CollectiveError::System { doing: "wait for sockets", reason: error.to_string() });
        }
        Ok(())
    }

    /// Takes the bells that peers in memory rang. Who has gone, but has shown what is waited for, may go.
    fn hear(&mut self) -> Result<(), CollectiveError> {
        let links = self.links.iter_mut().zip(&self.streams.sockets);
        for ((link, socket), poll) in links.zip(&self.poll) {
            let Some((place, slots)) = link.place().zip(self.slots.as_ref()) else {
                continue;
            };
            if poll.fd >= 0
                && poll.revents != 0
                && let Err(error) = link.hear(socket, &self.frame)
                && !slots.has_shown(place)
            {
                return Err(self.streams.cause(error));
            }
        }
        Ok(())
    }

    /// Whether a peer has closed its link, or this rank's abort handle has; does not wait.
    pub(super) fn is_broken(&mut self) -> bool {
        self.streams.is_any_closed(&mut self.poll)
    }

    fn late(&self, waited: Duration) -> CollectiveError {
        // Who did not send is late; who did not take may wait for another.
        let peers = |late: fn(&Link) -> bool| -> Vec<Rank> {
            self.links.iter().filter(|link| late(link)).map(Link::peer).collect()
        };
        let mut missing = peers(|link| !link.is_received());
        if missing.is_empty() {
            missing = peers(|link| !link.is_sent());
        }
        let (operation, size) = (self.frame.operation, self.links.len() + 1);
        CollectiveError::Deadline { peer: missing[0], missing, size, operation, waited }
    }

    /// Tells the peers, where a message may begin, whose fault it is, and closes all links.
    pub(super) fn give_up(&self, culprit: Option<Rank>) {
        for (link, mut socket) in self.links.iter().zip(&self.streams.sockets) {
            if link.is_between_messages() {
                // The peers learn by the closed link too; this only says more.
                let _ = socket.write(&self.frame.gives_up(culprit));
            }
        }
        self.streams.close();
    }
}

/// How long a rank with links to all others looks before it sleeps.
pub(super) fn spin_among(streams: &[(Rank, TcpStream)]) -> Duration {
    // Over loopback a peer has this rank's address.
    let is_here = |(_, stream): &&(Rank, TcpStream)| {
        let (theirs, ours) = (stream.peer_addr(), stream.local_addr());
        theirs.is_ok_and(|theirs| ours.is_ok_and(|ours| theirs.ip() == ours.ip()))
    };
    spin(1 + streams.iter().filter(is_here).count())
}

/// For `ranks` on this machine: who spins on a core that a peer needs only delays it.
fn spin(ranks: usize) -> Duration {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if ranks <= cores { SPIN } else { Duration::ZERO }
}

/// Links that an abort handle still knows would stay open otherwise.
impl Drop for Mesh {
    fn drop(&mut self) {
        self.streams.close();
    }
}

impl Streams {
    pub(super) fn new(streams: Vec<(Rank, TcpStream)>) -> Streams {
        let sockets = streams.into_iter().map(|(_, stream)| stream).collect();
        Streams { aborted: AtomicBool::new(false), sockets }
    }

    /// For messages that leave at once, and without waiting.
    pub(super) fn prepare(streams: &[(Rank, TcpStream)]) -> Result<(), CollectiveError> {
        let set_up =
            |stream: &TcpStream| stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true));
        streams
            .iter()
            .try_for_each(|(_, stream)| set_up(stream))
            .map_err(|error| CollectiveError::System { doing: "set up a socket", reason: error.to_string() })
    }

    /// One for each socket.
    pub(super) fn to_poll(&self) -> Vec<libc::pollfd> {
        let poll = |socket: &TcpStream| libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
        self.sockets.iter().map(poll).collect()
    }

    pub(super) fn sockets(&self) -> &[TcpStream] {
        &self.sockets
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    pub(super) fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        self.close();
    }

    pub(super) fn close(&self) {
        for socket in &self.sockets {
            // One that is closed already is what is wanted.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Whether a peer has closed its link, or this rank has. `poll`: one for each socket.
    pub(super) fn is_any_closed(&self, poll: &mut [libc::pollfd]) -> bool {
        const GONE: libc::c_short = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR | libc::POLLNVAL;
        for (socket, poll) in self.sockets.iter().zip(&mut *poll) {
            (poll.fd, poll.events, poll.revents) = (socket.as_raw_fd(), libc::POLLRDHUP, 0);
        }
        // SAFETY: the pointer and the length are those of one vector, which nobody else uses.
        let ready = unsafe { libc::poll(poll.as_mut_ptr(), poll.len() as libc::nfds_t, 0) };
        ready > 0 && poll.iter().any(|poll| poll.revents & GONE != 0)
    }

    /// A link that this rank's own abort closed is nobody's fault.
    pub(super) fn cause(&self, error: CollectiveError) -> CollectiveError {
        if self.aborted.load(Ordering::SeqCst) { CollectiveError::Aborted } else { error }
    }
}
