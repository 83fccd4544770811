//! Shaped links in front of workers, and what they are found to do: by the sums that ranks make.

use super::relay::{Relay, Shape};
use anyhow::{Context, Result, anyhow};
use flotilla_engine::collective::{ProcessCollective, measure};
use flotilla_planner::Link;
use flotilla_shared::{Epoch, Rank};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

/// Of the latency of a link as the planner knows it, what the relay's two hops take by themselves.
const RELAY: Duration = Duration::from_micros(25);
const DEADLINE: Duration = Duration::from_secs(20);
/// What each peer takes of a wait, of the whole latency that is measured between two.
const PEER_S: f64 = 3e-6;

/// Where workers listen, and the relays before them.
pub struct Doors(Vec<(SocketAddr, Relay)>);

impl Doors {
    pub fn open(count: usize) -> Result<Doors> {
        let fast = Shape { bytes_per_s: 10e9, delay: Duration::ZERO };
        // Held together, so that they differ.
        let ports: Vec<TcpListener> = (0..count)
            .map(|_| TcpListener::bind(("127.0.0.1", 0)))
            .collect::<Result<_, _>>()
            .context("no free port")?;
        let doors = ports.iter().map(|port| {
            let address = port.local_addr().context("cannot tell where it listens")?;
            Ok((address, Relay::to(address, fast)?))
        });
        Ok(Doors(doors.collect::<Result<_>>()?))
    }

    pub fn of_workers(&self) -> Vec<(SocketAddr, SocketAddr)> {
        self.0.iter().map(|(address, relay)| (*address, relay.address)).collect()
    }

    pub fn shape(&self, link: &Link) {
        self.0.iter().for_each(|(_, relay)| relay.set(shape(link)));
    }
}

fn shape(link: &Link) -> Shape {
    let delay = Duration::from_secs_f64(link.latency_s).saturating_sub(RELAY);
    Shape { bytes_per_s: link.bytes_per_s, delay }
}

/// What a link of that shape does, between two ranks that do nothing else.
pub fn measure(link: &Link) -> Result<Link> {
    let listeners = [(); 2].map(|()| TcpListener::bind(("127.0.0.1", 0)));
    let [below, above] = listeners;
    let (below, above) = (below.context("no free port")?, above.context("no free port")?);
    let relay = Relay::to(below.local_addr().context("cannot tell where it listens")?, shape(link))?;
    let peers = [relay.address.to_string(), String::new()];
    let mut key = [0; 32];
    getrandom::fill(&mut key).expect("the system gives random bytes");
    let ends = [(0, below), (1, above)].map(|(rank, listener)| {
        let peers = peers.clone();
        thread::spawn(move || {
            let mut group =
                ProcessCollective::connect(Rank(rank), listener, &peers, &key, Epoch(1), DEADLINE)?;
            measure::link(&mut group)
        })
    });
    let mut rates = Vec::new();
    for end in ends {
        rates.push(end.join().map_err(|_| anyhow!("a thread that measured panicked"))??);
    }
    let latency_s = rates.iter().map(|rate| rate.latency_s).fold(0.0, f64::max);
    let bytes_per_s = rates.iter().map(|rate| rate.bytes_per_s).fold(f64::INFINITY, f64::min);
    Ok(Link { name: link.name, latency_s: (latency_s - PEER_S).max(0.0), peer_s: PEER_S, bytes_per_s })
}
