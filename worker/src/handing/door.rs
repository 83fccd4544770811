//! The port at which weights are handed on, as far as it is not as every door.

use flotilla_trust::door::{self, Connection, Manners};
use flotilla_trust::{Refusal, ServerTls};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tracing::debug;

const MANNERS: Manners =
    Manners { purpose: "for weights", proof_wait: Duration::from_secs(5), look: door::no_look, refused };

/// Connections as they come; ends with whoever listens to them.
pub fn incoming(listener: TcpListener, tls: Option<ServerTls>) -> ReceiverStream<io::Result<Connection>> {
    ReceiverStream::new(door::incoming(listener, tls, MANNERS))
}

fn refused(from: SocketAddr, refusal: Refusal) {
    debug!(%from, %refusal, "who asks for weights was refused");
}
