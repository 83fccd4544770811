//! Connections of workers: TCP, and TLS over it where there are certificates. A handshake costs a bounded time, and so
//! many go on at once; who fails it is refused before a byte of it is parsed.

use flotilla_trust::audit::{self, Act};
use flotilla_trust::{Refusal, ServerTls, ToClient};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::{debug, warn};

const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);
/// Further connections wait unaccepted.
const HANDSHAKES_MAX: usize = 64;
/// After an error of the listener that does not concern one connection, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// For a request to come that a goodbye can answer.
const GOODBYE_PAUSE: Duration = Duration::from_millis(500);
/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// Connections as they come; ends with whoever listens to them.
pub fn incoming(listener: TcpListener, tls: Option<ServerTls>) -> ReceiverStream<io::Result<Connection>> {
    let (proven, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        let watching = tls.clone();
        tokio::select! {
            () = accept_all(listener, tls, &proven) => {}
            () = async { watching.expect("there is TLS").watch().await }, if watching.is_some() => {}
            () = proven.closed() => {}
        }
    });
    ReceiverStream::new(stream)
}

async fn accept_all(
    listener: TcpListener,
    tls: Option<ServerTls>,
    proven: &mpsc::Sender<io::Result<Connection>>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let place = Arc::clone(&handshakes).acquire_owned().await.expect("places are never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a worker's connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // A step's plan is small, and waits for nothing.
        let _ = stream.set_nodelay(true);
        let (tls, proven) = (tls.clone(), proven.clone());
        tokio::spawn(async move {
            if let Some(connection) = prove(stream, tls).await {
                // Nobody listens any more: then it is dropped.
                let _ = proven.send(Ok(connection)).await;
            }
            drop(place);
        });
    }
}

/// None: it was refused, and told so.
async fn prove(stream: TcpStream, tls: Option<ServerTls>) -> Option<Connection> {
    let Some(tls) = tls else {
        return Some(Connection::Plain(stream));
    };
    let from = stream.peer_addr().map_or_else(|_| "a worker".to_owned(), |address| address.to_string());
    let shaken = tokio::time::timeout(HANDSHAKE_WAIT, async {
        if !is_tls(&stream).await {
            tell_scheme(stream).await;
            return Err(Refusal::NotTls { hint: "its --coordinator must begin with https://" });
        }
        tls.accept(stream).await
    });
    match shaken.await {
        Ok(Ok(stream)) => return Some(Connection::Secure(Box::new(stream))),
        // A probe of the port, mostly.
        Ok(Err(Refusal::Closed)) => debug!(from, "a connection closed before it said who it is"),
        Ok(Err(refusal)) => audit::refused(Act::AdmitWorker, from, refusal),
        Err(_) => audit::refused(Act::AdmitWorker, from, "it did not finish its handshake in time"),
    }
    None
}

async fn is_tls(stream: &TcpStream) -> bool {
    let mut first = [0];
    // A connection that ends at once fails in the handshake.
    !matches!(stream.peek(&mut first).await, Ok(1) if first[0] != TLS_HANDSHAKE)
}

/// HTTP/2: empty settings, and a goodbye (GOAWAY, INADEQUATE_SECURITY) with words that the other side logs. What it
/// wrote is read: a connection that is closed over unread bytes is reset, and the goodbye lost. It has time to ask first:
/// of a connection that ends before, its request would say only that it was closed.
async fn tell_scheme(mut stream: TcpStream) {
    const WORDS: &[u8] = b"this port speaks TLS: --coordinator must begin with https://";
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let mut goodbye = SETTINGS.to_vec();
    goodbye.extend([0, 0, 8 + WORDS.len() as u8, 7, 0, 0, 0, 0, 0]);
    goodbye.extend([0, 0, 0, 0, 0, 0, 0, 0xc]);
    goodbye.extend(WORDS);
    let (asks, mut hears) = stream.split();
    let tell = async {
        tokio::time::sleep(GOODBYE_PAUSE).await;
        let _ = hears.write_all(&goodbye).await;
        let _ = hears.shutdown().await;
    };
    let mut asks = asks.take(64 << 10);
    let mut nowhere = tokio::io::sink();
    let _ = tokio::join!(tell, tokio::io::copy(&mut asks, &mut nowhere));
}

/// A worker's connection.
pub enum Connection {
    Plain(TcpStream),
    Secure(Box<ToClient<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        match self {
            Connection::Plain(stream) => stream.connect_info(),
            Connection::Secure(stream) => stream.get_ref().0.connect_info(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Connection::Secure(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Connection::Secure(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Connection::Secure(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Connection::Plain(stream) => stream.is_write_vectored(),
            Connection::Secure(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_flush(context),
            Connection::Secure(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Connection::Secure(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
