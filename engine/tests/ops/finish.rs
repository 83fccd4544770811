//! What goes wrong in an op is said by `finish`, and ops after it do nothing.

use crate::batches::{Sequences, decode};
use crate::model::{self, Model};
use crate::subject::{Settings, card, subjects};
use flotilla_shared::BlockId;

#[test]
fn a_step_without_fault_finishes() {
    for subject in subjects() {
        let model = Model::random(&model::spec(), 71);
        let mut rank = subject.rank(&model, &model::whole(model.spec()), 0, &Settings::default());
        let step = Sequences::new(1, model.spec(), 71).step(&[decode(0)]);
        rank.forward(&model, &step.batch).unwrap_or_else(|error| panic!("{}: {error}", subject.name()));
    }
}

/// Only on the emulated card: a real one would be lost to the other tests of the process.
#[test]
fn a_fault_on_the_card_is_said_by_finish_and_stays() {
    let Some(card) = card().filter(|card| card.name() == "cuda-emulated") else { return };
    let model = Model::random(&model::spec(), 71);
    let mut rank = card.rank(&model, &model::whole(model.spec()), 0, &Settings::default());
    let mut sequences = Sequences::new(1, model.spec(), 71);
    let mut step = sequences.step(&[decode(0)]);
    // A block that is not in the cache.
    step.batch.blocks[0] = BlockId(1 << 20);
    let error = rank.forward(&model, &step.batch).unwrap_err().to_string();
    assert!(!error.is_empty());
    let next = sequences.step(&[decode(0)]);
    assert_eq!(rank.forward(&model, &next.batch).unwrap_err().to_string(), error);
}
