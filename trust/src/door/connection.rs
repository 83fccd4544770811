//! A connection, and how long it may stay before its caller is let in.

use super::Manners;
use super::room::{Place, Room};
use crate::Refusal;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

/// For the answer to reach who was turned away.
const GOODBYE_WAIT: Duration = Duration::from_secs(2);

/// What bytes go over.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Who is at the other end. Each request of a connection has it among its extensions.
#[derive(Clone)]
pub struct Caller {
    pub address: SocketAddr,
    place: Arc<Place>,
    is_let_in: Arc<AtomicBool>,
    turned_away: Arc<AtomicUsize>,
}

impl Caller {
    /// It has shown what it must: from here on its connection is bounded by nothing of the door's.
    pub fn let_in(&self) {
        if !self.is_let_in.swap(true, Ordering::AcqRel) {
            self.place.leave();
        }
    }

    /// What it showed does not let it in. It has time to hear so, once; then its connection ends. Whether it is the first
    /// time: what it shows after that is not to be looked at. One that was let in before stays: a proxy may carry several
    /// callers on one connection, of whom one is wrong.
    pub fn turn_away(&self) -> bool {
        self.was_let_in() || self.turned_away.fetch_add(1, Ordering::AcqRel) == 0
    }

    pub fn was_turned_away(&self) -> bool {
        !self.was_let_in() && self.turned_away.load(Ordering::Acquire) > 0
    }

    fn was_let_in(&self) -> bool {
        self.is_let_in.load(Ordering::Acquire)
    }
}

/// Ends with why it has to go, if it is not let in before.
pub(super) struct Newcomer {
    pub(super) caller: Caller,
    pub(super) manners: Manners,
    makes_room: oneshot::Receiver<()>,
    late: Pin<Box<Sleep>>,
    /// Once it was turned away.
    goodbye: Option<Pin<Box<Sleep>>>,
}

impl Newcomer {
    pub(super) fn new(room: &Room, address: SocketAddr, manners: Manners) -> Newcomer {
        let (place, makes_room) = room.enter(address.ip());
        let (is_let_in, turned_away) = Default::default();
        let caller = Caller { address, place: Arc::new(place), is_let_in, turned_away };
        let late = Box::pin(tokio::time::sleep(manners.proof_wait));
        Newcomer { caller, manners, makes_room, late, goodbye: None }
    }

    /// Whether it has been turned away for long enough, or asks again.
    fn has_heard(&mut self, context: &mut Context<'_>) -> bool {
        match self.caller.turned_away.load(Ordering::Acquire) {
            0 => false,
            1 => {
                let goodbye = self.goodbye.get_or_insert_with(|| Box::pin(tokio::time::sleep(GOODBYE_WAIT)));
                goodbye.as_mut().poll(context).is_ready()
            }
            _ => true,
        }
    }
}

impl Future for Newcomer {
    type Output = Refusal;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Refusal> {
        if Pin::new(&mut self.makes_room).poll(context).is_ready() {
            return Poll::Ready(Refusal::Crowded);
        }
        if self.has_heard(context) {
            return Poll::Ready(Refusal::TurnedAway);
        }
        ready!(self.late.as_mut().poll(context));
        Poll::Ready(Refusal::Late { seconds: self.manners.proof_wait.as_secs() })
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        self.caller.place.leave();
    }
}

/// Past TLS, if there is TLS. Reading and writing fail once its caller has to go: one that asks and reads no answer would else
/// stay as long as it likes, since who waits to write does not read.
pub struct Connection {
    io: Box<dyn Io>,
    caller: Caller,
    /// Until it is let in.
    newcomer: Option<Newcomer>,
}

impl Connection {
    pub(super) fn new(io: Box<dyn Io>, newcomer: Newcomer) -> Connection {
        Connection { io, caller: newcomer.caller.clone(), newcomer: Some(newcomer) }
    }

    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// An error: it has to go.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(newcomer) = &mut self.newcomer else { return Ok(()) };
        let over = Pin::new(&mut *newcomer).poll(context);
        if self.caller.is_let_in.load(Ordering::Acquire) {
            self.newcomer = None;
        } else if let Poll::Ready(refusal) = over {
            let words = refusal.to_string();
            (newcomer.manners.refused)(self.caller.address, refusal);
            self.newcomer = None;
            self.io = Box::new(tokio::io::empty());
            return Err(io::Error::new(io::ErrorKind::TimedOut, words));
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.io).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
