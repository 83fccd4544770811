//! The forward with int8 dense weights and int8 activations, over ranks of which some own nothing of a kind: together they
//! give what one rank gives alone. Both are rounded in the same blocks, so only the order of sums differs.

use crate::batches::{Sequences, Step, Work, decode, rows};
use crate::model::{self, Model};
use crate::subject::{Op, Ranked, Settings, Subject};
use flotilla_engine::backend::Norm;
use flotilla_shared::{ModelSpec, Plan};

/// Of the logits' root mean square: a last bit of a sum may move an activation by a step of its 15 bits.
const APART_MAX: f64 = 1e-3;

#[test]
fn ranks_that_own_nothing_of_a_kind_give_together_what_one_gives() {
    let (spec, seed) = (model::spec(), 61);
    let model = Model::random(&spec, seed);
    let alone = logits(&model, &model::whole(&spec), seed);
    for plan in [model::two_ranks(&spec), model::four_ranks(&spec)] {
        let together = logits(&model, &plan, seed);
        for (row, (alone, together)) in alone.iter().zip(&together).enumerate() {
            let apart = apart(alone, together);
            assert!(apart <= APART_MAX, "{} ranks, row {row}, seed {seed}: {apart:.1e}", plan.rank_count());
        }
    }
}

/// f32 [logit rows of all steps][V]
fn logits(model: &Model, plan: &Plan, seed: u64) -> Vec<Vec<f32>> {
    let spec = model.spec();
    let mut ranks = Subject::CpuInt8.ranks(model, plan, &Settings::default());
    let mut sequences = Sequences::new(3, spec, seed);
    let steps = [
        vec![rows(0, 33), Work { logits: true, ..rows(1, 5) }, decode(2)],
        vec![decode(2), decode(0), decode(1)],
    ];
    steps.iter().flat_map(|works| run(&mut ranks, spec, &sequences.step(works))).collect()
}

/// One step over all ranks, with their sums.
fn run(ranks: &mut [Ranked], spec: &ModelSpec, step: &Step) -> Vec<Vec<f32>> {
    let mut x = vec![0.0; step.rows() * spec.hidden];
    ranks.iter_mut().for_each(|rank| add(&mut x, &rank.embed(&step.batch)));
    for layer in 0..spec.layer_count() {
        let attention =
            [Op::AddNorm(Norm::Attention(layer)), Op::Qkv(layer), Op::Attend(layer), Op::Project(layer)];
        let experts = [Op::AddNorm(Norm::Mlp(layer)), Op::Route(layer), Op::Experts(layer)];
        for ops in [&attention[..], &experts] {
            let parts: Vec<Vec<f32>> = ranks.iter_mut().map(|rank| rank.play(&step.batch, &x, ops)).collect();
            parts.iter().for_each(|part| add(&mut x, part));
        }
    }
    let mut logits = vec![Vec::new(); step.batch.logit_rows.len()];
    for rank in ranks {
        rank.play(&step.batch, &x, &[Op::AddNorm(Norm::Final), Op::Unembed]);
        logits.iter_mut().enumerate().for_each(|(row, logits)| logits.extend(rank.logits(row)));
    }
    logits
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn apart(alone: &[f32], together: &[f32]) -> f64 {
    assert_eq!(alone.len(), together.len());
    let rms = (alone.iter().map(|logit| f64::from(*logit).powi(2)).sum::<f64>() / alone.len() as f64).sqrt();
    let apart = alone.iter().zip(together).map(|(a, b)| f64::from((a - b).abs()) / rms);
    // A NaN is as far away as can be.
    apart.map(|apart| if apart.is_nan() { f64::INFINITY } else { apart }).fold(0.0, f64::max)
}
