//! The search against brute force over the same cost model, on the fleets that people have.

use crate::brute::{Brute, Known};
use crate::fleets::{demand, fleets};
use flotilla_planner::{Aim, Goal, choose};
use flotilla_shared::ModelSpec;

/// Brute force takes steps, so the search may also be better.
const SLOWER_MAX: f64 = 1.03;

fn check(model: &str, aim: Aim) {
    let spec = ModelSpec::published(model).unwrap();
    let goal = Goal { aim, context: 4096, stages_max: usize::MAX };
    let (demand, known, mut compared) = (demand(&spec, goal), Known::default(), 0);
    for (name, fleet) in fleets() {
        let found = choose(&spec, &fleet, goal, demand);
        let best = Brute { spec: &spec, fleet: &fleet, goal, demand, known: &known }.best();
        match (found, best) {
            (Ok(choice), Some((best_s, what))) => {
                let ratio = choice.decode.token_s / best_s;
                println!("{model} {aim:?} {name}: {:?}, {ratio:.4} of brute force ({what})", choice.kind);
                assert!(ratio <= SLOWER_MAX, "{model} {aim:?} {name}: {ratio} times the time of {what}");
                compared += 1;
            }
            (Ok(choice), None) => println!("{model} {name}: brute force finds none, {:?}", choice.kind),
            (Err(error), None) => println!("{model} {name}: {error}"),
            (Err(error), Some((_, what))) => panic!("{model} {name}: {error}, but {what} fits"),
        }
    }
    assert!(compared >= 20, "only {compared} fleets hold {model}");
}

#[test]
fn as_fast_as_brute_force_with_the_120b_for_one() {
    check("gpt-oss-120b", Aim::Latency);
}

#[test]
fn as_fast_as_brute_force_with_the_120b_for_many() {
    check("gpt-oss-120b", Aim::Throughput { clients: 32 });
}

#[test]
fn as_fast_as_brute_force_with_the_20b_for_one() {
    check("gpt-oss-20b", Aim::Latency);
}

#[test]
fn as_fast_as_brute_force_with_the_20b_for_many() {
    check("gpt-oss-20b", Aim::Throughput { clients: 32 });
}
