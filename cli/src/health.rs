//! `--health-listen`: what a supervisor asks a worker. `GET /health` is 200 as long as the process answers, whatever
//! its peers do; `GET /ready` is 200 while it has a place in the fleet, and else 503. HTTP as small as that: one
//! request a connection, of which the first line is read.

use crate::address;
use anyhow::Result;
use flotilla_worker::{Standing, StandingCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

/// A probe's head has some 200 bytes.
const HEAD_BYTES_MAX: usize = 4096;
/// Who takes longer for a question is not one that this is for.
const PATIENCE: Duration = Duration::from_secs(5);
const CONNECTIONS_MAX: usize = 16;
/// When the system has no descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| address::fault(address, "--health-listen", error))
}

/// Answers for as long as it is polled.
pub async fn serve(listener: TcpListener, standing: StandingCell) {
    let (mut asking, mut oldest) = (JoinSet::new(), VecDeque::new());
    loop {
        match listener.accept().await {
            // Who asks wrongly, or is gone, is answered no more.
            Ok((stream, _)) => {
                make_room(&mut oldest);
                oldest.push_back(asking.spawn(timeout(PATIENCE, answer(stream, standing.now()))));
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
        while asking.try_join_next().is_some() {}
    }
}

/// Who has been silent for longest goes: the supervisor's question must not wait behind those who ask none.
fn make_room(oldest: &mut VecDeque<AbortHandle>) {
    oldest.retain(|asking| !asking.is_finished());
    if oldest.len() >= CONNECTIONS_MAX
        && let Some(asking) = oldest.pop_front()
    {
        asking.abort();
    }
}

async fn answer(mut stream: TcpStream, standing: Standing) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    let (status, body) = match request(&head) {
        Some("/health") => ("200 OK", standing.to_string()),
        Some("/ready") if standing.is_ready() => ("200 OK", standing.to_string()),
        Some("/ready") => ("503 Service Unavailable", standing.to_string()),
        Some(_) => ("404 Not Found", "there are /health and /ready".into()),
        None => ("400 Bad Request", "expected GET".into()),
    };
    let length = body.len() + 1;
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}");
    stream.write_all(format!("{head}\r\nconnection: close\r\n\r\n{body}\n").as_bytes()).await?;
    stream.shutdown().await
}

/// The path of a GET.
fn request(head: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\r').next()?).ok()?;
    let (path, version) = line.strip_prefix("GET ")?.split_once(' ')?;
    version.starts_with("HTTP/1.").then(|| path.split('?').next().unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_get_is_read() {
        assert_eq!(request(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n"), Some("/ready"));
        assert_eq!(request(b"GET /health?x=1 HTTP/1.0\r\n\r\n"), Some("/health"));
        for other in [&b""[..], b"GET", b"GET /", b"POST / HTTP/1.1\r\n", b"GET / SMTP\r\n", b"\xff\r\n"] {
            assert_eq!(request(other), None, "{other:?}");
        }
    }

    #[tokio::test]
    async fn those_who_dial_and_say_nothing_hold_nobody_up() {
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, StandingCell::default()));
        let mut silent = Vec::new();
        for _ in 0..2 * CONNECTIONS_MAX + 1 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        for (path, status) in [("/health", "200"), ("/ready", "503"), ("/", "404")] {
            let mut asking = TcpStream::connect(address).await.unwrap();
            asking.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
            let mut said = String::new();
            // Were the silent ones awaited, it would be twice as long.
            let answered = timeout(PATIENCE, asking.read_to_string(&mut said)).await;
            answered.expect("nobody waits for the silent").unwrap();
            assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {said}");
        }
        server.abort();
    }
}
