//! `flotilla bench compare`: two reports of `flotilla bench serve` beside each other.

use anyhow::{Context, Result};
use clap::Args;
use flotilla_load::compare::compare;
use flotilla_load::report::Report;
use std::fs;
use std::path::{Path, PathBuf};

/// Say what differs between two reports of `bench serve`, and what of it may be noise.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Report of `flotilla bench serve --json FILE`
    before: PathBuf,
    /// Another
    after: PathBuf,
    /// Of the bootstrap
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(args: &CompareArgs) -> Result<()> {
    let comparison = compare(&report(&args.before)?, &report(&args.after)?, args.seed);
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&comparison)?),
        false => print!("{comparison}"),
    }
    Ok(())
}

fn report(path: &Path) -> Result<Report> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| {
        format!(
            "{} is no report\nhint: compare takes what `flotilla bench serve --json FILE` wrote",
            path.display()
        )
    })
}
