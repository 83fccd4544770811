//! Whole steps whose dense products go by cuBLASLt. A process of its own: with a second rank in it they would not.

// The model and its steps are those of the tests of ops, which need more of them.
#![allow(dead_code)]

#[path = "ops/batches.rs"]
mod batches;
#[path = "ops/model.rs"]
mod model;
#[path = "ops/reference.rs"]
mod reference;
#[path = "ops/subject.rs"]
mod subject;

use batches::{Sequences, Step, Work, decode, rows};
use flotilla_engine::cuda::{Library, found, search_first};
use model::Model;
use subject::{Ranked, Settings, Subject, card};

/// Sequences that decode together: more rows than the kernels for few take, fewer than the bucket has.
const SEQUENCES: usize = 20;

fn card_with_library() -> Option<Subject> {
    let subject = card()?;
    if subject.name() == "cuda-emulated" {
        search_first(&flotilla_emulator::folder_or_skip()?.join(flotilla_emulator::CUBLAS));
    }
    match found(Library::CublasLt) {
        Ok(_) => Some(subject),
        Err(error) => {
            println!("{}: nothing is checked: {error}", subject.name());
            None
        }
    }
}

/// A step of more than 16 rows loads code of the library's when it is first carried out, so it is recorded the second
/// time: the double refuses a product that is new while it is recorded, and other kernels have other bits.
#[test]
fn a_replayed_step_has_the_bits_of_one_that_is_not() {
    let model = Model::random(&model::spec(), 71);
    // One after the other, or each would have company; and first the one that finds nothing loaded.
    let [found, expected] = [true, false].map(|graphs| {
        let card = card_with_library()?;
        let settings = Settings { graphs, ..Settings::default() };
        let mut rank = card.rank(&model, &model::whole(model.spec()), 0, &settings);
        let steps = steps(&model);
        Some(steps.iter().map(|step| outcome(&mut rank, &model, step)).collect::<Vec<_>>())
    });
    assert_eq!(found, expected);
}

fn steps(model: &Model) -> Vec<Step> {
    let mut sequences = Sequences::new(SEQUENCES, model.spec(), 71);
    let all: Vec<usize> = (0..SEQUENCES).collect();
    let decodes = |which: &[usize]| which.iter().copied().map(decode).collect::<Vec<Work>>();
    let prompts: Vec<Work> = all.iter().map(|&sequence| rows(sequence, 1 + sequence % 5)).collect();
    let works = [
        prompts,
        decodes(&all),
        decodes(&all[..17]),
        decodes(&all[2..]),
        decodes(&all[..3]),
        vec![rows(4, 30), decode(1)],
        decodes(&all[..16]),
        decodes(&all),
        decodes(&all[..18]),
    ];
    works.iter().map(|works| sequences.step(works)).collect()
}

/// The bits of all logits.
fn outcome(rank: &mut Ranked, model: &Model, step: &Step) -> Vec<u32> {
    rank.forward(model, &step.batch).unwrap();
    let mut logits = |row| rank.logits(row).into_iter().map(f32::to_bits).collect::<Vec<_>>();
    (0..step.batch.logit_rows.len()).flat_map(&mut logits).collect()
}
