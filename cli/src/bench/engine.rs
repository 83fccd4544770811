//! `flotilla bench engine`: what the kernels and whole steps take on this machine, against its own memory, in one run.
//! Weights are random, and so is the routing: like a trained model's in size, not in what it says.

use super::{driver, kernels, report, steps};
use crate::device::CpuArgs;
use crate::links::LinkArgs;
use crate::machine;
use crate::model::config_text;
use anyhow::{Context, Result, ensure};
use clap::Args;
use flotilla_shared::ModelSpec;

/// The engine alone: kernels, decode, prompts, and depth, on workers that are threads or processes of this machine.
#[derive(Debug, Args)]
pub struct EngineArgs {
    /// gpt-oss-120b, gpt-oss-20b, or a checkpoint's folder or config.json
    #[arg(long, default_value = "gpt-oss-20b")]
    pub(super) like: String,
    /// The first N layers only [default: all]
    #[arg(long)]
    pub(super) layers: Option<usize>,
    /// Numbers of ranks to measure, one after the other
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    pub(super) ranks: Vec<usize>,
    /// Stages that the ranks are cut into
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(super) stages: usize,
    /// Threads of all ranks together [default: all cores]
    #[arg(long)]
    pub(super) threads: Option<usize>,
    /// Ranks as processes over gRPC, as they are served, instead of threads
    #[arg(long)]
    pub(super) processes: bool,
    /// Sequences that decode together
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16")]
    pub(super) batch: Vec<usize>,
    /// Lengths of prompts, in tokens
    #[arg(long, value_delimiter = ',', default_value = "128,512,2048")]
    pub(super) prompt: Vec<usize>,
    /// Positions in the cache at which one sequence decodes (with threads, not with processes)
    #[arg(long, value_delimiter = ',', default_value = "0,4096,32768")]
    pub(super) depth: Vec<usize>,
    /// Steps of one measurement of decode
    #[arg(long, default_value_t = 8)]
    pub(super) steps: usize,
    /// Times that everything is measured, in turn; the median counts
    #[arg(long, default_value_t = 3)]
    pub(super) rounds: usize,
    /// Leave out the kernels
    #[arg(long)]
    pub(super) no_kernels: bool,
    #[command(flatten)]
    pub(super) cpu: CpuArgs,
    #[command(flatten)]
    pub(super) links: LinkArgs,
    /// Print JSON instead of tables
    #[arg(long)]
    pub(super) json: bool,
}

pub fn run(args: &EngineArgs) -> Result<()> {
    let config = config_text(&args.like, args.layers)?;
    let spec = ModelSpec::from_config_json(&config).with_context(|| format!("in {}", args.like))?;
    check(args, &spec)?;
    let threads = args.threads.unwrap_or_else(machine::cores).max(1);
    let kernels = if args.no_kernels { None } else { Some(kernels::measure(threads, args.rounds)?) };
    let read = kernels.as_ref().map(|kernels| kernels.read_huge);
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let mut groups = Vec::new();
    for &ranks in &args.ranks {
        groups.push(runtime.block_on(steps::measure(args, &spec, ranks, (threads / ranks).max(1), read))?);
    }
    let report = report::Report {
        model: args.like.clone(),
        layers: spec.layer_count(),
        threads,
        processes: args.processes,
        activations: args.cpu.activations.unwrap_or_default().to_string(),
        dense: args.cpu.dense.to_string(),
        rounds: args.rounds,
        kernels,
        groups,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

fn check(args: &EngineArgs, spec: &ModelSpec) -> Result<()> {
    ensure!(args.rounds > 0 && args.steps > 0, "--rounds and --steps must be at least 1");
    ensure!(
        args.batch.iter().chain(&args.prompt).all(|count| *count > 0),
        "--batch and --prompt must be at least 1"
    );
    ensure!(args.ranks.iter().all(|ranks| (1..=64).contains(ranks)), "--ranks must be 1 to 64");
    ensure!(
        args.stages > 0 && args.ranks.iter().all(|ranks| args.stages <= *ranks),
        "--stages must be at least 1, and not more than --ranks"
    );
    ensure!(args.stages <= spec.layer_count(), "--stages must not be more than the model's layers");
    let (context, longest) = (spec.context_max, args.prompt.iter().chain(&args.depth).max());
    ensure!(
        longest.is_none_or(|longest| *longest < context),
        "--prompt and --depth must be below the model's context, {context} tokens"
    );
    driver::check(&steps::cases(args), args.steps, args.stages, spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: EngineArgs,
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let refused = |flags: &[&str]| {
            let command = Command::parse_from([&["engine"], flags].concat());
            check(&command.args, &spec).err().map_or(String::new(), |error| error.to_string())
        };
        assert_eq!(refused(&[]), "");
        for flags in [["--batch", "1,0"], ["--prompt", "0"]] {
            assert_eq!(refused(&flags), "--batch and --prompt must be at least 1", "{flags:?}");
        }
        for flags in [["--depth", "1000000000"], ["--prompt", "131072"]] {
            assert!(refused(&flags).contains("below the model's context, 131072 tokens"), "{flags:?}");
        }
        let most: &str = &usize::MAX.to_string();
        for flags in [["--steps", most], ["--steps", "131073"]] {
            assert!(refused(&flags).contains("past the model's context, 131072 tokens"), "{flags:?}");
        }
        assert!(refused(&["--depth", "131071", "--steps", "64"]).contains("ends at 131120 tokens"));
        assert!(refused(&["--batch", most]).contains("more than the 512 rows"));
        assert!(refused(&["--ranks", "2", "--stages", "3"]).contains("not more than --ranks"));
    }
}
