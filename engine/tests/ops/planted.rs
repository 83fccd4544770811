//! Faults that the checks must notice: the reference makes the mistake, and so the engine is off by it.

use crate::reference::Fault;
use crate::subject::{Subject, subjects};
use crate::{attention, experts, model, route, vocabulary, whole};

type Check = fn(&Subject, Option<Fault>) -> Result<(), String>;

fn whole_model(subject: &Subject, fault: Option<Fault>) -> Result<(), String> {
    whole::check(subject, &model::spec(), fault)
}

const PLANTED: [(Fault, Check); 16] = [
    (Fault::DroppedSink, attention::check),
    (Fault::WindowWithOneMore, attention::check),
    (Fault::WindowWithOneLess, attention::check),
    (Fault::BlocksGivenTooEarly, attention::check),
    (Fault::RotatedInPairs, attention::check),
    (Fault::HeadsOfTheNextKeys, attention::check),
    (Fault::GateAndUpSwapped, experts::check),
    (Fault::NibblesSwapped, experts::check),
    (Fault::UnclampedUp, experts::check),
    (Fault::UnclampedGate, experts::check),
    (Fault::UnweightedDownBias, experts::check),
    (Fault::TiesToTheHigher, route::check),
    (Fault::EpsilonLeftOut, vocabulary::check),
    (Fault::DroppedSink, whole_model),
    (Fault::WindowWithOneMore, whole_model),
    (Fault::GateAndUpSwapped, whole_model),
];

#[test]
fn every_planted_fault_is_noticed_on_every_backend() {
    let mut unnoticed = Vec::new();
    for subject in subjects() {
        for (fault, check) in PLANTED {
            match check(&subject, Some(fault)) {
                Ok(()) => unnoticed.push(format!("{fault:?} on {}", subject.name())),
                Err(error) if std::env::var_os("FLOTILLA_TEST_SHOW").is_some() => {
                    println!("{fault:?}: {error}");
                }
                Err(_) => {}
            }
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}
