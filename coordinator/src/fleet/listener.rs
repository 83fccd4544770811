//! The port for workers, as far as it is not as every door: who does not speak TLS where he must is told so, and who is
//! refused is in the audit log.

use flotilla_trust::audit::{self, Act};
use flotilla_trust::door::{self, Connection, Looked, Manners};
use flotilla_trust::{Refusal, ServerTls};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::ReceiverStream;
use tracing::debug;

const MANNERS: Manners =
    Manners { purpose: "for workers", proof_wait: Duration::from_secs(10), look, refused };
/// For a request to come that a goodbye can answer.
const GOODBYE_PAUSE: Duration = Duration::from_millis(500);
/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// Connections as they come; ends with whoever listens to them.
pub fn incoming(listener: TcpListener, tls: Option<ServerTls>) -> ReceiverStream<io::Result<Connection>> {
    ReceiverStream::new(door::incoming(listener, tls, MANNERS))
}

fn refused(from: SocketAddr, refusal: Refusal) {
    match refusal {
        // A probe of the port, mostly.
        Refusal::Closed => debug!(%from, "a connection closed before it said who it is"),
        // It was told when it was turned away.
        Refusal::TurnedAway => debug!(%from, "a connection with a wrong token ended"),
        refusal => audit::refused_at_the_door(Act::AdmitWorker, from, refusal),
    }
}

fn look(stream: TcpStream) -> Looked {
    Box::pin(async {
        if is_tls(&stream).await {
            return Ok(stream);
        }
        tell_scheme(stream).await;
        Err(Refusal::NotTls { hint: "its --coordinator must begin with https://" })
    })
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
