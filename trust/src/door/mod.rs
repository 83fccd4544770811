//! A port that members of a fleet come to: TCP, and TLS over it where there are certificates. Who has come keeps a place
//! without having shown what lets him in for a bounded time only, and so many do at once. Who calls, and what lets him in,
//! is the business of whoever serves the connections: it says so by [`Caller::let_in`], or by [`Caller::turn_away`].

mod connection;
mod room;

pub use connection::{Caller, Connection, Io};
pub use room::origin;

use crate::{Refusal, ServerTls, audit};
use connection::Newcomer;
use room::Room;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tracing::warn;

/// After an error of the listener that does not concern one connection, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A connection that was looked at before TLS begins on it.
pub type Looked = Pin<Box<dyn Future<Output = Result<TcpStream, Refusal>> + Send>>;

/// What a door does in its own way.
#[derive(Clone, Copy)]
pub struct Manners {
    /// What the port is for, in the log.
    pub purpose: &'static str,
    /// From coming to being let in.
    pub proof_wait: Duration,
    /// Before TLS, where there is TLS.
    pub look: fn(TcpStream) -> Looked,
    /// Somebody was refused.
    pub refused: fn(SocketAddr, Refusal),
}

/// Takes it as it is.
pub fn no_look(stream: TcpStream) -> Looked {
    Box::pin(async { Ok(stream) })
}

/// Connections as they come, past TLS where there is TLS; ends with whoever listens to them.
pub fn incoming(
    listener: TcpListener,
    tls: Option<ServerTls>,
    manners: Manners,
) -> mpsc::Receiver<io::Result<Connection>> {
    let (open, connections) = mpsc::channel(1);
    tokio::spawn(async move {
        let watching = tls.clone();
        tokio::select! {
            () = accept_all(listener, tls, manners, &open) => {}
            () = async { watching.expect("there is TLS").watch().await }, if watching.is_some() => {}
            () = audit::tell_what_is_over() => {}
            () = open.closed() => {}
        }
    });
    connections
}

async fn accept_all(
    listener: TcpListener,
    tls: Option<ServerTls>,
    manners: Manners,
    open: &mpsc::Sender<io::Result<Connection>>,
) {
    let room = Room::default();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, port = manners.purpose, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // What is small waits for nothing.
        let _ = stream.set_nodelay(true);
        let (newcomer, tls, open) = (Newcomer::new(&room, from, manners), tls.clone(), open.clone());
        tokio::spawn(async move {
            if let Some(connection) = begin(stream, tls, newcomer).await {
                // Nobody listens any more: then it is dropped.
                let _ = open.send(Ok(connection)).await;
            }
        });
    }
}

/// None: it was refused, and told so.
async fn begin(stream: TcpStream, tls: Option<ServerTls>, mut newcomer: Newcomer) -> Option<Connection> {
    let manners = newcomer.manners;
    let shake_hands = async {
        let Some(tls) = tls else { return Ok(Box::new(stream) as Box<dyn Io>) };
        let stream = (manners.look)(stream).await?;
        tls.accept(stream).await.map(|stream| Box::new(stream) as Box<dyn Io>)
    };
    let shaken = tokio::select! {
        // Who is done is done, however late this is looked at.
        biased;
        shaken = shake_hands => shaken,
        refusal = &mut newcomer => Err(refusal),
    };
    match shaken {
        Ok(io) => Some(Connection::new(io, newcomer)),
        Err(refusal) => {
            (manners.refused)(newcomer.caller.address, refusal);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LONG: Duration = Duration::from_secs(3600);

    async fn door(proof_wait: Duration) -> (SocketAddr, mpsc::Receiver<io::Result<Connection>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let manners = Manners { purpose: "a test", proof_wait, look: no_look, refused: |_, _| {} };
        (address, incoming(listener, None, manners))
    }

    /// As a server does: reads what comes, and hears why it ends.
    async fn read(mut connection: Connection) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        connection.read_to_end(&mut bytes).await.map(|_| bytes)
    }

    #[tokio::test]
    async fn who_shows_nothing_is_closed_and_who_is_let_in_stays() {
        let (address, mut door) = door(Duration::from_millis(50)).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        silent.write_all(b"x").await.unwrap();
        let error = read(door.recv().await.unwrap().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
        let mut meant = TcpStream::connect(address).await.unwrap();
        let connection = door.recv().await.unwrap().unwrap();
        connection.caller().let_in();
        tokio::time::sleep(Duration::from_millis(100)).await;
        meant.write_all(b"still here").await.unwrap();
        drop(meant);
        assert_eq!(read(connection).await.unwrap(), b"still here");
    }

    /// Who waits to write does not read: a stranger that reads nothing must not stay for that.
    #[tokio::test]
    async fn who_reads_no_answer_is_closed_as_well() {
        let (address, mut door) = door(Duration::from_millis(50)).await;
        let _deaf = TcpStream::connect(address).await.unwrap();
        let mut connection = door.recv().await.unwrap().unwrap();
        // More than any buffer of the system takes.
        let answer = vec![0; 256 << 20];
        let told = tokio::time::timeout(Duration::from_secs(60), connection.write_all(&answer)).await;
        let error = told.expect("it is not waited for without end").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }

    /// It could try as often as it likes.
    #[tokio::test]
    async fn who_is_turned_away_hears_so_and_is_closed() {
        let (address, mut door) = door(LONG).await;
        for asks_again in [false, true] {
            let mut wrong = TcpStream::connect(address).await.unwrap();
            let mut connection = door.recv().await.unwrap().unwrap();
            assert!(connection.caller().turn_away() && connection.caller().was_turned_away());
            connection.write_all(b"no").await.unwrap();
            if asks_again {
                assert!(!connection.caller().turn_away());
            }
            let error = read(connection).await.unwrap_err();
            assert!(error.to_string().contains("does not let it in"), "{error}");
            let mut heard = String::new();
            let _ = wrong.read_to_string(&mut heard).await;
            assert_eq!(heard, "no");
        }
        // Nor has one that was let in to go, whoever else asks on its connection.
        let _several = TcpStream::connect(address).await.unwrap();
        let connection = door.recv().await.unwrap().unwrap();
        connection.caller().let_in();
        assert!(connection.caller().turn_away() && !connection.caller().was_turned_away());
        // Who was let in on another connection is not concerned.
        let _meant = TcpStream::connect(address).await.unwrap();
        assert!(!door.recv().await.unwrap().unwrap().caller().was_turned_away());
    }

    /// Nobody's time runs out here: the oldest make room.
    #[tokio::test]
    async fn silent_connections_keep_nobody_out() {
        let (address, mut door) = door(LONG).await;
        let mut meant = TcpStream::connect(address).await.unwrap();
        let let_in = door.recv().await.unwrap().unwrap();
        let_in.caller().let_in();
        let (mut silent, mut served) = (Vec::new(), tokio::task::JoinSet::new());
        for _ in 0..room::OF_ONE_ADDRESS_MAX + 10 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            silent.push(stream);
            served.spawn(read(door.recv().await.unwrap().unwrap()));
        }
        for _ in 0..10 {
            let error = served.join_next().await.unwrap().unwrap().unwrap_err();
            assert!(error.to_string().contains("too many"), "{error}");
        }
        // Who was let in before counts no more, and a further one has a place still.
        meant.write_all(b"a").await.unwrap();
        drop(meant);
        assert_eq!(read(let_in).await.unwrap(), b"a");
        let further = TcpStream::connect(address).await.unwrap();
        drop(further);
        assert_eq!(read(door.recv().await.unwrap().unwrap()).await.unwrap(), b"");
    }
}
