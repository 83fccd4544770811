//! The way to a coordinator over TLS: TCP to one of the host's addresses, and a handshake on it. New connections use the
//! certificates of the day.

use flotilla_trust::{ClientTls, Refusal, ToServer};
use hyper_util::rt::TokioIo;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;
use thiserror::Error;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::codegen::{BoxFuture, Service, http::Uri};

/// Where `https` is, if the address does not say it.
const PORT: u16 = 443;
/// After so long without an answer a name's next address is tried as well.
const HEAD_START: Duration = Duration::from_millis(300);

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum NotConnected {
    #[error("{0}")]
    Tcp(#[from] io::Error),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

#[derive(Clone)]
pub struct Connector(pub ClientTls);

impl Service<Uri> for Connector {
    type Response = TokioIo<ToServer<TcpStream>>;
    type Error = NotConnected;
    type Future = BoxFuture<Self::Response, NotConnected>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NotConnected>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = self.0.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
            let stream = first_of(lookup_host((host, uri.port_u16().unwrap_or(PORT))).await?).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(tls.connect(stream).await?))
        })
    }
}

/// A connection to whichever is there first: one that answers nothing keeps nobody from the next. Else the last error.
async fn first_of(mut addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut attempts = JoinSet::new();
    loop {
        if let Some(address) = addresses.next() {
            attempts.spawn(TcpStream::connect(address));
        }
        match timeout(HEAD_START, attempts.join_next()).await {
            Ok(Some(Ok(Ok(stream)))) => return Ok(stream),
            Ok(Some(Ok(Err(failed)))) => error = failed,
            Ok(Some(Err(failed))) => error = failed.into(),
            Ok(None) => return Err(error),
            Err(_) => {}
        }
    }
}

/// The refusal in an error of the transport.
pub fn refusal<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Refusal> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(NotConnected::Refused(refusal)) = error.downcast_ref() {
            return Some(refusal);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpSocket};

    /// Longer than anybody waits for a coordinator, shorter than the system tries one address.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// An address where nothing answers, as behind a firewall: those who wait to be accepted are too many.
    async fn silent() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let (address, mut waiting) = (listener.local_addr().unwrap(), Vec::new());
        while let Ok(stream) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
            waiting.push(stream.unwrap());
        }
        (address, listener, waiting)
    }

    #[tokio::test]
    async fn an_address_that_answers_nothing_keeps_nobody_from_the_next() {
        let (silent, _listener, _waiting) = silent().await;
        let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = there.local_addr().map(|address| (address, there)).unwrap();
        let stream = timeout(PATIENCE, first_of([silent, silent, there.0].into_iter())).await;
        assert_eq!(stream.expect("no wait for the silent one").unwrap().peer_addr().unwrap(), there.0);
    }

    #[tokio::test]
    async fn where_no_address_takes_it_the_error_is_the_last_ones() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = first_of([closed, closed].into_iter()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(first_of(std::iter::empty()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
