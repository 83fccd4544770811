//! The search against brute force over the same cost model, on the fleets that people have.

use crate::brute::{Brute, Known};
use crate::fleets::{demand, fleets, uneven};
use flotilla_planner::{Aim, Goal, choose};
use flotilla_shared::ModelSpec;

/// Brute force takes steps, so the search may also be better.
const SLOWER_MAX: f64 = 1.03;

fn check(model: &str, aim: Aim) {
    let spec = ModelSpec::published(model).unwrap();
    let goal = Goal { aim, context: 4096, stages_max: usize::MAX };
    let (demand, known, mut compared) = (demand(&spec, goal), Known::default(), 0);
    for (name, fleet) in fleets().into_iter().chain(uneven()) {
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

/// A model in which whole experts cost little: both must find that, and the search is as good as with slices.
#[test]
fn as_fast_as_brute_force_where_whole_experts_are_cheap() {
    let spec = ModelSpec::published("gpt-oss-20b").unwrap();
    let some = ["4x24 pcie5", "24+16+12 25gbe", "2x32 pcie3", "CPU nodes 10gbe"];
    let mut chosen = 0;
    for aim in [Aim::Latency, Aim::Throughput { clients: 32 }] {
        let goal = Goal { aim, context: 4096, stages_max: usize::MAX };
        let (demand, known) = (demand(&spec, goal), Known::default());
        for (name, mut fleet) in
            uneven().into_iter().chain(fleets().into_iter().filter(|(name, _)| some.contains(&name.as_str())))
        {
            fleet.costs.whole_factor = 0.4;
            let Ok(choice) = choose(&spec, &fleet, goal, demand) else { continue };
            let (best_s, what) =
                Brute { spec: &spec, fleet: &fleet, goal, demand, known: &known }.best().unwrap();
            let ratio = choice.decode.token_s / best_s;
            let mut ranks = choice.plan.ranks();
            let whole = ranks.any(|share| share.experts.experts != (0..spec.experts));
            println!("{aim:?} {name}: whole {whole}, {ratio:.4} of brute force ({what})");
            assert!(ratio <= SLOWER_MAX, "{aim:?} {name}: {ratio} times the time of {what}");
            chosen += usize::from(whole);
        }
    }
    assert!(chosen >= 15, "only {chosen} plans have whole experts");
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
