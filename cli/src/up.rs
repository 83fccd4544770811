//! `flotilla up`: coordinator and workers on this machine, from one command.

use crate::cache::CacheArgs;
use crate::chat;
use crate::describe;
use crate::device::{CpuArgs, DeviceChoice, Gpus, SumArgs, THREADS_MAX};
use crate::fit;
use crate::forecast::{self, Forecast};
use crate::local_workers::{LocalWorkers, WorkerSettings, random_token};
use crate::log;
use crate::machine;
use crate::rates::Rates;
use crate::serve::{Door, Ready, ReplicaCount, ServeArgs, ctrl_c, serve};
use crate::sizes;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use flotilla_coordinator::fleet::Fleet;
use flotilla_engine::backend::cpu::DenseWidth;
use flotilla_shared::plan::PlanError;
use flotilla_shared::units::Bytes;
use flotilla_shared::{ModelSpec, Plan};
use flotilla_worker::memory_available;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::mpsc;

/// Part of free memory that the workers may take together.
const MEMORY_OFFERED: f64 = 0.9;

/// Serve a model from this machine alone: a coordinator and its workers. With no arguments, the demo
/// model on two CPU workers.
#[derive(Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Worker processes of each copy; the model is cut over them [default: one a card, or 2 on the CPU]
    #[arg(help_heading = "Workers", long, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,
    /// What the workers compute with, in turn: cpu, or cards as cuda:0,cuda:1
    #[arg(help_heading = "Workers", long, value_delimiter = ',', default_value = "cpu")]
    device: Vec<DeviceChoice>,
    /// Cards of this machine, a worker each: all, or their numbers as 0,1; the same as --device cuda:0,cuda:1
    #[arg(help_heading = "Cards", long, value_name = "CARDS", conflicts_with = "device")]
    gpus: Option<Gpus>,
    #[command(flatten)]
    cpu: CpuArgs,
    #[command(flatten)]
    sums: SumArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Threads of each worker [default: the cores, shared out]
    #[arg(help_heading = "Workers", long, value_parser = clap::value_parser!(u16).range(1..=THREADS_MAX))]
    threads: Option<u16>,
    /// What each worker may take for weights, KV cache and activations, such as 12GB [default: 0.9 of the free memory,
    /// on the CPU shared out]
    #[arg(help_heading = "Memory and batching", long, value_name = "BYTES", value_parser = sizes::memory)]
    memory_bytes: Option<Bytes>,
}

impl UpArgs {
    pub fn checks(&self) -> bool {
        self.serve.check
    }

    pub fn logs_prompts(&self) -> bool {
        self.serve.front.log_prompts
    }

    fn ranks(&self) -> usize {
        let default = if self.device == [DeviceChoice::Cpu] { 2 } else { self.device.len() };
        self.workers.map_or(default, usize::from)
    }

    fn is_on_cpu(&self) -> bool {
        self.device.iter().all(|device| *device == DeviceChoice::Cpu)
    }

    /// What is asked of processors has no meaning where there are only cards, and copies are not added where nobody else
    /// can join.
    fn check_effects(&self) -> Result<()> {
        let has_cpu = self.device.contains(&DeviceChoice::Cpu);
        let asked = self.cpu.asked().or_else(|| self.threads.map(|_| "--threads"));
        if let Some(flag) = asked.filter(|_| !has_cpu) {
            bail!("{flag} is for CPUs, and the workers compute on cards\nhint: leave {flag} out");
        }
        ensure!(
            self.serve.replicas != ReplicaCount::Auto,
            "--replicas is auto, and nobody joins the workers that `up` starts\n\
             hint: give a number, or start `flotilla coordinator` and workers by themselves"
        );
        Ok(())
    }

    /// What is predicted with, where it can be: of bf16 weights on the processor.
    fn forecast(&self, spec: &ModelSpec, workers: usize, threads: usize) -> Option<Forecast> {
        let is_known = self.is_on_cpu() && self.cpu.dense == DenseWidth::Bf16;
        if !is_known || !forecast::is_worth_it(spec) {
            return None;
        }
        let busy = (workers * threads).min(machine::cores());
        let rates = Rates::of_cpu(busy, self.cpu.activations.unwrap_or_default())?;
        let (kv, step_tokens) = (self.cpu.kv_dtype, self.serve.step_tokens);
        Some(Forecast { rates, workers, kv, step_tokens })
    }
}

pub fn run(mut args: UpArgs) -> Result<()> {
    let start = Instant::now();
    match &args.gpus {
        // How many there are is a question to the machine, not to the flags.
        Some(Gpus::All) if args.checks() => args.device = vec![DeviceChoice::Cuda(0)],
        Some(gpus) => args.device = gpus.devices()?,
        None => {}
    }
    args.check_effects()?;
    if args.checks() {
        return args.serve.check(args.ranks());
    }
    let model = args.serve.model.open()?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    runtime.block_on(up(args, model, start))
}

async fn up(args: UpArgs, model: crate::model::Model, start: Instant) -> Result<()> {
    let ranks = args.ranks();
    let workers = ranks * args.serve.replicas.first();
    let threads = args.threads.map_or(machine::cores() / workers, usize::from).max(1);
    // Cards have memory of their own, of which each worker measures what is free.
    let on_cpu =
        args.device.iter().cycle().take(workers).filter(|device| **device == DeviceChoice::Cpu).count();
    let offered = |free: u64| (free as f64 * MEMORY_OFFERED) as u64 / on_cpu.max(1) as u64;
    args.serve.check_stages(&model, ranks)?;
    args.cpu.check_pin()?;
    // Before the workers begin to read weights for nothing.
    let door = Door::open(&args.serve, model).await?;
    // Nor while they load: all read one memory.
    let forecast = args.forecast(&door.model.spec, workers, threads);
    let token = random_token();
    let local = ([127, 0, 0, 1], 0).into();
    let fleet = Fleet::listen(local, &token, None, args.serve.weight_rate()).await?;
    let settings = WorkerSettings {
        coordinator: fleet.address(),
        token,
        threads,
        memory_bytes: args.memory_bytes.map(|bytes| bytes.0),
        memory_shared: memory_available().map(offered),
        devices: args.device.clone(),
        cpu: args.cpu.clone(),
        sums: args.sums,
        cache: args.cache.clone(),
        doors: Vec::new(),
    };
    let mut processes = LocalWorkers::spawn(workers, settings)?;
    // A worker that ends before the first group stood would end again: then its message is the answer.
    let stood = Arc::new(AtomicBool::new(false));
    let stands = stood.clone();
    let (lose, lost) = mpsc::unbounded_channel();
    let on_lost =
        move |name: Option<&str>| name.into_iter().for_each(|name| drop(lose.send(name.to_owned())));
    let each = match args.device.as_slice() {
        [DeviceChoice::Cpu] => format!("{threads} threads each"),
        devices => devices.iter().map(DeviceChoice::to_string).collect::<Vec<_>>().join(", "),
    };
    log::say(format_args!(
        "{} on {workers} worker{} of {each}, processes {:?}",
        door.model.name,
        if workers == 1 { "" } else { "s" },
        processes.ids()
    ));
    // A question without a key, and without trust in a certificate, has no answer.
    let greets = door.model.is_demo && args.serve.front.is_plain();
    let front = args.serve.front.clone();
    let on_ready = move |ready: &Ready, plan: &Plan| {
        stands.store(true, Ordering::Relaxed);
        let seconds = start.elapsed().as_secs_f64();
        println!("\n{} is served on {} ({seconds:.1} s after the start)", ready.model, ready.url);
        forecast
            .and_then(|forecast| forecast.line(&ready.spec, plan))
            .iter()
            .for_each(|line| println!("  {line}"));
        println!("  web page: {}/", ready.url);
        println!("  flotilla chat --url {}{}", ready.url, front.chat_flags());
        println!(
            "  curl {}/v1/chat/completions{} -H 'content-type: application/json' \\\n    \
             -d '{{\"model\": \"{}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello!\"}}]}}'\n",
            ready.url,
            front.curl_flags(),
            ready.model
        );
        front.remarks().iter().for_each(|remark| println!("  {remark}"));
        if greets {
            tokio::spawn(greet(ready.url.clone()));
        } else {
            say_how_it_ends();
        }
    };
    let stop = ctrl_c(args.serve.front.drain_timeout());
    tokio::select! {
        served = serve(&args.serve, door, fleet, ranks, on_ready, on_lost, stop) => {
            served.map_err(|error| fit::advise(error, means))
        }
        died = processes.supervise(&stood, lost) => Err(died),
    }
}

/// What one machine can do about a model that does not fit.
fn means(error: &PlanError) -> &'static str {
    if error.is_of_weights() {
        return "take a smaller model, or more machines: `flotilla coordinator`, and `flotilla worker` on each";
    }
    if error.is_of_activations() { "lower --step-tokens" } else { "lower --kv-tokens" }
}

fn say_how_it_ends() {
    println!("\nCtrl-C ends it, once the answers under way are finished");
}

/// Shows that the demo model answers.
async fn greet(url: String) {
    const QUESTION: &str = "What is 27 + 48?";
    println!("> {QUESTION}");
    if let Err(error) = chat::ask(&url, QUESTION).await {
        log::say(format_args!("the model did not answer: {}", describe(&error)));
    }
    say_how_it_ends();
}
