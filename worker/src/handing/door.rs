//! Connections of workers that fetch: TCP, and TLS over it where there are certificates. So many at once, handshakes
//! included, and a handshake has a bounded time.

use flotilla_trust::ServerTls;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);
/// Further ones wait unaccepted.
const CONNECTIONS_MAX: usize = 64;
/// After an error of the listener, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("places are never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "the connection of a worker that fetches weights could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, proven) = (tls.clone(), proven.clone());
        tokio::spawn(async move {
            if let Some(io) = prove(stream, tls).await {
                // Nobody listens any more: then it is dropped.
                let _ = proven.send(Ok(Connection { io, _place: place })).await;
            }
        });
    }
}

/// None: it was refused, and told so.
async fn prove(stream: TcpStream, tls: Option<ServerTls>) -> Option<Box<dyn Io>> {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        // Whoever says nothing keeps no place.
        let began = tokio::time::timeout(HANDSHAKE_WAIT, stream.peek(&mut [0])).await;
        return matches!(began, Ok(Ok(1))).then(|| Box::new(stream) as Box<dyn Io>);
    };
    let from = stream.peer_addr().map_or_else(|_| "somebody".to_owned(), |address| address.to_string());
    match tokio::time::timeout(HANDSHAKE_WAIT, tls.accept(stream)).await {
        Ok(Ok(stream)) => return Some(Box::new(stream)),
        Ok(Err(refusal)) => debug!(from, %refusal, "who asks for weights was refused"),
        Err(_) => debug!(from, "who asks for weights did not finish its handshake in time"),
    }
    None
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// One that was let in.
pub struct Connection {
    io: Box<dyn Io>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
