//! The links to all peers, and the one loop that moves messages over all of them at once.
//!
//! Sockets do not block, and a rank that cannot send goes on receiving, so that two ranks with more to
//! send than the kernel buffers do not wait for each other. The loop spins while messages are expected
//! at once, then sleeps in poll(2).

use super::frame::{Frame, HEADER_BYTES, Length};
use crate::collective::{CollectiveError, Operation, SPIN};
use flotilla_shared::{Epoch, Rank};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Bytes that one rank may give to an all-gather: 64 rows of the whole vocabulary, were one rank to own
/// it, as f32.
pub(super) const GATHER_BYTES_MAX: u64 = 64 << 20;

pub(super) struct Mesh {
    rank: Rank,
    epoch: Epoch,
    /// In rank order, without this rank.
    links: Vec<Link>,
    streams: Arc<Streams>,
    poll: Vec<libc::pollfd>,
    /// Of the exchange that runs, or ran last.
    frame: Frame,
    deadline: Duration,
}

/// The sockets, shared with the abort handle.
pub(super) struct Streams {
    aborted: AtomicBool,
    /// In the order of the links.
    sockets: Vec<TcpStream>,
}

/// One peer, and how far its two messages of the exchange are.
pub(super) struct Link {
    peer: Rank,
    slot: usize,
    /// Of the exchange's outgoing bytes, and how much of header and bytes is sent.
    out: Range<usize>,
    out_header: [u8; HEADER_BYTES],
    sent: usize,
    /// Of the exchange's inbox, and how much of header and bytes has come.
    into: Range<usize>,
    in_header: [u8; HEADER_BYTES],
    received: usize,
    /// Bytes that follow the header, once it is checked.
    in_length: Option<usize>,
    /// Where the bytes go if their number is not known before.
    own: Vec<u8>,
}

/// Where incoming bytes go.
pub(super) enum Inbox<'a> {
    /// Each link's range of it.
    Ranges(&'a mut [u8]),
    /// Each link's own buffer, of the length that the peer gives.
    Own,
}

impl Mesh {
    /// `streams`: one for each other rank, in rank order.
    pub(super) fn new(
        rank: Rank,
        epoch: Epoch,
        streams: Vec<(Rank, TcpStream)>,
        deadline: Duration,
    ) -> Result<Self, CollectiveError> {
        for (_, stream) in &streams {
            stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).map_err(|error| {
                CollectiveError::System { doing: "set up a socket", reason: error.to_string() }
            })?;
        }
        let links = streams.iter().enumerate().map(|(slot, (peer, _))| Link::new(*peer, slot)).collect();
        let sockets: Vec<TcpStream> = streams.into_iter().map(|(_, stream)| stream).collect();
        let poll =
            sockets.iter().map(|socket| libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 });
        Ok(Mesh {
            rank,
            epoch,
            links,
            poll: poll.collect(),
            streams: Arc::new(Streams { aborted: AtomicBool::new(false), sockets }),
            frame: Frame { epoch, sequence: 0, operation: Operation::Barrier },
            deadline,
        })
    }

    pub(super) fn rank(&self) -> Rank {
        self.rank
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

    pub(super) fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Sends each link its range of `out` and receives from each as it expects ([`Link::expect`]).
    pub(super) fn exchange(
        &mut self,
        operation: Operation,
        out: &[u8],
        mut inbox: Inbox<'_>,
    ) -> Result<(), CollectiveError> {
        self.frame = Frame { epoch: self.epoch, sequence: self.frame.sequence + 1, operation };
        for link in &mut self.links {
            link.out_header = self.frame.header(link.out.len() as u64);
        }
        let start = Instant::now();
        let mut moved_last = start;
        loop {
            let (mut moved, mut done) = (false, true);
            for (link, socket) in self.links.iter_mut().zip(&self.streams.sockets) {
                let result = link.advance(socket, out, &mut inbox, &self.frame);
                moved |= result.map_err(|error| self.streams.cause(error))?;
                done &= link.is_done();
            }
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
            } else if now - moved_last < SPIN {
                std::hint::spin_loop();
            } else {
                self.sleep(left)?;
                moved_last = Instant::now();
            }
        }
    }

    /// Blocks until some unfinished link can go on, or `left` is over.
    fn sleep(&mut self, left: Duration) -> Result<(), CollectiveError> {
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

    /// Whether a peer has closed its link, or this rank's abort handle has; does not wait.
    pub(super) fn is_broken(&mut self) -> bool {
        const GONE: libc::c_short = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR | libc::POLLNVAL;
        for (socket, poll) in self.streams.sockets.iter().zip(&mut self.poll) {
            (poll.fd, poll.events, poll.revents) = (socket.as_raw_fd(), libc::POLLRDHUP, 0);
        }
        // SAFETY: as in `sleep`.
        let ready = unsafe { libc::poll(self.poll.as_mut_ptr(), self.poll.len() as libc::nfds_t, 0) };
        ready > 0 && self.poll.iter().any(|poll| poll.revents & GONE != 0)
    }

    fn late(&self, waited: Duration) -> CollectiveError {
        // Who did not send is late; who did not take may wait for another.
        let peers = |late: fn(&Link) -> bool| -> Vec<Rank> {
            self.links.iter().filter(|link| late(link)).map(|link| link.peer).collect()
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
            if link.sent == 0 || link.is_sent() {
                // The peers learn by the closed link too; this only says more.
                let _ = socket.write(&self.frame.gives_up(culprit));
            }
        }
        self.streams.close();
    }
}

/// Links that an abort handle still knows would stay open otherwise.
impl Drop for Mesh {
    fn drop(&mut self) {
        self.streams.close();
    }
}

impl Streams {
    pub(super) fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        self.close();
    }

    fn close(&self) {
        for socket in &self.sockets {
            // One that is closed already is what is wanted.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// A link that this rank's own abort closed is nobody's fault.
    fn cause(&self, error: CollectiveError) -> CollectiveError {
        if self.aborted.load(Ordering::SeqCst) { CollectiveError::Aborted } else { error }
    }
}

impl Link {
    fn new(peer: Rank, slot: usize) -> Self {
        Link {
            peer,
            slot,
            out: 0..0,
            out_header: [0; HEADER_BYTES],
            sent: 0,
            into: 0..0,
            in_header: [0; HEADER_BYTES],
            received: 0,
            in_length: None,
            own: Vec::new(),
        }
    }

    pub(super) fn peer(&self) -> Rank {
        self.peer
    }

    /// Place among the links.
    pub(super) fn slot(&self) -> usize {
        self.slot
    }

    /// What came, where its length was not known before.
    pub(super) fn received(&self) -> &[u8] {
        &self.own
    }

    /// What the next exchange sends (range of its outgoing bytes) and where what comes goes (range of
    /// its inbox, if that has ranges).
    pub(super) fn expect(&mut self, out: Range<usize>, into: Range<usize>) {
        (self.out, self.into) = (out, into);
        (self.sent, self.received, self.in_length) = (0, 0, None);
    }

    fn is_sent(&self) -> bool {
        self.sent == HEADER_BYTES + self.out.len()
    }

    fn is_received(&self) -> bool {
        self.in_length.is_some_and(|length| self.received == HEADER_BYTES + length)
    }

    fn is_done(&self) -> bool {
        self.is_sent() && self.is_received()
    }

    /// Sends and receives what can be at once; whether anything could.
    fn advance(
        &mut self,
        socket: &TcpStream,
        out: &[u8],
        inbox: &mut Inbox<'_>,
        frame: &Frame,
    ) -> Result<bool, CollectiveError> {
        let mut moved = false;
        let mut broken = None;
        if !self.is_sent() {
            match self.send(socket, out) {
                Ok(bytes) => moved |= bytes > 0,
                Err(error) => broken = Some(self.lost(frame, error.to_string())),
            }
        }
        if !self.is_received() {
            // A peer that gave up may have said why before it closed the link.
            moved |= self.receive(socket, inbox, frame)?;
        }
        broken.map_or(Ok(moved), Err)
    }

    fn send(&mut self, mut socket: &TcpStream, out: &[u8]) -> io::Result<usize> {
        let header = &self.out_header[self.sent.min(HEADER_BYTES)..];
        let body = &out[self.out.clone()][self.sent.saturating_sub(HEADER_BYTES)..];
        let bytes = unless_blocked(socket.write_vectored(&[IoSlice::new(header), IoSlice::new(body)]))?;
        self.sent += bytes.unwrap_or(0);
        Ok(bytes.unwrap_or(0))
    }

    fn receive(
        &mut self,
        mut socket: &TcpStream,
        inbox: &mut Inbox<'_>,
        frame: &Frame,
    ) -> Result<bool, CollectiveError> {
        let header = &mut self.in_header[self.received.min(HEADER_BYTES)..];
        let (body, length) = match inbox {
            Inbox::Ranges(inbox) => (&mut inbox[self.into.clone()], Length::Exactly(self.into.len() as u64)),
            // Empty until the header has given its length.
            Inbox::Own => {
                let known = self.in_length.unwrap_or(0);
                (&mut self.own[..known], Length::AtMost(GATHER_BYTES_MAX))
            }
        };
        let body = &mut body[self.received.saturating_sub(HEADER_BYTES)..];
        let read = socket.read_vectored(&mut [IoSliceMut::new(header), IoSliceMut::new(body)]);
        match unless_blocked(read) {
            Ok(None) => return Ok(false),
            Ok(Some(0)) => return Err(self.lost(frame, "it closed the connection".to_owned())),
            Ok(Some(bytes)) => self.received += bytes,
            Err(error) => return Err(self.lost(frame, error.to_string())),
        }
        if self.in_length.is_none() && self.received >= HEADER_BYTES {
            let length = frame.check(&self.in_header, self.peer, length)? as usize;
            self.in_length = Some(length);
            if let Inbox::Own = inbox {
                self.own.resize(length, 0);
            }
        }
        Ok(true)
    }

    fn lost(&self, frame: &Frame, reason: String) -> CollectiveError {
        CollectiveError::PeerLost { peer: self.peer, operation: frame.operation, reason }
    }
}

/// `None` where the socket would have blocked, or a signal came first.
fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}
