//! The one door: `flotilla up`, `coordinator`, `worker`, `plan`, `synth`, `verify`, `chat`. Each command
//! has a file of its own, which turns what was typed into settings; the work is done in the crates.
#![forbid(unsafe_code)]

mod chat;
mod local_workers;
mod machine;
mod model;
mod plan;
mod progress;
mod serve;
mod synth;
mod up;
mod verify;
mod worker;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Many small devices carry what one big one would: serves gpt-oss by tensor parallelism.
#[derive(Debug, Parser)]
#[command(name = "flotilla", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::UpArgs),
    Coordinator(serve::CoordinatorArgs),
    Worker(worker::WorkerArgs),
    Plan(plan::PlanArgs),
    Synth(synth::SynthArgs),
    Verify(verify::VerifyArgs),
    Chat(chat::ChatArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter =
        EnvFilter::try_from_env("FLOTILLA_LOG").unwrap_or_else(|_| EnvFilter::new("warn,flotilla=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    run(cli.command).unwrap_or_else(|error| {
        eprintln!("error: {}", words(&error));
        ExitCode::FAILURE
    })
}

/// An error and its causes in one line, without those whose words an error above has taken into its own;
/// then the hints, each on a line.
fn words(error: &anyhow::Error) -> String {
    let (mut words, mut hints) = (String::new(), String::new());
    for cause in error.chain().map(ToString::to_string) {
        let (what, hint) = cause.split_once("\nhint: ").unwrap_or((&cause, ""));
        if words.is_empty() {
            words = what.to_owned();
        } else if !words.contains(what) {
            words = format!("{words}: {what}");
        }
        if !hints.contains(hint) {
            hints = format!("{hints}\nhint: {hint}");
        }
    }
    words + &hints
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
        Command::Chat(args) => chat::run(args).map(done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn an_error_is_one_line_and_its_hints() {
        let error = anyhow!("refused (os error 111)").context("cannot reach it\nhint: start it");
        assert_eq!(words(&error), "cannot reach it: refused (os error 111)\nhint: start it");
        let error =
            anyhow!("rank 1 left\nhint: see its log").context("step failed: rank 1 left\nhint: see its log");
        assert_eq!(words(&error), "step failed: rank 1 left\nhint: see its log");
        assert_eq!(words(&anyhow!("alone")), "alone");
    }
}
