//! The whole forward over several steps: that ops hand each other what the next one needs.

use crate::batches::{Sequences, Work, decode, rows};
use crate::close::{Tolerance, close};
use crate::model::{self, Model};
use crate::reference::{Fault, Reference};
use crate::subject::{Settings, Subject, subjects};
use flotilla_shared::{KvDtype, ModelSpec};

/// On a card the attention's roundings of p reach the residual stream, and move what is rounded after it: 2.2e-2 are
/// seen after three layers.
const TOLERANCE: Tolerance = Tolerance { cpu: 2e-5, f16: 3e-3, card: 4e-2 };
/// How much less than the best an expert's logit may be, if rounding made it one of the best.
const ROUTING: Tolerance = Tolerance { cpu: 1e-5, f16: 3e-3, card: 2e-2 };

#[test]
fn the_forward_is_that_of_f64() {
    for subject in subjects() {
        for spec in [model::spec(), model::wide_spec()] {
            check(&subject, &spec, None).unwrap();
        }
    }
}

/// What is done row by row goes over the threads in a step of many rows, and is the caller's in one of few.
#[test]
fn a_processor_gives_the_same_bits_on_any_number_of_threads() {
    for subject in [Subject::Cpu(KvDtype::F32), Subject::Cpu(KvDtype::F16), Subject::CpuInt8] {
        let logits = [1, 2, 3, 7].map(|threads| logits(&subject, threads));
        for others in &logits[1..] {
            assert_eq!(logits[0], *others, "{}", subject.name());
        }
    }
}

/// The bits of logits after a prompt of 50 rows and others, and after decodes.
fn logits(subject: &Subject, threads: usize) -> Vec<Vec<u32>> {
    let (spec, seed) = (model::spec(), 52);
    let model = Model::random(&spec, seed);
    let settings = Settings { threads, ..Settings::default() };
    let mut rank = subject.rank(&model, &model::whole(&spec), 0, &settings);
    let mut sequences = Sequences::new(2, &spec, seed);
    let steps = [vec![Work { logits: true, ..rows(0, 50) }, rows(1, 5)], vec![decode(0), decode(1)]];
    let bits = steps.iter().flat_map(|works| {
        let step = sequences.step(works);
        rank.forward(&model, &step.batch).unwrap();
        let rows = 0..step.batch.logit_rows.len();
        rows.map(|row| rank.logits(row).iter().map(|logit| logit.to_bits()).collect()).collect::<Vec<_>>()
    });
    bits.collect()
}

pub fn check(subject: &Subject, spec: &ModelSpec, fault: Option<Fault>) -> Result<(), String> {
    let seed = 51;
    let model = Model::random(spec, seed);
    let mut reference = Reference::new(&model, subject.rounding(), fault);
    let mut rank = subject.rank(&model, &model::whole(spec), 0, &Settings::default());
    let mut sequences = Sequences::new(3, spec, seed);
    let steps = [
        vec![rows(0, 33), Work { logits: true, ..rows(1, 5) }],
        vec![Work { logits: true, ..rows(0, 20) }, decode(1), decode(2)],
        vec![decode(2), decode(0), decode(1)],
        vec![decode(0)],
    ];
    for (index, works) in steps.iter().enumerate() {
        let mut step = sequences.step(works);
        step.batch.keep_routing = true;
        rank.forward(&model, &step.batch).unwrap();
        let routing: Vec<Vec<u16>> = (0..step.rows()).map(|row| rank.routing(row)).collect();

        let mut x = reference.embed(&step, 0..spec.vocab);
        for layer in 0..spec.layer_count() {
            let y = reference.attention(layer, &step, &x);
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
            let mut choices = Vec::new();
            for (row, logits) in reference.router(layer, &x).iter().enumerate() {
                let chosen = &routing[row][layer * spec.experts_per_token..][..spec.experts_per_token];
                let chosen: Vec<usize> = chosen.iter().map(|&expert| expert.into()).collect();
                let least = reference.choose(logits).into_iter().map(|expert| logits[expert]);
                let least = least.fold(f64::INFINITY, f64::min) - ROUTING.of(subject);
                if chosen.iter().any(|&expert| logits[expert] < least) {
                    return Err(format!(
                        "step {index}, layer {layer}, row {row}: experts {chosen:?} of {logits:?}"
                    ));
                }
                choices.push(Reference::weigh(logits, chosen));
            }
            let y = reference.experts(layer, &x, &choices);
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
        for (n, &row) in step.batch.logit_rows.iter().enumerate() {
            let expected = reference.logits(&x[row * spec.hidden..][..spec.hidden]);
            let what = format!("the forward, step {index}, row {row}, seed {seed}");
            close(&what, subject, TOLERANCE, &rank.logits(n), &expected, expected.len())?;
        }
    }
    Ok(())
}
