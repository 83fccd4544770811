//! `flotilla bench`: `engine` measures kernels and whole steps on this machine, `plans` sets what the planner predicts
//! beside what plans take, `serve` loads a server, and `compare` tells two such runs apart.

mod compare;
mod driver;
mod engine;
mod kernels;
mod plans;
mod report;
mod serve;
mod steps;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Measure.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Engine(engine::EngineArgs),
    Plans(plans::PlansArgs),
    Serve(Box<serve::ServeArgs>),
    Compare(compare::CompareArgs),
}

pub fn run(args: &BenchArgs) -> Result<()> {
    match &args.what {
        What::Engine(args) => engine::run(args),
        What::Plans(args) => plans::run(args),
        What::Serve(args) => serve::run(args),
        What::Compare(args) => compare::run(args),
    }
}

/// The middle one; of an even number the lower.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}
