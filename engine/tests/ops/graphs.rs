//! Steps that are recorded once and replayed for others: the same bits as steps that are not.

use crate::batches::{Sequences, Step, Work, decode, rows};
use crate::model::{self, Model};
use crate::subject::{KV_BLOCKS, ROWS_MAX, Ranked, Settings, card};
use flotilla_engine::sample::SampleRow;
use flotilla_shared::Sampling;

#[test]
fn a_replayed_step_has_the_bits_of_one_that_is_not() {
    let (Some(eager), Some(recording)) = (card(), card()) else { return };
    let model = Model::random(&model::spec(), 61);
    let plan = model::whole(model.spec());
    let mut eager = eager.rank(&model, &plan, 0, &Settings::default());
    let settings = Settings { graphs: true, ..Settings::default() };
    let mut recording = recording.rank(&model, &plan, 0, &settings);
    let mut sequences = Sequences::new(9, model.spec(), 61);
    let decodes = |which: &[usize]| which.iter().copied().map(decode).collect::<Vec<Work>>();
    let all: Vec<usize> = (0..9).collect();
    let steps = [
        vec![rows(0, 30), rows(1, 3), rows(2, 17), rows(3, 1)],
        // Keys enough to be split over blocks.
        vec![rows(2, ROWS_MAX)],
        vec![rows(2, ROWS_MAX)],
        // One bucket for three and four rows: first not full, then full, then others, and fewer again.
        decodes(&[0, 1, 2]),
        decodes(&[2, 0, 1]),
        decodes(&[3, 1, 4, 0]),
        decodes(&[1, 3, 2]),
        // Buckets of one and of two rows, with the first again between them.
        decodes(&[0]),
        decodes(&[4, 2]),
        decodes(&[0, 4, 3]),
        decodes(&[5]),
        // A prompt between replays.
        vec![rows(6, 21), decode(0)],
        decodes(&[6, 0, 5]),
        decodes(&all),
        decodes(&all[1..8]),
        decodes(&all[3..]),
        // More logits than there is room for: they get other memory, and what was recorded is of no more use.
        vec![Work { logits: true, ..rows(7, 66) }],
        decodes(&[7, 6, 1]),
        decodes(&[1, 7]),
        decodes(&[8, 1, 7]),
    ];
    for (index, works) in steps.iter().enumerate() {
        let mut step = sequences.step(works);
        if works.iter().any(|work| work.rows == 66) {
            step.batch.logit_rows = (0..step.rows()).collect();
        }
        let [expected, found] = [&mut eager, &mut recording].map(|rank| outcome(rank, &model, &step));
        assert_eq!(found, expected, "step {index}: {works:?}");
    }
}

/// With a shared beginning, tables have more entries together than there are blocks. What was recorded before
/// they needed more memory is of no more use.
#[test]
fn sequences_that_share_blocks_may_have_more_entries_than_there_are_blocks() {
    let (Some(eager), Some(recording)) = (card(), card()) else { return };
    let model = Model::random(&model::spec(), 62);
    let plan = model::whole(model.spec());
    let mut eager = eager.rank(&model, &plan, 0, &Settings::default());
    let settings = Settings { graphs: true, rows_max: 12, ..Settings::default() };
    let mut recording = recording.rank(&model, &plan, 0, &settings);
    let mut sequences = Sequences::new(12, model.spec(), 62);
    let mut steps: Vec<Step> = (0..14).map(|_| sequences.step(&[rows(0, 12)])).collect();
    steps.push(sequences.step(&[decode(0)]));
    (1..12).for_each(|to| sequences.share(0, to));
    let all: Vec<Work> = (0..12).map(decode).collect();
    steps.extend([sequences.step(&all), sequences.step(&all), sequences.step(&[decode(0)])]);
    let entries = steps[15].batch.blocks.len();
    assert!(entries > (KV_BLOCKS.full + KV_BLOCKS.window) as usize, "{entries}");
    for (index, step) in steps.iter().enumerate() {
        let [expected, found] = [&mut eager, &mut recording].map(|rank| outcome(rank, &model, step));
        assert_eq!(found, expected, "step {index}");
    }
}

/// The bits of all logits, and the tokens that are chosen by them.
fn outcome(rank: &mut Ranked, model: &Model, step: &Step) -> Vec<(Vec<u32>, u32)> {
    rank.forward(model, &step.batch).unwrap();
    let row = |logit_row| {
        let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed: 9, ..Sampling::GREEDY };
        SampleRow::new(sampling, 5, logit_row)
    };
    let rows: Vec<SampleRow> = (0..step.batch.logit_rows.len()).map(row).collect();
    if rows.is_empty() {
        return Vec::new();
    }
    let best = rank.best(&rows);
    let mut bits = |row| rank.logits(row).iter().map(|logit| logit.to_bits()).collect();
    best.iter().enumerate().map(|(row, best)| (bits(row), best.token)).collect()
}
