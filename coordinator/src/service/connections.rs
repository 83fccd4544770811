//! Connections: how many, how long one may take to say what it wants, and how they end. HTTP/1.1, with TLS
//! or without.
//!
//! What one may cost is bounded: heads in bytes and in time, handshakes in time, answers in the time that a
//! client reads nothing of them, connections in number. When all places and those of a small reserve are taken, whoever
//! rests makes place. Who asks while all that may have a request under way is a guest, for one request: probes are
//! answered, and others hear that there is no place. Guests make place like who rests: nobody waits unaccepted. Bodies have
//! limits of their own.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use flotilla_trust::audit::{self, Act};
use hyper::body::{Frame, SizeHint};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::drain::{Drain, Ended};
use super::seats::{Kept, Seat, Seats};
use super::stalls::Unstalled;
use super::tls::Tls;

#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// With a request under way at once. Default 4096: each costs a file, and some 20 KB while it streams. A few more
    /// connections are there beside them; for one more than these whoever rests makes place.
    pub connections_max: usize,
    /// Until a request's head is there whole; so long may a connection rest between requests, too.
    pub head_wait: Duration,
    pub handshake_wait: Duration,
    /// So long an answer may wait for a client that reads nothing of it.
    pub write_wait: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> ConnectionLimits {
        ConnectionLimits {
            connections_max: 4096,
            head_wait: Duration::from_secs(30),
            handshake_wait: Duration::from_secs(10),
            write_wait: Duration::from_secs(60),
        }
    }
}

/// Of a request's head, and what is read ahead of a body. Real heads take a tenth of it.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// After an error of the listener that does not concern one connection, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Let in beyond the places.
const RESERVE: usize = 16;
/// For connections to send what was made, and for those to hear of it whose answers were ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// What requests are served with: of connections that have a place, and of guests.
#[derive(Clone)]
pub struct Routers {
    pub all: Router,
    pub reserve: Router,
}

/// Serves until `shutdown` is done, and then as long as requests under way take, so long at most. Meanwhile it goes on
/// accepting, and routers refuse what is new. Of what is under way even then, `end` ends the answers.
pub async fn run(
    listener: TcpListener,
    routers: Routers,
    tls: Option<Tls>,
    limits: ConnectionLimits,
    (drain, drain_max): (Drain, Duration),
    shutdown: impl Future<Output = ()>,
    end: impl FnOnce(),
) -> Ended {
    let graceful = GracefulShutdown::new();
    let seats = Seats::new(limits.connections_max, RESERVE);
    let accepting = async {
        loop {
            let (stream, from) = accept(&listener).await;
            let (seat, gone) = seats.take(from.ip());
            let (routers, tls, watcher) = (routers.clone(), tls.clone(), graceful.watcher());
            let door = Door { routers, tls, limits, watcher, seat: Arc::new(seat) };
            tokio::spawn(async move {
                tokio::select! {
                    biased;
                    () = door.serve(stream) => {}
                    _ = gone => tracing::debug!(%from, "a connection made place for another"),
                }
            });
        }
    };
    let emptied = async {
        shutdown.await;
        let underway = drain.begin();
        let until = Instant::now() + drain_max;
        audit::begun(
            Act::Drain,
            "this server",
            format!("{underway} requests are under way, for {drain_max:?} at most"),
        );
        let _ = tokio::time::timeout_at(until, drain.emptied()).await;
        until
    };
    let until = tokio::select! {
        never = accepting => never,
        until = emptied => until,
    };
    drop(listener);
    let (late, last_words) = (drain.underway(), Instant::now() + LAST_WORDS);
    let until = if late == 0 { until.max(last_words) } else { last_words };
    if late > 0 {
        end();
    }
    let are_closed = tokio::time::timeout_at(until, graceful.shutdown()).await.is_ok();
    Ended { late, cut_off: drain.underway(), are_closed }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What one connection is served with.
struct Door {
    routers: Routers,
    tls: Option<Tls>,
    limits: ConnectionLimits,
    watcher: Watcher,
    seat: Arc<Seat>,
}

impl Door {
    async fn serve(self, stream: TcpStream) {
        // Tokens are small, and none waits for the next.
        let _ = stream.set_nodelay(true);
        let write_wait = self.limits.write_wait;
        let Some(tls) = &self.tls else {
            let stream = Unstalled::new(stream, write_wait, Arc::clone(&self.seat));
            return self.speak(stream).await;
        };
        let shaken = tokio::time::timeout(self.limits.handshake_wait, async {
            if !is_tls(&stream).await {
                tell_scheme(stream).await;
                return None;
            }
            let stream = Unstalled::new(stream, write_wait, Arc::clone(&self.seat));
            tls.0.accept(stream).await.inspect_err(|refusal| tracing::debug!(%refusal, "no TLS")).ok()
        });
        if let Ok(Some(stream)) = shaken.await {
            self.speak(stream).await;
        }
    }

    async fn speak<S: AsyncRead + AsyncWrite + Unpin + 'static>(self, stream: S) {
        let (all, reserve) = (self.routers.all, self.routers.reserve);
        let (all, reserve, seat) =
            (TowerToHyperService::new(all), TowerToHyperService::new(reserve), self.seat);
        let service = service_fn(|request| {
            let (kept, is_guest) = seat.ask();
            let answer = if is_guest { reserve.call(request) } else { all.call(request) };
            async move {
                let mut answer = answer.await?;
                if is_guest {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer.map(|body| Answer { body, _kept: kept }))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head_wait)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = self.watcher.watch(connection).await {
            // A client that leaves is an error, too.
            tracing::debug!(%error, "a connection ended");
        }
    }
}

/// A body whose connection keeps its place until all of it is sent.
struct Answer {
    body: Body,
    _kept: Kept,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whoever wrote this has the scheme wrong, and is best told so. What it wrote is read: a connection that is
/// closed over unread bytes is reset, and the answer lost.
async fn tell_scheme(mut stream: TcpStream) {
    let _ = stream.write_all(NOT_TLS).await;
    let _ = stream.shutdown().await;
    let _ = tokio::io::copy(&mut stream.take(HEAD_BYTES_MAX as u64), &mut tokio::io::sink()).await;
}

async fn is_tls(stream: &TcpStream) -> bool {
    let mut first = [0];
    // A connection that ends at once fails in the handshake.
    !matches!(stream.peek(&mut first).await, Ok(1) if first[0] != TLS_HANDSHAKE)
}

const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n\
    content-length: 122\r\nconnection: close\r\n\r\n\
    {\"error\":{\"message\":\"this port speaks https, not http\",\"type\":\"invalid_request_error\",\
    \"param\":null,\"code\":\"tls_required\"}}";

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;

    /// How a server ends that may drain for no time, and has a connection that has sent this and now reads.
    async fn ended(sent: &[u8]) -> Ended {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // More than the system keeps for a client that has not read it yet.
        let all = Router::new().route("/", get(|| async { vec![0; 16 << 20] }));
        let routers = Routers { reserve: all.clone(), all };
        let drain = (Drain::default(), Duration::ZERO);
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(sent).await.unwrap();
        let shutdown = async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            tokio::spawn(async move { client.read_to_end(&mut Vec::new()).await });
        };
        run(listener, routers, None, ConnectionLimits::default(), drain, shutdown, || ()).await
    }

    #[tokio::test]
    async fn what_is_made_has_a_moment_to_be_sent() {
        let ended = ended(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert_eq!(ended, Ended { late: 0, cut_off: 0, are_closed: true });
    }

    #[tokio::test]
    async fn who_never_says_what_it_wants_is_not_waited_for_and_has_no_answer_cut_off() {
        let ended = ended(b"GET / HTTP/1.1\r\n").await;
        assert_eq!(ended, Ended { late: 0, cut_off: 0, are_closed: false });
    }
}
