//! `flotilla coordinator`, and what it shares with `up`: a fleet that is formed into a group, a driver,
//! and the API over it.

mod args;
mod door;
mod front;
mod groups;
mod planning;
mod replicas;
mod steps;
mod traces;

use crate::address;
use crate::first_process;
use crate::join_token::TokenArgs;
use crate::log;
use crate::tls::FleetTlsArgs;
use anyhow::{Context, Result};
pub use args::ServeArgs;
use clap::Args;
pub use door::Door;
use flotilla_coordinator::driver::{self, Replicas};
use flotilla_coordinator::fleet::{Fleet, FleetError};
use flotilla_coordinator::router::ReplicaRouter;
use flotilla_coordinator::service;
use flotilla_scheduler::Scheduler;
use flotilla_shared::plan::RANKS_MAX;
use flotilla_shared::{ModelSpec, Plan};
pub use front::YEAR_S;
pub use replicas::ReplicaCount;
use replicas::keep_replicas;
use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How long requests wait for another group when theirs is lost.
const REGROUP_WAIT: Duration = Duration::from_secs(60);
/// For the last spans to leave.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Serve the API and command workers that dial in.
#[derive(Debug, Args)]
pub struct CoordinatorArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Workers of the group: the model is cut over so many
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=RANKS_MAX as i64))]
    workers: u16,
    /// Where workers dial
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7070", value_parser = address::parse)]
    worker_listen: SocketAddr,
    #[command(flatten)]
    token: TokenArgs,
    #[command(flatten)]
    tls: FleetTlsArgs,
}

impl CoordinatorArgs {
    pub fn checks(&self) -> bool {
        self.serve.check
    }
}

pub fn run(args: CoordinatorArgs) -> Result<()> {
    let token = args.token.open_to_admit()?;
    if args.checks() {
        args.tls.open()?;
        return args.serve.check(args.workers.into());
    }
    let model = args.serve.model.open()?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    runtime.block_on(async {
        let door = Door::open(&args.serve, model).await?;
        let tls = args.tls.open()?;
        let how = if tls.is_some() { " over TLS" } else { "" };
        let fleet = Fleet::listen(args.worker_listen, &token, tls, args.serve.weight_rate()).await;
        let fleet = fleet.map_err(|FleetError::Listen { address, error }| {
            address::fault(address, "--worker-listen", error)
        })?;
        log::say(format_args!("waiting for {} workers on {}{how}", args.workers, fleet.address()));
        let stop = ctrl_c(args.serve.front.drain_timeout());
        let ready =
            |ready: &Ready, _: &Plan| log::say(format_args!("serving {} on {}", ready.model, ready.url));
        serve(&args.serve, door, fleet, args.workers.into(), ready, |_| {}, stop).await
    })
}

/// What is said once a group stands.
pub struct Ready {
    pub model: String,
    pub url: String,
    pub spec: ModelSpec,
}

/// Forms groups of `ranks` workers, one a replica, and serves until `shutdown`; `on_ready` is told once, when the first
/// group stands, with its plan, and `on_lost` whenever one is lost, with the name of the worker that was, if it was one.
pub async fn serve(
    args: &ServeArgs,
    Door { model, front, listener, tracer }: Door,
    fleet: Fleet,
    ranks: usize,
    on_ready: impl FnOnce(&Ready, &Plan),
    on_lost: impl Fn(Option<&str>),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let url = format!("{}://{}", front.scheme(), listener.local_addr()?);
    args.check_stages(&model, ranks)?;
    let formation = args.formation(&model, ranks);
    formation.board.model(&model.spec);
    formation.board.fleet(fleet.figures());
    let scheduler = args.scheduler(&model, formation.kv_blocks);
    let context_max = scheduler.context_max;
    // Said now, if they are wrong.
    Scheduler::new(scheduler.clone())?;
    let replicas = Replicas::default();
    let start = || {
        let (replicas, tracer) = (replicas.clone(), tracer.clone());
        let settings = driver::Settings { regroup_wait: REGROUP_WAIT, replicas, tracer };
        driver::start(Scheduler::new(scheduler.clone()).expect("they were good just now"), settings)
    };
    let name = args.served_name.clone().unwrap_or_else(|| model.name.clone());
    let ready = Ready { model: name.clone(), url, spec: model.spec.clone() };
    let mut settings = service::Settings {
        eos_tokens: model.eos_token_ids.clone(),
        waiting_max: args.queue,
        board: formation.board.clone(),
        tracer: tracer.clone(),
        ..service::Settings::new(name, model.harmony, context_max)
    };
    args.front.apply(front, &mut settings);
    if let Some(date) = args.current_date.clone() {
        settings.current_date = Arc::new(move || date.clone());
    }
    let on_ready = Cell::new(Some(on_ready));
    let first_ready = |plan: &Plan| {
        if let Some(on_ready) = on_ready.take() {
            on_ready(&ready, plan);
        }
    };
    let groups = keep_replicas(&fleet, &formation, args.replicas, &replicas, start, &first_ready, &on_lost);
    let (router, failed) = (ReplicaRouter::new(replicas.clone()), Arc::new(Notify::new()));
    let has_failed = failed.clone();
    let shutdown = async move {
        tokio::select! {
            () = shutdown => {}
            () = has_failed.notified() => {}
        }
    };
    let mut serving =
        pin!(service::serve(listener, settings, ReplicaRouter::new(replicas.clone()), shutdown));
    let served = tokio::select! {
        // First, so that there is a replica to ask.
        biased;
        error = groups => Err(error.into()),
        () = &mut serving => Ok(()),
    };
    if served.is_err() {
        // There will be no group: whoever is answered hears that it ends.
        router.stop();
        failed.notify_one();
        serving.await;
    }
    tracer.flush(FLUSH_TIMEOUT).await;
    served
}

/// Resolves when the user, or whoever runs this process, asks it to stop. Asked again, it ends at once.
pub async fn ctrl_c(drain: Duration) {
    asked_to_stop().await;
    let drain = drain.as_secs();
    log::say(format_args!("finishing the answers under way, {drain} s at most; Ctrl-C again ends at once"));
    tokio::spawn(async {
        asked_to_stop().await;
        // What a shell says of a program that was interrupted. Workers end when their links close.
        std::process::exit(130);
    });
}

pub async fn asked_to_stop() {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .expect("signals can be listened to");
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
        .expect("signals can be listened to");
    first_process::others_listen();
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
