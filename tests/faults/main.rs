//! Faults, by seed: clients stream answers from a real cluster while its workers are killed, hung, cut off and slowed.
//! Every stream must be, to the last token, what it is without a fault: nothing lost, nothing repeated.
//!
//! The group has two workers and a third waits; whoever has ended is started anew, as a supervisor would. A seed that
//! fails prints the command that runs it again. `FLOTILLA_FAULT_SEED=7` runs that one alone, `FLOTILLA_FAULT_RUNS=2000` so
//! many.

mod dice;
mod fault;
mod fleet;
mod requests;
#[path = "../support/mod.rs"]
mod support;

use dice::Dice;
use fault::Fault;
use fleet::Fleet;
use requests::{Asked, Requests};
use std::time::Duration;
use support::checkpoint::endless;
use tokio::time::{Instant, timeout};

/// As many as CI has time for.
const RUNS: u64 = 200;
const RUNS_BETWEEN: u64 = 40;
/// A run that takes longer has a stream that hangs.
const RUN_TIMEOUT: Duration = Duration::from_secs(120);

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, not a number")))
}

/// Of workers and of their links to the coordinator; the workers share memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_costs_a_token() {
    let told = runs("auto", Fault::thrown, number("FLOTILLA_FAULT_RUNS").unwrap_or(RUNS)).await;
    // Faults that nobody noticed would be no faults.
    assert!(told.runs < RUNS || told.reforms > RUNS / 2, "{told:?}");
}

/// Of the links between workers, while all of them reach the coordinator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_between_workers_costs_a_token() {
    let told = runs("tcp", Fault::thrown_between, RUNS_BETWEEN).await;
    assert!(told.runs < RUNS_BETWEEN || told.reforms > RUNS_BETWEEN / 4, "{told:?}");
}

async fn runs(links: &str, fault: fn(&mut Dice) -> Fault, count: u64) -> Told {
    let model = endless().await;
    let mut fleet = Fleet::start(model.path(), links).await;
    let requests = Requests::answered_undisturbed(&fleet.client()).await;
    let seeds = match number("FLOTILLA_FAULT_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..count + 1,
    };
    let start = Instant::now();
    let mut told = Told { runs: seeds.end - seeds.start, ..Told::default() };
    for seed in seeds {
        let outcome = timeout(RUN_TIMEOUT, run(seed, fault, &mut fleet, &requests, &mut told)).await;
        let problem = outcome.unwrap_or_else(|_| Err(format!("not over after {RUN_TIMEOUT:?}")));
        if let Err(problem) = problem {
            let command = format!("FLOTILLA_FAULT_SEED={seed} cargo test -p flotilla-cli --test faults");
            panic!("seed {seed} fails: {problem}\nto run it again: {command}\n{}", fleet.said());
        }
    }
    if let Err(problem) = fleet.all_back().await {
        panic!("after all runs {problem}\n{}", fleet.said());
    }
    eprintln!("{links}: {told:?} in {:.0?}", start.elapsed());
    told
}

/// What happened in all runs.
#[derive(Debug, Default)]
struct Told {
    runs: u64,
    streams: u64,
    reforms: u64,
    /// Told to come again, while no group stood.
    refused: u64,
}

async fn run(
    seed: u64,
    fault: fn(&mut Dice) -> Fault,
    fleet: &mut Fleet,
    requests: &Requests,
    told: &mut Told,
) -> Result<(), String> {
    let mut dice = Dice::new(seed);
    let client = fleet.client();
    let epoch = client.health(200).await["epoch"].as_u64();
    let count = 4 + dice.below(3);
    let asked: Vec<Asked> = (0..count).map(|_| requests.pick(&mut dice)).collect();
    let fault = fault(&mut dice);
    let name = format!("{fault:?} against {asked:?}");
    let streams = asked.into_iter().map(|asked| requests::stream(client.clone(), asked));
    let (answers, ()) = tokio::join!(futures::future::join_all(streams), fault.strike(fleet, &mut dice));
    for answer in answers {
        told.refused += answer.map_err(|problem| format!("{name}: {problem}"))?;
        told.streams += 1;
    }
    fleet.mend().await;
    let epoch_now = client.health(200).await["epoch"].as_u64();
    told.reforms += epoch_now.zip(epoch).map_or(0, |(now, before)| now - before);
    Ok(())
}
