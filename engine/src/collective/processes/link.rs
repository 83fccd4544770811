//! One peer, and how far its two messages of an exchange are: what goes to it and what comes from it, by its
//! socket, or by the memory that it shares with this rank. When to look, and for how long, is the mesh's
//! business.

use super::frame::{Frame, HEADER_BYTES, Length, heard};
use super::slots::Slots;
use crate::collective::{CollectiveError, Operation};
use flotilla_shared::Rank;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::ops::Range;

/// Bytes that one rank may give to an all-gather: 64 rows of the whole vocabulary, were one rank to own
/// it, as f32.
pub(super) const GATHER_BYTES_MAX: u64 = 64 << 20;

pub(super) struct Link {
    peer: Rank,
    /// Among the ranks of the group.
    position: usize,
    slot: usize,
    /// Of its slot, where it shares memory with this rank. Its socket then has only bells and last words.
    place: Option<usize>,
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
    /// In memory: the length that its header must give.
    announced: Length,
    /// In memory: bytes of `in_header` that have come of a bell.
    heard: usize,
    /// In memory: its last words, which it may have said after it had shown what was waited for.
    gone: Option<CollectiveError>,
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

impl Link {
    pub(super) fn new(peer: Rank, position: usize, slot: usize) -> Self {
        Link {
            peer,
            position,
            slot,
            place: None,
            out: 0..0,
            out_header: [0; HEADER_BYTES],
            sent: 0,
            into: 0..0,
            in_header: [0; HEADER_BYTES],
            received: 0,
            in_length: None,
            announced: Length::Exactly(0),
            heard: 0,
            gone: None,
            own: Vec::new(),
        }
    }

    pub(super) fn peer(&self) -> Rank {
        self.peer
    }

    /// Place among the ranks of the group.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Place among the links.
    pub(super) fn slot(&self) -> usize {
        self.slot
    }

    /// Of the peer's slot in shared memory.
    pub(super) fn place(&self) -> Option<usize> {
        self.place
    }

    pub(super) fn share(&mut self, place: usize) {
        self.place = Some(place);
    }

    pub(super) fn out(&self) -> Range<usize> {
        self.out.clone()
    }

    /// What came, where its length was not known before.
    pub(super) fn received(&self) -> &[u8] {
        &self.own
    }

    /// Bytes of the peer's message of this exchange, as its header gave them.
    pub(super) fn length(&self) -> usize {
        self.in_length.unwrap_or(0)
    }

    /// What the next exchange sends (range of its outgoing bytes) and where what comes goes (range of
    /// its inbox, if that has ranges).
    pub(super) fn expect(&mut self, out: Range<usize>, into: Range<usize>) {
        (self.out, self.into) = (out, into);
        (self.sent, self.received, self.in_length) = (0, 0, None);
    }

    /// What the next exchange shows in memory, and how long what the peer shows must be.
    pub(super) fn look(&mut self, out: Range<usize>, announced: Length) {
        self.expect(out, 0..0);
        self.announced = announced;
    }

    /// The same for both kinds of links: `announced` bytes are to be shown, and the range of the inbox is for
    /// what the wire brings.
    pub(super) fn give(&mut self, out: Range<usize>, announced: usize, into: Range<usize>) {
        match self.place {
            Some(_) => self.look(out, Length::Exactly(announced as u64)),
            None => self.expect(out, into),
        }
    }

    pub(super) fn start(&mut self, frame: &Frame) {
        self.out_header = frame.header(self.out.len() as u64);
    }

    pub(super) fn keep(&mut self, bytes: &[u8], is_first: bool) {
        if is_first {
            self.own.clear();
        }
        self.own.extend_from_slice(bytes);
    }

    /// In memory: this rank's bytes can be read.
    pub(super) fn is_shown(&mut self) {
        self.sent = HEADER_BYTES + self.out.len();
    }

    pub(super) fn is_sent(&self) -> bool {
        self.sent == HEADER_BYTES + self.out.len()
    }

    /// Whether a message to the peer has not begun, or is complete.
    pub(super) fn is_between_messages(&self) -> bool {
        self.sent == 0 || self.is_sent()
    }

    pub(super) fn is_received(&self) -> bool {
        self.in_length.is_some_and(|length| self.received == HEADER_BYTES + length)
    }

    pub(super) fn is_done(&self) -> bool {
        self.is_sent() && self.is_received()
    }

    /// Looks once at what the peer shows; whether it was there.
    pub(super) fn advance_in_memory(
        &mut self,
        place: usize,
        slots: &Slots,
        frame: &Frame,
    ) -> Result<bool, CollectiveError> {
        if self.is_received() || !slots.has_shown(place) {
            return Ok(false);
        }
        let length = frame.check(slots.header(place), self.peer, self.announced)? as usize;
        (self.in_length, self.received) = (Some(length), HEADER_BYTES + length);
        Ok(true)
    }

    /// Sends and receives what can be at once; whether anything could.
    pub(super) fn advance(
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
                Err(error) => broken = Some(self.lost(frame.operation, error.to_string())),
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
            Ok(Some(0)) => return Err(self.closed(frame.operation)),
            Ok(Some(bytes)) => self.received += bytes,
            Err(error) => return Err(self.lost(frame.operation, error.to_string())),
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

    /// Of a peer in memory: takes the bells that have come by its socket. Its last words, or its closed
    /// link, are an error, now and later.
    pub(super) fn hear(&mut self, socket: &TcpStream, frame: &Frame) -> Result<(), CollectiveError> {
        if self.gone.is_none() {
            self.gone = self.take_bells(socket, frame).err();
        }
        self.gone.clone().map_or(Ok(()), Err)
    }

    fn take_bells(&mut self, mut socket: &TcpStream, frame: &Frame) -> Result<(), CollectiveError> {
        loop {
            match unless_blocked(socket.read(&mut self.in_header[self.heard..])) {
                Ok(None) => return Ok(()),
                Ok(Some(0)) => return Err(self.closed(frame.operation)),
                Ok(Some(bytes)) => self.heard += bytes,
                Err(error) => return Err(self.lost(frame.operation, error.to_string())),
            }
            if self.heard == HEADER_BYTES {
                self.heard = 0;
                heard(&self.in_header, self.peer, frame)?;
            }
        }
    }

    fn closed(&self, operation: Operation) -> CollectiveError {
        self.lost(operation, "it closed the connection".to_owned())
    }

    fn lost(&self, operation: Operation, reason: String) -> CollectiveError {
        CollectiveError::PeerLost { peer: self.peer, operation, reason }
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
