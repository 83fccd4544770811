//! Stages, one behind the other, give the bits of all layers in one, on every backend, whether steps are recorded or
//! not: what is handed on is all that the next needs. A stage holds its own layers, and no others.

use crate::batches::{Sequences, Work, decode, rows};
use crate::model::{self, Model};
use crate::subject::{Ranked, Settings, Subject, subjects};
use flotilla_engine::model::Part;
use flotilla_shared::plan::StageCut;
use flotilla_shared::{ModelSpec, Plan};

fn staged(spec: &ModelSpec) -> Plan {
    let layers: Vec<StageCut> = (0..spec.layer_count()).map(|_| StageCut::even(1, &[1.0])).collect();
    Plan::with_stages(spec, &layers)
}

fn bits(rank: &mut Ranked, count: usize) -> Vec<Vec<u32>> {
    (0..count).map(|row| rank.logits(row).iter().map(|logit| logit.to_bits()).collect()).collect()
}

fn check(subject: &Subject, spec: &ModelSpec, graphs: bool) {
    let model = Model::random(spec, 71);
    let settings = Settings { graphs, ..Settings::default() };
    let plan = staged(spec);
    let mut whole = subject.rank(&model, &model::whole(spec), 0, &settings);
    let mut stages = subject.ranks(&model, &plan, &settings);
    let parts: Vec<Part> = plan.stages.iter().map(|stage| Part::of(spec, stage)).collect();
    let mut sequences = Sequences::new(4, spec, 71);
    let steps = [
        vec![rows(0, 33), Work { logits: true, ..rows(1, 5) }],
        vec![Work { logits: true, ..rows(0, 20) }, decode(1), decode(2)],
        vec![decode(2), decode(0), decode(1)],
        vec![decode(0), decode(1), decode(3)],
        vec![decode(3)],
        vec![decode(1), decode(0), decode(2), decode(3)],
    ];
    for (index, works) in steps.iter().enumerate() {
        let mut step = sequences.step(works);
        // Graphs are of steps whose routing nobody asks for.
        step.batch.keep_routing = index < 2;
        whole.forward(&model, &step.batch).unwrap();
        let mut carried = Vec::new();
        for (rank, part) in stages.iter_mut().zip(&parts) {
            rank.forward_part(part, &mut carried, &step.batch).unwrap();
        }
        assert_eq!(carried.len(), step.rows() * spec.hidden);
        let last = stages.last_mut().expect("there is a stage");
        let count = step.batch.logit_rows.len();
        let what = format!("{}, graphs: {graphs}, step {index}", subject.name());
        assert_eq!(bits(last, count), bits(&mut whole, count), "{what}");
        for row in 0..step.rows() * usize::from(index < 2) {
            let routing: Vec<u16> = stages.iter_mut().flat_map(|rank| rank.routing(row)).collect();
            assert_eq!(routing, whole.routing(row), "{what}, row {row}");
        }
    }
}

#[test]
fn stages_have_the_bits_of_the_whole() {
    for subject in subjects() {
        for spec in [model::spec(), model::wide_spec()] {
            check(&subject, &spec, false);
            if let Subject::Card(..) = subject {
                check(&subject, &spec, true);
            }
        }
    }
}
