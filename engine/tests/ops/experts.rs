//! The experts as seen through y: whole, cut along the intermediate, and some of them whole on each rank.

use crate::attention::wide;
use crate::batches::{Sequences, Step, rows};
use crate::close::{Tolerance, close};
use crate::model::{self, Model, Random};
use crate::reference::{Choice, Fault, Reference};
use crate::subject::{Op, ROWS_MAX, Ranked, Settings, Subject, subjects};
use flotilla_engine::backend::Norm;
use flotilla_shared::{ModelSpec, Plan};

/// Sums in f32 on both. On a card, what lies at the edge between two values of f16 may be rounded the other
/// way: a part in 2¹⁰ of one of 64 or 96 terms.
const TOLERANCE: Tolerance = Tolerance { cpu: 1e-5, f16: 1e-5, card: 1e-3 };

#[test]
fn experts_are_those_of_f64() {
    for subject in subjects() {
        check(&subject, None).unwrap();
    }
}

pub fn check(subject: &Subject, fault: Option<Fault>) -> Result<(), String> {
    model::cuts().iter().try_for_each(|(spec, plan)| run(subject, spec, plan, fault))
}

/// As many rows as each of the ways to compute them is for.
fn run(subject: &Subject, spec: &ModelSpec, plan: &Plan, fault: Option<Fault>) -> Result<(), String> {
    let seed = 31;
    let model = Model::random(spec, seed);
    let reference = Reference::new(&model, subject.rounding(), fault);
    let mut ranks = subject.ranks(&model, plan, &Settings::default());
    let mut random = Random::new(seed);
    for count in [1, 7, 12, 25, ROWS_MAX] {
        let step = Sequences::new(1, spec, seed).step(&[rows(0, count)]);
        for layer in 0..spec.layer_count() {
            let x = random.units(count * spec.hidden);
            let found = sum(&mut ranks, &step, &x, layer);
            let choices = choices(&reference, layer, &wide(&x));
            let expected = reference.experts(layer, &wide(&x), &choices);
            let what =
                format!("experts, {} ranks, {count} rows, layer {layer}, seed {seed}", plan.rank_count());
            close(&what, subject, TOLERANCE, &found, &expected, spec.hidden)?;
        }
    }
    Ok(())
}

/// Of rows whose choice no rounding of the router could change.
fn choices(reference: &Reference, layer: usize, x: &[f64]) -> Vec<Vec<Choice>> {
    let choose = |logits: Vec<f64>| {
        let chosen = reference.choose(&logits);
        let last = chosen.iter().map(|&expert| logits[expert]).fold(f64::INFINITY, f64::min);
        let next = (0..logits.len()).filter(|expert| !chosen.contains(expert)).map(|expert| logits[expert]);
        let gap = last - next.fold(f64::NEG_INFINITY, f64::max);
        assert!(gap > 1e-5, "a tie of the router in what tests experts: take another seed");
        Reference::weigh(&logits, chosen)
    };
    reference.router(layer, x).into_iter().map(choose).collect()
}

/// Σ y over ranks, in rank order.
fn sum(ranks: &mut [Ranked], step: &Step, x: &[f32], layer: usize) -> Vec<f32> {
    let ops = [Op::AddNorm(Norm::Mlp(layer)), Op::Route(layer), Op::Experts(layer)];
    let parts = ranks.iter_mut().map(|rank| rank.play(&step.batch, x, &ops));
    parts.reduce(|a, b| a.iter().zip(b).map(|(a, b)| a + b).collect()).expect("a plan has ranks")
}

#[test]
fn a_rank_without_experts_adds_nothing() {
    for subject in subjects() {
        let model = Model::random(&model::spec(), 3);
        let plan = model::four_ranks(model.spec());
        let rank = subject.rank(&model, &plan, 2, &Settings::default());
        let step = Sequences::new(1, model.spec(), 3).step(&[rows(0, 20)]);
        let x = Random::new(3).units(step.rows() * model.spec().hidden);
        let y = sum(&mut [rank], &step, &x, 1);
        assert!(y.iter().all(|&y| y == 0.0), "{}", subject.name());
    }
}
