//! Links to the ranks of other stages, by TCP, or by memory within a host ([`super::pipe`]): what is handed on goes one
//! way, each message by itself, and nobody waits for the other side to be at the same place. Who sends waits only for room
//! in the link; the receiver finds what came before it asked. Beside memory the socket has only bells and last words.

use super::ProcessCollective;
use super::frame::{Frame, HEADER_BYTES, Length, heard};
use super::mesh::Streams;
use super::pipe::{Pipe, Wants};
use crate::collective::stages::{Courier, Seat, TOKENS_BYTES_MAX};
use crate::collective::{CollectiveError, Operation};
use flotilla_shared::{Epoch, Rank};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) struct Neighbours {
    epoch: Epoch,
    links: Vec<Link>,
    /// In the order of the links.
    streams: Arc<Streams>,
    poll: Vec<libc::pollfd>,
    deadline: Duration,
    spin: Duration,
}

/// A link to one rank, and how far it is.
struct Link {
    peer: Rank,
    /// Where it shares memory with this rank.
    pipe: Option<Pipe>,
    /// Messages sent and received.
    sent: u64,
    received: u64,
    /// A message to the peer has begun and not ended.
    is_sending: bool,
    /// What has come of the next message's header.
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    /// Beside memory: what has come of a bell, and why no more will.
    bell: [u8; HEADER_BYTES],
    bell_bytes: usize,
    gone: Option<CollectiveError>,
}

impl Neighbours {
    /// `streams`: one for each rank of another stage.
    pub(super) fn new(
        epoch: Epoch,
        streams: Vec<(Rank, TcpStream)>,
        deadline: Duration,
        spin: Duration,
    ) -> Result<Self, CollectiveError> {
        Streams::prepare(&streams)?;
        let link = |(peer, _): &(Rank, TcpStream)| Link {
            peer: *peer,
            pipe: None,
            sent: 0,
            received: 0,
            is_sending: false,
            header: [0; HEADER_BYTES],
            header_bytes: 0,
            bell: [0; HEADER_BYTES],
            bell_bytes: 0,
            gone: None,
        };
        let links = streams.iter().map(link).collect();
        let streams = Streams::new(streams);
        Ok(Neighbours { epoch, links, poll: streams.to_poll(), streams: Arc::new(streams), deadline, spin })
    }

    /// From now on the link to `peer` is memory.
    pub(super) fn share(&mut self, peer: usize, pipe: Pipe) {
        let at = self.at(peer);
        self.links[at].pipe = Some(pipe);
    }

    /// Those whose memory this rank shares.
    pub(super) fn by_memory(&self) -> impl Iterator<Item = Rank> {
        self.links.iter().filter(|link| link.pipe.is_some()).map(|link| link.peer)
    }

    pub(super) fn streams(&self) -> &Arc<Streams> {
        &self.streams
    }

    pub(super) fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    pub(super) fn set_spin(&mut self, spin: Duration) {
        self.spin = spin;
    }

    pub(super) fn is_broken(&mut self) -> bool {
        self.streams.is_any_closed(&mut self.poll)
    }

    /// Tells them, where a message may begin, whose fault it is, and closes all links.
    pub(super) fn give_up(&self, culprit: Option<Rank>) {
        let frame = Frame { epoch: self.epoch, sequence: 0, operation: Operation::Tokens };
        for (link, mut socket) in self.links.iter().zip(self.streams.sockets()) {
            if link.pipe.is_some() || !link.is_sending {
                // They learn by the closed link too; this only says more.
                let _ = socket.write(&frame.gives_up(culprit));
            }
        }
        self.streams.close();
    }

    fn at(&self, rank: usize) -> usize {
        let found = self.links.iter().position(|link| link.peer.index() == rank);
        found.expect("it is of another stage")
    }

    fn send(&mut self, to: usize, operation: Operation, bytes: &[u8]) -> Result<(), CollectiveError> {
        let at = self.at(to);
        let link = &mut self.links[at];
        link.sent += 1;
        link.is_sending = true;
        let frame = Frame { epoch: self.epoch, sequence: link.sent, operation };
        let header = frame.header(bytes.len() as u64);
        let (start, mut done) = (Instant::now(), 0);
        while done < HEADER_BYTES + bytes.len() {
            let header = &header[done.min(HEADER_BYTES)..];
            let body = &bytes[done.saturating_sub(HEADER_BYTES)..];
            match self.links[at].write(&self.streams.sockets()[at], &frame, header, body) {
                Ok(sent) => done += sent,
                Err(error) if is_blocked(&error) => self.pause(at, Wants::Room, start, &frame)?,
                Err(error) => return Err(self.lost_or_said(at, operation, error.to_string())),
            }
        }
        self.links[at].is_sending = false;
        Ok(())
    }

    /// The length of the next message, once its header is there; `None` where it is not, and nobody waits.
    fn next_length(
        &mut self,
        at: usize,
        operation: Operation,
        length: Length,
        wait: bool,
    ) -> Result<Option<usize>, CollectiveError> {
        let start = Instant::now();
        let frame = Frame { epoch: self.epoch, sequence: self.links[at].received + 1, operation };
        while self.links[at].header_bytes < HEADER_BYTES {
            let link = &mut self.links[at];
            match link.read_header(&self.streams.sockets()[at], &frame) {
                Ok(0) => return Err(self.lost(at, operation, "it closed the connection".into())),
                Ok(_) => {}
                Err(error) if is_blocked(&error) && !wait && link.header_bytes == 0 => return Ok(None),
                Err(error) if is_blocked(&error) => self.pause(at, Wants::Bytes, start, &frame)?,
                Err(error) => return Err(self.lost(at, operation, error.to_string())),
            }
        }
        let link = &mut self.links[at];
        link.header_bytes = 0;
        link.received += 1;
        frame.check(&link.header, link.peer, length).map(|length| Some(length as usize))
    }

    fn read(&mut self, at: usize, operation: Operation, into: &mut [u8]) -> Result<(), CollectiveError> {
        let (start, mut done) = (Instant::now(), 0);
        let frame = Frame { epoch: self.epoch, sequence: self.links[at].received, operation };
        while done < into.len() {
            match self.links[at].read(&self.streams.sockets()[at], &frame, &mut into[done..]) {
                Ok(0) => return Err(self.lost(at, operation, "it closed the connection".into())),
                Ok(read) => done += read,
                Err(error) if is_blocked(&error) => self.pause(at, Wants::Bytes, start, &frame)?,
                Err(error) => return Err(self.lost(at, operation, error.to_string())),
            }
        }
        Ok(())
    }

    /// Looks again soon, or sleeps until the link can go on.
    fn pause(
        &mut self,
        at: usize,
        wants: Wants,
        start: Instant,
        frame: &Frame,
    ) -> Result<(), CollectiveError> {
        if self.streams.is_aborted() {
            return Err(CollectiveError::Aborted);
        }
        let (waited, operation) = (start.elapsed(), frame.operation);
        let Some(left) = self.deadline.checked_sub(waited).filter(|left| !left.is_zero()) else {
            let peer = self.links[at].peer;
            return Err(CollectiveError::Deadline { peer, missing: vec![peer], size: 1, operation, waited });
        };
        if waited < self.spin {
            std::hint::spin_loop();
            return Ok(());
        }
        let socket = &self.streams.sockets()[at];
        self.links[at].sleep(socket, wants, left, frame).map_err(|error| self.streams.cause(error))
    }

    fn lost(&self, at: usize, operation: Operation, reason: String) -> CollectiveError {
        self.streams.cause(CollectiveError::PeerLost { peer: self.links[at].peer, operation, reason })
    }

    /// Of a peer that takes nothing more: its last words, where it has said some.
    fn lost_or_said(&mut self, at: usize, operation: Operation, reason: String) -> CollectiveError {
        let said = self.next_length(at, operation, Length::AtMost(0), false);
        match said {
            Err(said @ CollectiveError::PeerGaveUp { .. }) => said,
            _ => self.lost(at, operation, reason),
        }
    }
}

impl Link {
    fn write(
        &mut self,
        mut socket: &TcpStream,
        frame: &Frame,
        header: &[u8],
        body: &[u8],
    ) -> io::Result<usize> {
        let Some(pipe) = &mut self.pipe else {
            return socket.write_vectored(&[IoSlice::new(header), IoSlice::new(body)]);
        };
        let written = pipe.write(if header.is_empty() { body } else { header })?;
        ring(socket, frame, pipe.is_asleep(Wants::Bytes));
        Ok(written)
    }

    fn read(&mut self, mut socket: &TcpStream, frame: &Frame, into: &mut [u8]) -> io::Result<usize> {
        let Some(pipe) = &mut self.pipe else { return socket.read(into) };
        let read = pipe.read(into)?;
        ring(socket, frame, pipe.is_asleep(Wants::Room));
        Ok(read)
    }

    fn read_header(&mut self, socket: &TcpStream, frame: &Frame) -> io::Result<usize> {
        let mut header = self.header;
        let read = self.read(socket, frame, &mut header[self.header_bytes..])?;
        self.header = header;
        self.header_bytes += read;
        Ok(read)
    }

    /// Until the socket can go on; beside memory, until it is rung.
    fn sleep(
        &mut self,
        socket: &TcpStream,
        wants: Wants,
        left: Duration,
        frame: &Frame,
    ) -> Result<(), CollectiveError> {
        let Some(pipe) = &self.pipe else {
            let events = if wants == Wants::Room { libc::POLLOUT } else { libc::POLLIN };
            wait_for(socket, events, left);
            return Ok(());
        };
        pipe.say_asleep(wants, true);
        // Who writes or reads after this look sees a sleeper.
        if !pipe.has(wants) {
            wait_for(socket, libc::POLLIN, left);
        }
        pipe.say_asleep(wants, false);
        if self.gone.is_none() {
            self.gone = self.take_bells(socket, frame).err();
        }
        // Who has gone, but has left what is wanted, may go.
        let has = self.pipe.as_ref().is_some_and(|pipe| pipe.has(wants));
        self.gone.clone().filter(|_| !has).map_or(Ok(()), Err)
    }

    fn take_bells(&mut self, mut socket: &TcpStream, frame: &Frame) -> Result<(), CollectiveError> {
        let (peer, operation) = (self.peer, frame.operation);
        let lost = |reason: String| CollectiveError::PeerLost { peer, operation, reason };
        loop {
            match socket.read(&mut self.bell[self.bell_bytes..]) {
                Ok(0) => return Err(lost("it closed the connection".into())),
                Ok(bytes) => self.bell_bytes += bytes,
                Err(error) if is_blocked(&error) => return Ok(()),
                Err(error) => return Err(lost(error.to_string())),
            }
            if self.bell_bytes == HEADER_BYTES {
                self.bell_bytes = 0;
                heard(&self.bell, peer, frame)?;
            }
        }
    }
}

fn ring(mut socket: &TcpStream, frame: &Frame, is_asleep: bool) {
    if is_asleep {
        // A link that is full of bells has one to wake by; one that is closed is seen elsewhere.
        let _ = socket.write(&frame.rings());
    }
}

fn wait_for(socket: &TcpStream, events: libc::c_short, left: Duration) {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    let milliseconds = left.as_millis().saturating_add(1).min(i32::MAX as u128) as libc::c_int;
    // SAFETY: it is one descriptor, of this function alone. What poll(2) cannot do, reading and writing say.
    unsafe { libc::poll(&mut poll, 1, milliseconds) };
}

impl Courier for ProcessCollective {
    fn seat(&self) -> &Seat {
        &self.seat
    }

    fn deliver(&mut self, to: usize, operation: Operation, bytes: &[u8]) -> Result<(), CollectiveError> {
        self.neighbours.send(to, operation, bytes)
    }

    fn collect(&mut self, from: usize, operation: Operation, into: &mut [u8]) -> Result<(), CollectiveError> {
        let at = self.neighbours.at(from);
        self.neighbours.next_length(at, operation, Length::Exactly(into.len() as u64), true)?;
        self.neighbours.read(at, operation, into)
    }

    fn collect_next(
        &mut self,
        from: usize,
        operation: Operation,
        wait: bool,
        out: &mut Vec<u8>,
    ) -> Result<bool, CollectiveError> {
        let (at, max) = (self.neighbours.at(from), Length::AtMost(TOKENS_BYTES_MAX as u64));
        let Some(length) = self.neighbours.next_length(at, operation, max, wait)? else {
            return Ok(false);
        };
        out.resize(length, 0);
        self.neighbours.read(at, operation, out)?;
        Ok(true)
    }
}

/// Links that an abort handle still knows would stay open otherwise.
impl Drop for Neighbours {
    fn drop(&mut self) {
        self.streams.close();
    }
}

/// The socket would have to wait, or a signal came first.
fn is_blocked(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
