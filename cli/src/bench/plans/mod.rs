//! `flotilla bench plans`: what the planner predicts of plans, from what it is told of this machine and of the links, beside what they
//! take. Every worker is a process of one thread, and stands for a host: they reach each other over shaped links.

mod cases;
mod links;
mod predict;
mod relay;
mod report;

use super::driver::{self, Driver, Kind, STEP_ROWS, blocks};
use super::median;
use crate::device::{CpuArgs, DeviceChoice, SumArgs};
use crate::local_workers::{LocalFleet, WorkerSettings};
use crate::machine;
use crate::model::config_text;
use anyhow::{Context, Result, ensure};
use cases::Case;
use clap::Args;
use flotilla_coordinator::fleet::{Formation, Planning, Weights};
use flotilla_planner::{Aim, Goal, Link};
use flotilla_shared::{KvBlocks, LinkChoice, ModelSpec, TokenId, WireFormat};
use links::Doors;
use predict::Machine;
use report::{Report, Row};
use std::time::Duration;

/// The planner against measurement: plans of several workers of this machine, over links of a given rate and delay.
#[derive(Debug, Args)]
pub struct PlansArgs {
    /// gpt-oss-120b, gpt-oss-20b, or a checkpoint's folder or config.json
    #[arg(long, default_value = "gpt-oss-20b")]
    like: String,
    /// The first N layers only
    #[arg(long, default_value_t = 8)]
    layers: usize,
    /// Links to shape, by the planner's names
    #[arg(long, value_delimiter = ',', default_value = "1gbe,10gbe")]
    links: Vec<Link>,
    /// Sequences that decode together
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    batch: Vec<usize>,
    /// Lengths of prompts, in tokens
    #[arg(long, value_delimiter = ',', default_value = "256")]
    prompt: Vec<usize>,
    /// Steps of one measurement of decode
    #[arg(long, default_value_t = 8)]
    steps: usize,
    /// Times that everything is measured, in turn; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Plans whose name has this in it
    #[arg(long, default_value = "")]
    only: String,
    #[command(flatten)]
    cpu: CpuArgs,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

const SEED: u64 = 1;

pub fn run(args: &PlansArgs) -> Result<()> {
    ensure!(args.rounds > 0 && args.steps > 0, "--rounds and --steps must be at least 1");
    ensure!(!args.links.is_empty(), "--links must name a link\nhint: 1gbe, 10gbe");
    let spec = ModelSpec::from_config_json(&config_text(&args.like, Some(args.layers))?)
        .with_context(|| format!("in {}", args.like))?;
    let cases: Vec<Case> =
        cases::all(&spec).into_iter().filter(|case| case.name.contains(&args.only)).collect();
    ensure!(!cases.is_empty(), "no plan has {:?} in its name", args.only);
    let kinds = kinds(args);
    driver::check(&kinds, args.steps, 1, &spec)?;
    let busy = cases.iter().flat_map(|case| kinds.iter().map(|kind| case.busy(kind))).max().unwrap_or(1);
    let machine = Machine::new(busy.min(machine::cores()))?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let (mut rows, mut measured) = (Vec::new(), Vec::new());
    for case in &cases {
        rows.extend(runtime.block_on(measure(args, &spec, &machine, case, &mut measured))?);
    }
    let report = Report { model: args.like.clone(), layers: args.layers, links: measured, rows };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// One plan over every link.
async fn measure(
    args: &PlansArgs,
    spec: &ModelSpec,
    machine: &Machine,
    case: &Case,
    links: &mut Vec<report::LinkRow>,
) -> Result<Vec<Row>> {
    let (kinds, left_out): (Vec<Kind>, Vec<Kind>) =
        kinds(args).into_iter().partition(|kind| case.busy(kind) <= machine.cores());
    for kind in left_out {
        let (busy, cores) = (case.busy(&kind), machine.cores());
        eprintln!("{}, {kind}: left out, {busy} workers would be busy on {cores} cores", case.name);
    }
    let ranks = case.plan.rank_count();
    let doors = Doors::open(ranks)?;
    let settings = |coordinator, token| WorkerSettings {
        coordinator,
        token,
        threads: 1,
        memory_bytes: None,
        memory_shared: None,
        devices: vec![DeviceChoice::Cpu],
        cpu: args.cpu.clone(),
        sums: SumArgs::default(),
        cache: Default::default(),
        doors: doors.of_workers(),
    };
    let mut workers = LocalFleet::start(ranks, settings).await?;
    let mut rows = Vec::new();
    for link in &args.links {
        doors.shape(link);
        let between = links::measure(link).with_context(|| format!("the shaped link {link}"))?;
        links.push(report::LinkRow::new(link, &between));
        // Each link has a group of its own, whose sums go in pieces from where the planner says of that link.
        let group = workers.form(&formation(spec, case, blocks(&kinds, args.steps, spec), between)).await?;
        let epoch = group.epoch();
        let mut driver = Driver::in_turn(group, spec).of_epoch(epoch);
        let rates = machine.rates(args.cpu.activations.unwrap_or_default());
        let seconds = driver.rounds(args.rounds, args.steps, &kinds).await?;
        for (kind, seconds) in kinds.iter().zip(seconds) {
            let steps = match kind {
                Kind::Decode { .. } => args.steps as f64,
                Kind::Prompt { .. } => 1.0,
            };
            let (predicted_s, sums_s) = predict::seconds(spec, case, kind, args.steps, &rates, between);
            let measured_s = median(seconds) / steps;
            let row = Row { plan: case.name, link: link.name, kind: *kind, predicted_s, measured_s, sums_s };
            eprintln!("{row}");
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Workers are told what the planner says of the link that was found, as the prediction takes it.
fn formation(spec: &ModelSpec, case: &Case, kv_blocks: KvBlocks, between: Link) -> Formation {
    let goal = Goal { aim: Aim::Latency, context: 0, stages_max: usize::MAX };
    Formation {
        spec: spec.clone(),
        weights: Weights::Synthetic { seed: SEED },
        ranks: case.plan.rank_count(),
        planning: Planning::Fastest { goal, within: Some(between), between: Some(between) },
        plan: Some(case.plan.clone()),
        kv_blocks,
        step_tokens_max: STEP_ROWS,
        logit_rows_max: 64,
        sampleable: vec![0..spec.vocab as TokenId],
        links: LinkChoice::Tcp,
        wire: WireFormat::F32,
        regroup_grace: Duration::ZERO,
        return_grace: None,
        step_timeout: Duration::ZERO,
        board: Default::default(),
    }
}

fn kinds(args: &PlansArgs) -> Vec<Kind> {
    let decode = args.batch.iter().map(|&sequences| Kind::Decode { sequences, depth: 0 });
    decode.chain(args.prompt.iter().map(|&tokens| Kind::Prompt { tokens })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or they would divide their sums in another way than is predicted.
    #[test]
    fn workers_are_told_of_the_link_that_the_prediction_takes() {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let found = Link { latency_s: 123e-6, ..Link::preset("10gbe") };
        for case in cases::all(&spec) {
            let formation = formation(&spec, &case, KvBlocks::plain(4), found);
            let Planning::Fastest { within, between, .. } = formation.planning else {
                panic!("{}: nothing is said of links", case.name)
            };
            assert_eq!((within, between, formation.plan), (Some(found), Some(found), Some(case.plan)));
        }
    }
}
