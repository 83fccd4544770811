//! Weights for other workers: what this one has, or is loading, it hands on to whoever the coordinator sends, so that
//! each slice leaves the coordinator once. Serving never touches the engine's thread: it reads what never changes, a
//! chunk at a time, for a bounded number at once.

mod aside;
mod digests;
mod door;
mod fetch;
mod lent;
mod piece;
mod shelf;
#[cfg(test)]
pub mod tests;

pub use aside::Copied;
pub use digests::Digests;
pub use lent::{Beside, Fills, Lent};
pub use shelf::Shelf;

use crate::error::WorkerError;
use crate::link::advertised;
use crate::settings::Settings;
use flotilla_trust::{ClientTls, ServerTls};
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::warn;

/// Both directions: what is handed on, and how others are dialed that do.
pub struct Handing {
    pub shelf: Shelf,
    /// Where others fetch, and the key that they must show.
    pub door: Option<(String, [u8; 32])>,
    pub dials: Dials,
    served: Option<JoinHandle<()>>,
}

/// How other workers are dialed.
#[derive(Clone, Debug)]
pub enum Dials {
    Plain,
    Tls(ClientTls),
    /// This worker has no certificate that it could show.
    Nobody,
}

impl Handing {
    /// Listens, if this worker may hand on what it has.
    pub async fn start(settings: &Settings) -> Result<Handing, WorkerError> {
        let (dials, serves) = ways(settings)?;
        let mut handing = Handing { shelf: Shelf::default(), door: None, dials, served: None };
        if let (Some(serves), Some(address)) = (serves, settings.weights_listen) {
            handing.serve(settings, address, serves).await?;
        }
        Ok(handing)
    }

    async fn serve(
        &mut self,
        settings: &Settings,
        address: SocketAddr,
        tls: Option<ServerTls>,
    ) -> Result<(), WorkerError> {
        let failed = |error| WorkerError::ListenForWeights { address, error };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let mut key = [0; 32];
        getrandom::fill(&mut key).expect("the system gives random bytes");
        let service = fetch::Service::new(self.shelf.clone(), settings.weight_rate_max);
        let served = fetch::serve(service, key, door::incoming(listener, tls));
        self.served = Some(tokio::spawn(async move {
            if let Err(error) = served.await {
                warn!(%error, "weights are not handed on any more");
            }
        }));
        self.door = Some((advertised(&host_of(&settings.advertise_host), port), key));
        Ok(())
    }
}

/// How others are dialed, and how they are let in, if they are.
type Ways = (Dials, Option<Option<ServerTls>>);

fn ways(settings: &Settings) -> Result<Ways, WorkerError> {
    let Some(tls) = &settings.tls else { return Ok((Dials::Plain, Some(None))) };
    Ok(match tls.among_clients()? {
        Some((serves, dials)) => (Dials::Tls(dials), Some(Some(serves))),
        None => (Dials::Nobody, None),
    })
}

/// Without the port of the collective's listener, if it has one.
fn host_of(advertised: &str) -> String {
    match advertised.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')) => {
            host.to_owned()
        }
        _ => advertised.to_owned(),
    }
}

impl Drop for Handing {
    fn drop(&mut self) {
        self.served.iter().for_each(JoinHandle::abort);
    }
}

/// What an `authorization` header says of a key.
pub fn words_of(key: &[u8; 32]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}
