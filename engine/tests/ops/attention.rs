//! add_norm, qkv, attend and project, as seen through y.

use crate::batches::{Sequences, Step, decode, rows};
use crate::close::{Tolerance, close};
use crate::model::{self, Model, Random};
use crate::reference::{Fault, Reference};
use crate::subject::{Op, ROWS_MAX, Ranked, Settings, Subject, subjects};
use flotilla_engine::backend::Norm;
use flotilla_shared::{ModelSpec, Plan};

/// On the CPU the order of a few hundred f32 sums. On a card p is rounded to bf16 before it is multiplied with the
/// values, each by up to 2⁻⁹ of itself: 6e-3 are seen. And what lies at the edge between two values of bf16 may be
/// rounded the other way, by 2⁻⁸ of itself; such a key moves its p by up to 3 %: 1.3e-2 are seen.
const TOLERANCE: Tolerance = Tolerance { cpu: 1e-5, f16: 1e-3, card: 2.5e-2 };

#[test]
fn attention_is_that_of_f64() {
    for subject in subjects() {
        check(&subject, None).unwrap();
    }
}

/// Whole, and as sums of ranks; two of the four have no heads.
pub fn check(subject: &Subject, fault: Option<Fault>) -> Result<(), String> {
    model::cuts().iter().try_for_each(|(spec, plan)| run(subject, spec, plan, fault))
}

/// Prompts, chunks that begin anywhere, and decode rows, mixed and apart, over shuffled tables; those of window
/// layers lose their heads, and others write over them.
fn run(subject: &Subject, spec: &ModelSpec, plan: &Plan, fault: Option<Fault>) -> Result<(), String> {
    let seed = 11;
    let model = Model::random(spec, seed);
    let mut reference = Reference::new(&model, subject.rounding(), fault);
    let mut ranks = subject.ranks(&model, plan, &Settings::default());
    let mut sequences = Sequences::new(5, spec, seed);
    sequences.gives_too_early = fault == Some(Fault::BlocksGivenTooEarly);
    let mut random = Random::new(seed);
    let mut steps = vec![
        // A prompt of several tiles, one within a block, one of one row that is no decode step.
        vec![rows(0, 45), rows(1, 7), rows(2, 1)],
        // A chunk from the middle of a block on, rows that decode among prompts.
        vec![decode(1), rows(0, 19), rows(3, 15), decode(2)],
        // Decode alone: rows of very different lengths.
        vec![decode(3), decode(0), decode(2)],
        vec![decode(0)],
        // Two rows of a sequence: the smallest chunk.
        vec![rows(3, 2), decode(0)],
    ];
    // A row of so many keys that they are split over blocks, beside short ones.
    steps.extend(std::iter::repeat_n(vec![rows(4, ROWS_MAX)], 4));
    steps.extend([vec![decode(4), decode(1)], vec![decode(0), decode(4), rows(2, 3)]]);
    for (index, works) in steps.iter().enumerate() {
        let step = sequences.step(works);
        for layer in 0..spec.layer_count() {
            let x = random.units(step.rows() * spec.hidden);
            let what =
                format!("attention, {} ranks, step {index}, layer {layer}, seed {seed}", plan.rank_count());
            let found = sum(&mut ranks, &step, &x, layer);
            let expected = reference.attention(layer, &step, &wide(&x));
            close(&what, subject, TOLERANCE, &found, &expected, spec.hidden)?;
        }
    }
    Ok(())
}

/// Σ y over ranks, in rank order.
fn sum(ranks: &mut [Ranked], step: &Step, x: &[f32], layer: usize) -> Vec<f32> {
    let ops = [Op::AddNorm(Norm::Attention(layer)), Op::Qkv(layer), Op::Attend(layer), Op::Project(layer)];
    let parts = ranks.iter_mut().map(|rank| rank.play(&step.batch, x, &ops));
    parts.reduce(|a, b| a.iter().zip(b).map(|(a, b)| a + b).collect()).expect("a plan has ranks")
}

#[test]
fn a_rank_without_heads_adds_nothing() {
    for subject in subjects() {
        let model = Model::random(&model::spec(), 3);
        let plan = model::four_ranks(model.spec());
        let rank = subject.rank(&model, &plan, 1, &Settings::default());
        let step = Sequences::new(1, model.spec(), 3).step(&[rows(0, 20)]);
        let x = Random::new(3).units(step.rows() * model.spec().hidden);
        let y = sum(&mut [rank], &step, &x, 1);
        assert!(y.iter().all(|&y| y == 0.0), "{}", subject.name());
    }
}

/// As the reference takes them.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}
