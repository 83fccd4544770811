//! `flotilla coordinator`, and what it shares with `up`: a fleet that is formed into a group, a driver,
//! and the API over it.

use crate::local_workers::TOKEN_VARIABLE;
use crate::model::{Model, ModelArgs};
use crate::progress::show_progress;
use anyhow::{Context, Result, ensure};
use clap::Args;
use flotilla_coordinator::driver::{self, DriverHandle, FleetHandle};
use flotilla_coordinator::fleet::{Fleet, FormError, Formation, Progress, RemoteGroup};
use flotilla_coordinator::service;
use flotilla_scheduler::{Scheduler, Settings};
use flotilla_shared::Epoch;
use flotilla_shared::KvBlocks;
use flotilla_shared::plan::RANKS_MAX;
use flotilla_shared::step::BLOCK_TOKENS;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::warn;

/// How long requests wait for another group when theirs is lost.
const REGROUP_WAIT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where the API listens
    #[arg(long, default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// Name by which clients ask for the model [default: the folder's]
    #[arg(long)]
    served_name: Option<String>,
    /// Tokens of KV cache over all sequences
    #[arg(long, default_value_t = 16384)]
    kv_tokens: usize,
    /// Tokens of one step, prompt chunks and decodes together
    #[arg(long, default_value_t = 512)]
    step_tokens: usize,
    /// Sequences that run at once
    #[arg(long, default_value_t = 64)]
    sequences: usize,
    /// The date that the model is told, such as 2026-11-23 [default: today, UTC]
    #[arg(long, value_parser = parse_date)]
    current_date: Option<String>,
    /// Requests that may wait; one more gets 429
    #[arg(long, default_value_t = 1024)]
    queue: usize,
}

/// Serve the API and command workers that dial in.
#[derive(Debug, Args)]
pub struct CoordinatorArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Workers of the group: the model is cut over so many
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=RANKS_MAX as i64))]
    workers: u16,
    /// Where workers dial
    #[arg(long, default_value = "127.0.0.1:7070")]
    worker_listen: SocketAddr,
    /// Secret that admits workers
    #[arg(long, env = TOKEN_VARIABLE, hide_env_values = true)]
    join_token: String,
}

pub fn run(args: CoordinatorArgs) -> Result<()> {
    ensure!(!args.join_token.is_empty(), "--join-token must not be empty");
    let model = args.serve.model.open()?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    runtime.block_on(async {
        let fleet = Fleet::listen(args.worker_listen, &args.join_token).await?;
        eprintln!("waiting for {} workers on {}", args.workers, fleet.address());
        let ready = |ready: &Ready| eprintln!("serving {} on {}", ready.model, ready.url);
        serve(&args.serve, model, fleet, args.workers.into(), ready, || {}, ctrl_c()).await
    })
}

/// What is said once a group stands.
pub struct Ready {
    pub model: String,
    pub url: String,
}

/// Forms a group of `ranks` workers and serves until `shutdown`; `on_ready` is told once, when the first
/// group stands, and `on_lost` whenever one is lost.
pub async fn serve(
    args: &ServeArgs,
    model: Model,
    fleet: Fleet,
    ranks: usize,
    on_ready: impl FnOnce(&Ready) + Send + 'static,
    on_lost: impl Fn(),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!(
            "cannot listen on {}\nhint: another server may be running; choose another --listen",
            args.listen
        )
    })?;
    let url = format!("http://{}", listener.local_addr()?);
    let formation = args.formation(&model, ranks);
    let context_max = model.spec.context_max.min(formation.kv_blocks.full as usize * BLOCK_TOKENS);
    let scheduler = Settings {
        tokens_per_step_max: args.step_tokens,
        sequences_max: args.sequences,
        waiting_max: args.queue,
        context_max,
        window_tokens: model.spec.window,
        ..Settings::default()
    };
    let (driver, groups) =
        driver::start(Scheduler::new(scheduler)?, driver::Settings { regroup_wait: REGROUP_WAIT });
    let name = args.served_name.clone().unwrap_or_else(|| model.name.clone());
    let ready = Ready { model: name.clone(), url };
    let mut settings = service::Settings {
        eos_tokens: model.eos_token_ids.clone(),
        ..service::Settings::new(name, model.harmony, context_max)
    };
    if let Some(date) = args.current_date.clone() {
        settings.current_date = Arc::new(move || date.clone());
    }
    let group = keep_formed(fleet, formation, groups, driver.clone(), move || on_ready(&ready), on_lost);
    tokio::select! {
        served = service::serve(listener, settings, driver, shutdown) => Ok(served?),
        error = group => Err(error.into()),
    }
}

/// Forms a group, and another one whenever it is lost; returns only what no new worker can mend.
async fn keep_formed(
    mut fleet: Fleet,
    formation: Formation,
    groups: FleetHandle<RemoteGroup>,
    mut driver: DriverHandle,
    on_ready: impl FnOnce(),
    on_lost: impl Fn(),
) -> FormError {
    let mut on_ready = Some(on_ready);
    let mut epoch = Epoch(0);
    loop {
        epoch.0 += 1;
        let (progress, seen) = watch::channel(Progress::Waiting { joined: 0, wanted: formation.ranks });
        let formed = tokio::select! {
            formed = fleet.form(epoch, &formation, &progress) => formed,
            never = show_progress(seen, &groups) => match never {},
        };
        let loss = match formed {
            Ok(group) => {
                let loss = group.loss();
                groups.formed(epoch, formation.kv_blocks, group);
                loss
            }
            Err(FormError::Worker { rank, name, reason }) => {
                warn!(%rank, name, reason, "a worker failed while the group was forming, waiting for others");
                continue;
            }
            // After a loss, other workers may come that are large enough.
            Err(error) if epoch.0 > 1 => {
                warn!(%error, "no group can be formed of these workers, waiting for others");
                continue;
            }
            Err(error) => return error,
        };
        tokio::pin!(loss);
        let error = tokio::select! {
            error = &mut loss => error,
            () = driver.ready() => {
                if let Some(on_ready) = on_ready.take() {
                    on_ready();
                }
                // However a group ends, its links close and its workers leave; in a step the driver
                // hears of it first, between steps nobody asks the workers anything.
                loss.await
            }
        };
        groups.lost(epoch, error);
        on_lost();
    }
}

impl ServeArgs {
    fn formation(&self, model: &Model, ranks: usize) -> Formation {
        Formation {
            spec: model.spec.clone(),
            weights: model.weights.clone(),
            ranks,
            kv_blocks: KvBlocks::for_tokens(
                self.kv_tokens,
                model.spec.window,
                self.sequences,
                self.step_tokens,
            ),
            step_tokens_max: self.step_tokens,
            sampleable: model.sampleable(),
        }
    }
}

/// `YYYY-MM-DD`, as text: it only reaches the prompt.
fn parse_date(text: &str) -> Result<String, String> {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    if shape == "0000-00-00" { Ok(text.into()) } else { Err("expected a date such as 2026-11-23".into()) }
}

/// Resolves when the user, or whoever runs this process, asks it to stop.
pub async fn ctrl_c() {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .expect("signals can be listened to");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
