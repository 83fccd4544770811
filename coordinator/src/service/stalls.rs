//! A connection whose client does not read what it is sent is given up after a while: what is written waits
//! in the system's buffers, then nothing more can be, and what makes the answer would be held for ever. Who
//! reads slowly is served: any progress counts.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::seats::{Kept, Seat};

/// Guests are few at once, and others wait.
const GUEST_WAIT: Duration = Duration::from_secs(5);

pub struct Unstalled<S> {
    stream: S,
    wait: Duration,
    seat: Arc<Seat>,
    /// Runs while nothing can be written. Meanwhile the connection does not rest.
    stall: Option<(Pin<Box<Sleep>>, Kept)>,
}

impl<S: AsyncWrite + Unpin> Unstalled<S> {
    pub fn new(stream: S, wait: Duration, seat: Arc<Seat>) -> Unstalled<S> {
        Unstalled { stream, wait, seat, stall: None }
    }

    fn write<T>(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(done) = write(Pin::new(&mut self.stream), context) {
            self.stall = None;
            return Poll::Ready(done);
        }
        let (wait, seat) = (self.wait, &self.seat);
        let (stall, _) = self.stall.get_or_insert_with(|| {
            let (kept, is_guest) = seat.hold();
            (Box::pin(sleep(if is_guest { wait.min(GUEST_WAIT) } else { wait })), kept)
        });
        ready!(stall.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unstalled<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(context, |stream, context| stream.poll_write_vectored(context, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Unstalled<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::sync::oneshot::error::TryRecvError::{Closed, Empty};

    use crate::service::seats::Seats;

    const WAIT: Duration = Duration::from_secs(60);

    fn unstalled<S: AsyncWrite + Unpin>(stream: S) -> Unstalled<S> {
        let (seat, _) = Seats::new(1, 0).take([10, 0, 0, 1].into());
        Unstalled::new(stream, WAIT, Arc::new(seat))
    }

    /// What was made for it lies in buffers, and would be lost with its connection.
    #[tokio::test]
    async fn who_has_not_read_its_answer_does_not_rest() {
        let (seats, address) = (Seats::new(1, 1), [10, 0, 0, 1].into());
        let (server, mut client) = duplex(16);
        let (seat, mut gone) = seats.take(address);
        let mut server = Unstalled::new(server, WAIT, Arc::new(seat));
        let mut write = Box::pin(server.write_all(&[0; 17]));
        assert!(futures::poll!(&mut write).is_pending());
        let (other, mut other_gone) = seats.take(address);
        assert!(other.ask().1, "the place is taken");
        let (next, _) = seats.take(address);
        assert_eq!((other_gone.try_recv(), gone.try_recv()), (Err(Closed), Err(Empty)));
        client.read_exact(&mut [0; 17][..1]).await.unwrap();
        write.await.unwrap();
        // It rests, and is the next to go.
        assert!(!next.ask().1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_is_given_up() {
        let (server, _client) = duplex(16);
        let mut server = unstalled(server);
        server.write_all(&[0; 16]).await.unwrap();
        let error = tokio::time::timeout(2 * WAIT, server.write_all(&[0])).await.expect("an end");
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_is_served() {
        let (server, mut client) = duplex(16);
        let mut server = unstalled(server);
        let writes = tokio::spawn(async move { server.write_all(&[7; 64]).await });
        let mut byte = [0];
        for _ in 0..64 {
            // A byte just before the end of patience, each time.
            sleep(WAIT - Duration::from_secs(1)).await;
            client.read_exact(&mut byte).await.unwrap();
        }
        writes.await.unwrap().unwrap();
    }
}
