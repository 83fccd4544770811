//! `flotilla worker`: one rank on this machine.

use crate::address;
use crate::cache::CacheArgs;
use crate::device::{CpuArgs, DeviceChoice, SumArgs, THREADS_MAX, describe};
use crate::health;
use crate::join_token::TokenArgs;
use crate::machine;
use crate::rates::Rates;
use crate::serve::{YEAR_S, asked_to_stop};
use crate::sizes;
use crate::tls::WorkerTlsArgs;
use anyhow::{Context, Result};
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use flotilla_shared::Inventory;
use flotilla_shared::units::Bytes;
use flotilla_worker::{Device, Settings, StandingCell, WorkerError, memory_available};
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;
use tracing::warn;

/// Part of free memory that a worker offers when it is not told.
const MEMORY_OFFERED: f64 = 0.9;

/// Join a coordinator, hold a part of the model, and execute its steps.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Where the coordinator listens for workers
    #[arg(long, env = "FLOTILLA_COORDINATOR", default_value = "http://127.0.0.1:7070")]
    coordinator: String,
    #[command(flatten)]
    token: TokenArgs,
    #[command(flatten)]
    tls: WorkerTlsArgs,
    /// Name in logs and plans; ranks follow the order of names [default: host and process id]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// What computes: cpu, or a card as cuda:N
    #[arg(long, default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
    #[command(flatten)]
    cpu: CpuArgs,
    #[command(flatten)]
    sums: SumArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Threads that compute, on the CPU [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=THREADS_MAX))]
    threads: Option<u16>,
    /// Bytes for weights, KV cache and activations, such as 12GB [default: 0.9 of the free memory]
    #[arg(long, value_name = "BYTES", value_parser = sizes::memory)]
    memory_bytes: Option<Bytes>,
    /// Memory read rate, such as 30GB/s, or a number relative to the other workers'; shares follow it
    /// [default: measured]
    #[arg(long, value_name = "RATE", value_parser = sizes::bandwidth)]
    bandwidth: Option<f64>,
    /// Where to listen for the other workers
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0", value_parser = address::parse)]
    collective_listen: SocketAddr,
    /// Host by which the other workers reach this one, or host:port where it is behind another
    /// [default: the host of --collective-listen]
    #[arg(long)]
    advertise_host: Option<String>,
    /// Where to hand on weights to other workers, with a port, or none
    /// [default: the host of --collective-listen, any free port]
    #[arg(long, value_name = "ADDRESS")]
    weights_listen: Option<Listen>,
    /// Bytes of weights a second to all other workers together, such as 500MB/s [default: as fast as it goes]
    #[arg(long, value_name = "RATE", value_parser = sizes::rate)]
    weight_rate: Option<Bytes>,
    /// Where supervisors ask over HTTP: /health is 200 while the process answers, /ready while it has a place in the fleet
    /// [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address::parse)]
    health_listen: Option<SocketAddr>,
    /// Seconds to keep trying to reach the coordinator
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=YEAR_S))]
    join_timeout: u64,
    /// Seconds to keep the weights and try to reach a coordinator again when the link to it is lost; 0 ends the worker
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(..=YEAR_S))]
    rejoin_timeout: u64,
    /// Seconds that one exchange may wait for another worker
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=YEAR_S))]
    collective_timeout: u64,
    /// Say whether flags and files are right, and start nothing; status 2 if they are not. Not looked at: whether there
    /// are such a card, cores and memory, whether the addresses are free, and whether the coordinator answers
    #[arg(long)]
    pub check: bool,
}

/// An address to listen on, or `none`.
#[derive(Clone, Copy, Debug)]
enum Listen {
    At(SocketAddr),
    Nowhere,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        match text {
            "none" => Ok(Listen::Nowhere),
            text => address::parse(text).map(Listen::At).map_err(|error| format!("{error}, or none")),
        }
    }
}

pub fn run(args: WorkerArgs) -> Result<()> {
    if args.check {
        return args.say_whether_right();
    }
    let health_listen = args.health_listen;
    let settings = args.settings()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(machine::cores().clamp(2, 4))
        .enable_all()
        .build();
    let runtime = runtime.context("cannot start the async runtime")?;
    let result = runtime.block_on(work(settings, health_listen));
    // The engine thread may be in the middle of a step; it holds nothing that must be put in order.
    runtime.shutdown_background();
    result
}

/// Until it is told to stop, or has nobody to work for; probes are answered meanwhile.
async fn work(settings: Settings, health_listen: Option<SocketAddr>) -> Result<()> {
    if let Some(address) = health_listen {
        tokio::spawn(health::serve(health::listen(address).await?, settings.standing.clone()));
    }
    flotilla_worker::run(settings, asked_to_stop()).await.map_err(|error| match error {
        WorkerError::Listen { address, error } => address::fault(address, "--collective-listen", error),
        WorkerError::ListenForWeights { address, error } => {
            address::fault(address, "--weights-listen", error)
        }
        other => other.into(),
    })
}

impl WorkerArgs {
    fn say_whether_right(&self) -> Result<()> {
        let tls = self.tls.open(&self.coordinator)?;
        flotilla_worker::check(&self.coordinator, tls.is_some(), &self.token.open()?)?;
        println!("flags and files are right; nothing was started");
        Ok(())
    }

    fn settings(self) -> Result<Settings> {
        let threads = self.threads.unwrap_or(machine::cores() as u16).max(1);
        // What is wrong with flags and files is said before memory is measured.
        let tls = self.tls.open(&self.coordinator)?;
        let join_token = self.token.open()?;
        flotilla_worker::check(&self.coordinator, tls.is_some(), &join_token)?;
        if !address::is_local(&self.coordinator) && self.collective_listen.ip().is_loopback() {
            warn!(
                coordinator = self.coordinator,
                "workers of other hosts cannot reach this one: it listens for them on {}; give --collective-listen an \
                 address of this host, such as 0.0.0.0:7071",
                self.collective_listen
            );
        }
        let device = self.device.open(threads.into(), &self.cpu, self.sums)?;
        let memory_bytes = match self.memory_bytes {
            Some(bytes) => bytes.0,
            None => memory_offered(&device)?,
        };
        let rates = self.bandwidth.map_or_else(|| Rates::measure(&device, threads.into()), Rates::told);
        let name = self.name.unwrap_or_else(|| format!("{}/{}", machine::host_name(), std::process::id()));
        Ok(Settings {
            tls,
            coordinator: self.coordinator,
            join_token,
            inventory: Inventory {
                name,
                backend: device.backend(),
                kv: device.kv_dtype(),
                device: describe(&device),
                memory_bytes,
                bandwidth: rates.bandwidth,
                compute: rates.compute.dense,
                expert_compute: rates.compute.experts,
                threads,
            },
            advertise_host: self.advertise_host.unwrap_or_else(|| match self.collective_listen.ip() {
                ip if ip.is_unspecified() => machine::host_name(),
                ip => ip.to_string(),
            }),
            collective_listen: self.collective_listen,
            weights_listen: match self.weights_listen {
                None => Some(SocketAddr::new(self.collective_listen.ip(), 0)),
                Some(Listen::At(address)) => Some(address),
                Some(Listen::Nowhere) => None,
            },
            weight_rate_max: self.weight_rate.map(|rate| rate.0),
            device,
            weight_cache: self.cache.settings(),
            join_timeout: Duration::from_secs(self.join_timeout),
            rejoin_timeout: Duration::from_secs(self.rejoin_timeout),
            collective_timeout: Duration::from_secs(self.collective_timeout),
            standing: StandingCell::default(),
        })
    }
}

/// Part of what is free where the worker computes.
fn memory_offered(device: &Device) -> Result<u64> {
    let free = match device {
        Device::Cpu(_) => memory_available(),
        Device::Card(card) => Some(card.card.memory_free_bytes()?),
    };
    Ok(free.map_or(u64::MAX, |bytes| (bytes as f64 * MEMORY_OFFERED) as u64))
}
