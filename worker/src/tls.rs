//! The way to a coordinator over TLS: TCP to the address's host, and a handshake on it. New connections use the
//! certificates of the day.

use flotilla_trust::{ClientTls, Refusal, ToServer};
use hyper_util::rt::TokioIo;
use std::io;
use std::task::{Context, Poll};
use thiserror::Error;
use tokio::net::TcpStream;
use tonic::codegen::{BoxFuture, Service, http::Uri};

/// Where `https` is, if the address does not say it.
const PORT: u16 = 443;

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
            let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(PORT))).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(tls.connect(stream).await?))
        })
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
