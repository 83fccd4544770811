//! What a worker is told on its command line.

use crate::cache::CacheSettings;
use crate::device::Device;
use crate::standing::StandingCell;
use flotilla_shared::Inventory;
use flotilla_trust::ClientTls;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Settings {
    /// `http://host:port` of the coordinator's worker port, or `https://`.
    pub coordinator: String,
    /// With `https://`, and only then.
    pub tls: Option<ClientTls>,
    /// The secret that admits workers.
    pub join_token: String,
    pub inventory: Inventory,
    /// Where the collective listens.
    pub collective_listen: SocketAddr,
    /// The host by which the other workers dial this one, with its port if that is another than the one it listens on.
    pub advertise_host: String,
    pub device: Device,
    /// Where weights are kept from one load to the next; `None`: nowhere.
    pub weight_cache: Option<CacheSettings>,
    /// Where weights are handed on to other workers; `None`: they are not.
    pub weights_listen: Option<SocketAddr>,
    /// Bytes a second that are handed on at most.
    pub weight_rate_max: Option<u64>,
    /// How long to try to reach the coordinator.
    pub join_timeout: Duration,
    /// How long to keep the weights and try to reach it again when it is lost; zero ends the worker at once.
    pub rejoin_timeout: Duration,
    /// How long one collective operation may wait for another rank, and a load for another worker's weights.
    pub collective_timeout: Duration,
    /// Where this worker says how it stands.
    pub standing: StandingCell,
}
