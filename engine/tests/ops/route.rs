//! Which experts each row takes: those of f64, and the same bits of the router on every backend.

use crate::attention::wide;
use crate::batches::{Sequences, rows};
use crate::model::{self, Model, Random};
use crate::reference::{Fault, Reference};
use crate::subject::{Op, ROWS_MAX, Settings, Subject, subjects};
use flotilla_engine::backend::Norm;
use flotilla_shared::ModelSpec;
use flotilla_shared::tensor::{LayerTensor, TensorId};
use half::bf16;

#[test]
fn rows_take_the_experts_of_f64() {
    for subject in subjects() {
        check(&subject, None).unwrap();
    }
}

/// Experts 2 and 5 have equal logits in every row. Those of 1 and 6 differ in f64 by less than a sum in f32 can
/// tell, so that its order decides.
fn model_with_ties(spec: &ModelSpec, seed: u64) -> Model {
    let mut model = Model::random(spec, seed);
    for layer in 0..spec.layer_count() as u16 {
        model.edit(TensorId::Layer(layer, LayerTensor::RouterWeight), |w| {
            w.copy_within(2 * spec.hidden..3 * spec.hidden, 5 * spec.hidden);
            w.copy_within(spec.hidden..2 * spec.hidden, 6 * spec.hidden);
            for element in 0..spec.hidden / 4 {
                let tiny = f32::from_bits(0x3200_0000 + 0x0011_0000 * (element as u32 % 8));
                w[spec.hidden + 4 * element] = bf16::from_f32(tiny);
                w[6 * spec.hidden + 4 * element] = bf16::from_f32(-tiny);
            }
        });
        model.edit(TensorId::Layer(layer, LayerTensor::RouterBias), |b| {
            b[5] = b[2];
            b[6] = b[1];
        });
    }
    model
}

/// The routing of rows over every layer, few at a time and many.
fn routing(subject: &Subject, model: &Model, seed: u64, mut visit: impl FnMut(usize, &[f32], Vec<u16>)) {
    let spec = model.spec();
    // A rank without experts routes all the same.
    for (plan, rank) in [(model::whole(spec), 0), (model::four_ranks(spec), 2)] {
        let mut ranked = subject.rank(model, &plan, rank, &Settings::default());
        let mut sequences = Sequences::new(2, spec, seed);
        let mut random = Random::new(seed);
        for works in [rows(0, ROWS_MAX), rows(1, 5), rows(0, 30)] {
            let mut step = sequences.step(&[works]);
            step.batch.keep_routing = true;
            let x = random.units(step.rows() * spec.hidden);
            let layers = 0..spec.layer_count();
            let ops: Vec<Op> =
                layers.flat_map(|layer| [Op::AddNorm(Norm::Mlp(layer)), Op::Route(layer)]).collect();
            ranked.play(&step.batch, &x, &ops);
            for row in 0..step.rows() {
                visit(row, &x[row * spec.hidden..][..spec.hidden], ranked.routing(row));
            }
        }
    }
}

pub fn check(subject: &Subject, fault: Option<Fault>) -> Result<(), String> {
    for spec in [model::spec(), model::wide_spec()] {
        let seed = 21;
        let model = model_with_ties(&spec, seed);
        let reference = Reference::new(&model, subject.rounding(), fault);
        let (mut wrong, mut ties) = (None, 0);
        routing(subject, &model, seed, |row, x, found| {
            for (layer, found) in found.chunks(spec.experts_per_token).enumerate() {
                // Each norm has added y = x once more.
                let x: Vec<f64> = wide(x).iter().map(|x| x * (layer + 1) as f64).collect();
                let logits = reference.router(layer, &x).remove(0);
                let expected = reference.choose(&logits);
                ties += usize::from(expected.contains(&2));
                let alike = |expert: usize| if expert == 6 { 1 } else { expert };
                let found: Vec<usize> = found.iter().map(|&expert| alike(expert.into())).collect();
                let expected: Vec<usize> = expected.into_iter().map(alike).collect();
                if found != expected {
                    let name = subject.name();
                    wrong = Some(format!(
                        "{name}, row {row}, layer {layer}, seed {seed}: experts {found:?}, not {expected:?}: {logits:?}"
                    ));
                }
            }
        });
        assert!(ties > 20 || fault.is_some(), "the tie hardly matters: {ties}");
        wrong.map_or(Ok(()), Err)?;
    }
    Ok(())
}

#[test]
fn every_backend_takes_the_same_experts_where_f32_cannot_tell() {
    let model = model_with_ties(&model::spec(), 22);
    let mut all = Vec::new();
    for subject in subjects() {
        let (mut chosen, mut either) = (Vec::new(), [0; 2]);
        routing(&subject, &model, 22, |_, _, found| {
            either[0] += found.iter().filter(|&&expert| expert == 1).count();
            either[1] += found.iter().filter(|&&expert| expert == 6).count();
            chosen.push(found);
        });
        assert!(either[0] > 20 && either[1] > 20, "{}: {either:?}", subject.name());
        all.push((subject.name(), chosen));
    }
    for (name, chosen) in &all[1..] {
        let differing = chosen.iter().zip(&all[0].1).filter(|(a, b)| a != b).count();
        assert_eq!(differing, 0, "{name} and {}: rows of {}", all[0].0, chosen.len());
    }
}
