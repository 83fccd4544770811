//! A deterministic simulation of a serving coordinator: the real scheduler, workers whose cache is checked
//! slot by slot, clients that come, talk, wait, leave and come back, links with delays, groups that are lost
//! and form again, all in virtual time. Everything follows from one seed.
//!
//! After every event the scheduler's own invariants hold (`scheduler/src/check.rs`), and those of the world
//! (`scheduler/tests/world`): no token is lost, repeated or computed from another's blocks, no decode sits
//! out a step, nobody works who has ended, every client gets one last word.
//!
//! A seed that fails prints the command that runs it again. `FLOTILLA_SIM_SEED=7` runs that one, and says
//! what happens; `FLOTILLA_SIM_SEEDS=100000` runs so many.

mod life;
#[path = "../../scheduler/tests/world/mod.rs"]
mod world;

use life::Life;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// As many as a minute has time for, where debug builds check every event.
const SEEDS: u64 = 4000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, not a number")))
}

fn run(seed: u64, told: bool) -> life::Told {
    let outcome = catch_unwind(AssertUnwindSafe(|| Life::new(seed, told).live()));
    outcome.unwrap_or_else(|panic| {
        eprintln!("\nseed {seed} fails. To run it again:\n");
        eprintln!(
            "    FLOTILLA_SIM_SEED={seed} cargo test -p flotilla-cli --test simulation -- --nocapture\n"
        );
        resume_unwind(panic)
    })
}

#[test]
fn every_seed_comes_to_its_end() {
    if let Some(seed) = number("FLOTILLA_SIM_SEED") {
        println!("{:?}", run(seed, true));
        return;
    }
    let mut all = life::Told::default();
    for seed in 0..number("FLOTILLA_SIM_SEEDS").unwrap_or(SEEDS) {
        all.add(&run(seed, false));
    }
    println!("{all:?}");
    // That the seeds meet what they are there for.
    let life::Told {
        finished,
        cancelled,
        late,
        rejected,
        groups_lost,
        trials,
        preemptions,
        cached,
        accepted,
        ..
    } = all;
    let met = [finished, cancelled, late, rejected, groups_lost, trials, preemptions, cached, accepted];
    assert!(met.iter().all(|&count| count > 0), "something never happened: {all:?}");
}

/// The same seed, the same life, to the microsecond.
#[test]
fn a_seed_tells_all() {
    for seed in [1, 2, 3] {
        assert_eq!(format!("{:?}", run(seed, false)), format!("{:?}", run(seed, false)));
    }
}
