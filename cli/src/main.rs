//! The one door: `flotilla up`, `coordinator`, `worker`, `plan`, `synth`, `verify`, `bench`, `chat`, `top`, `ready`, `dissolve`, `doctor`, `key`, `certs`.
//! Each command has a file of its own, which turns what was typed into settings; the work is done in the crates.
#![forbid(unsafe_code)]

#[macro_use]
mod output;

mod address;
mod bench;
mod cache;
mod certs;
mod chat;
mod device;
mod dissolve;
mod doctor;
mod first_process;
mod fit;
mod forecast;
mod health;
mod join_token;
mod key;
mod links;
mod local_group;
mod local_workers;
mod log;
mod machine;
mod model;
mod open_files;
mod origin;
mod plan;
mod progress;
mod rates;
mod ready;
mod serve;
mod sizes;
mod synth;
mod tls;
mod top;
mod up;
mod verify;
mod words;
mod worker;

use anyhow::Result;
use clap::{Parser, Subcommand};
use log::LogFormat;
use std::process::ExitCode;

/// Many small devices carry what one big one would: serves gpt-oss by tensor parallelism.
#[derive(Debug, Parser)]
#[command(name = "flotilla", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Form of the log on stderr
    #[arg(help_heading = "Log", long, global = true, env = log::FORMAT_VARIABLE, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::UpArgs),
    Coordinator(serve::CoordinatorArgs),
    Worker(worker::WorkerArgs),
    Plan(plan::PlanArgs),
    Synth(synth::SynthArgs),
    Verify(verify::VerifyArgs),
    Bench(bench::BenchArgs),
    Chat(chat::ChatArgs),
    Top(top::TopArgs),
    Ready(ready::ReadyArgs),
    Doctor(doctor::DoctorArgs),
    Dissolve(dissolve::DissolveArgs),
    Key(key::KeyArgs),
    Certs(certs::CertsArgs),
}

impl Command {
    /// What is logged unless [`log::VARIABLE`] says otherwise: servers tell what they do, commands that
    /// a person looks at only what is wrong.
    fn log(&self) -> &'static str {
        match self {
            Command::Coordinator(_) | Command::Worker(_) => "warn,flotilla=info",
            Command::Up(args) if args.logs_prompts() => REQUESTS,
            _ => QUIET,
        }
    }

    /// With `--check` it ends as for wrong words: it was asked about them.
    fn failure(&self) -> ExitCode {
        let checks = match self {
            Command::Up(args) => args.checks(),
            Command::Coordinator(args) => args.checks(),
            Command::Worker(args) => args.check,
            _ => false,
        };
        if checks { ExitCode::from(WRONG_WORDS) } else { ExitCode::FAILURE }
    }
}

/// As clap ends where flags are wrong.
const WRONG_WORDS: u8 = 2;

/// Also for the workers that `up` and `verify` start.
const QUIET: &str = "warn";

/// The same, and each request's line and prompt.
const REQUESTS: &str = "warn,flotilla_coordinator::api::log=info";

fn main() -> ExitCode {
    open_files::raise();
    let cli: Cli = words::parse();
    let log = log::start(cli.log_format, cli.command.log());
    let failure = cli.command.failure();
    log.and_then(|()| first_process::guard()).and_then(|()| run(cli.command)).unwrap_or_else(|error| {
        log::fail(describe(&error));
        failure
    })
}

/// The error and its causes, each thing said once, hints last: many a message quotes its cause already.
fn describe(error: &anyhow::Error) -> String {
    let (mut text, mut hints) = (String::new(), String::new());
    for cause in error.chain() {
        let cause = cause.to_string();
        let (words, hint) = cause.split_once("\nhint: ").unwrap_or((&cause, ""));
        if !text.contains(words) {
            text += if text.is_empty() { "" } else { ": " };
            text += words;
        }
        if !hint.is_empty() && !hints.contains(hint) {
            hints += &format!("\nhint: {hint}");
        }
    }
    text + &hints
}

fn run(command: Command) -> Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Up(args) => up::run(args).map(done),
        Command::Coordinator(args) => serve::run(args).map(done),
        Command::Worker(args) => worker::run(args).map(done),
        Command::Plan(args) => plan::run(&args).map(done),
        Command::Synth(args) => synth::run(&args).map(done),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => bench::run(&args).map(done),
        Command::Chat(args) => chat::run(args).map(done),
        Command::Top(args) => top::run(args).map(done),
        Command::Ready(args) => ready::run(&args).map(done),
        Command::Doctor(args) => doctor::run(&args).map(done),
        Command::Dissolve(args) => dissolve::run(&args).map(done),
        Command::Key(args) => key::run(&args).map(done),
        Command::Certs(args) => certs::run(&args).map(done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn an_error_says_each_thing_once_and_its_hints_last() {
        let cause = std::io::Error::other("address in use");
        let error = Err::<(), _>(cause).context("cannot listen on 1.2.3.4:5\nhint: choose another port");
        let text = describe(&error.unwrap_err());
        assert_eq!(text, "cannot listen on 1.2.3.4:5: address in use\nhint: choose another port");
        let quoted = Err::<(), _>(std::io::Error::other("gone")).context("rank 1 is gone");
        assert_eq!(describe(&quoted.unwrap_err()), "rank 1 is gone");
    }
}
