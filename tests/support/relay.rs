//! A link that can be spoiled: a relay of TCP connections on loopback that is cut, stalled, or slowed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// What becomes of bytes on their way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weather {
    Fair,
    /// Connections are reset, and new ones too.
    Cut,
    /// Nothing arrives any more, and nobody is told.
    Silent,
    /// Everything arrives so much later.
    Slow(Duration),
}

/// A relay to one address; dropping it cuts it.
pub struct Relay {
    pub address: SocketAddr,
    weather: Arc<watch::Sender<Weather>>,
}

impl Relay {
    pub async fn to(target: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a port");
        let address = listener.local_addr().expect("it is bound");
        let (weather, seen) = watch::channel(Weather::Fair);
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                tokio::spawn(connection(from, target, seen.clone()));
            }
        });
        Relay { address, weather: Arc::new(weather) }
    }

    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn connection(from: TcpStream, target: SocketAddr, weather: watch::Receiver<Weather>) {
    if *weather.borrow() == Weather::Cut {
        return;
    }
    let Ok(to) = TcpStream::connect(target).await else { return };
    let (_, _) = (from.set_nodelay(true), to.set_nodelay(true));
    let (from, to) = (from.into_split(), to.into_split());
    let mut cut = weather.clone();
    tokio::select! {
        () = forward(from.0, to.1, weather.clone()) => {}
        () = forward(to.0, from.1, weather) => {}
        _ = cut.wait_for(|weather| *weather == Weather::Cut) => {}
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut weather: watch::Receiver<Weather>) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut bytes).await else { return };
        let now = *weather.borrow();
        if let Weather::Slow(delay) = now {
            sleep(delay).await;
        }
        let passes = weather.wait_for(|weather| *weather != Weather::Silent).await.is_ok();
        if !passes || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
