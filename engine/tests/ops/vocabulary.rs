//! The two ends of the model, cut by rows of the vocabulary: embedding, logits, and the choice of a token.

use crate::attention::wide;
use crate::batches::{Sequences, Work, decode, rows};
use crate::close::{Tolerance, close};
use crate::model::{self, Model, Random};
use crate::reference::{Fault, Reference};
use crate::subject::{Op, Settings, Subject, subjects};
use flotilla_engine::backend::{BackendError, Norm};
use flotilla_engine::collective::Solo;
use flotilla_engine::sample::{Candidate, Chosen, History, SampleRow, Sampleable, Sampler, Shard};
use flotilla_shared::activations::LOGIT_ROWS;
use flotilla_shared::sampling::gumbel;
use flotilla_shared::{Plan, Sampling, TokenId};
use std::ops::Range;

/// On a card, what lies at the edge between two values of bf16 may be rounded the other way: a part in 2⁸ of
/// one of 64 terms.
const TOLERANCE: Tolerance = Tolerance { cpu: 1e-5, f16: 1e-5, card: 5e-3 };

fn plans() -> [Plan; 3] {
    let spec = model::spec();
    [model::whole(&spec), model::two_ranks(&spec), model::four_ranks(&spec)]
}

fn vocab_of(plan: &Plan) -> Vec<Range<usize>> {
    plan.ranks().map(|share| share.vocab.clone()).collect()
}

#[test]
fn a_rank_embeds_its_own_tokens() {
    for subject in subjects() {
        let model = Model::random(&model::spec(), 41);
        let reference = Reference::new(&model, subject.rounding(), None);
        for plan in plans() {
            let mut ranks = subject.ranks(&model, &plan, &Settings::default());
            let mut sequences = Sequences::new(2, model.spec(), 41);
            for works in [vec![rows(0, 50), rows(1, 1)], vec![decode(0), decode(1)]] {
                let mut step = sequences.step(&works);
                // The first and the last token of every part.
                let edges = vocab_of(&plan).into_iter().filter(|vocab| !vocab.is_empty());
                let edges = edges.flat_map(|vocab| [vocab.end - 1, vocab.start]);
                step.batch.tokens.iter_mut().zip(edges).for_each(|(token, edge)| *token = edge as TokenId);
                for (rank, vocab) in ranks.iter_mut().zip(vocab_of(&plan)) {
                    let found = rank.embed(&step.batch);
                    assert_eq!(wide(&found), reference.embed(&step, vocab), "{}", subject.name());
                }
            }
        }
    }
}

#[test]
fn logits_are_those_of_f64() {
    for subject in subjects() {
        check(&subject, None).unwrap();
    }
}

/// Rows that are asked for: some, none, one, and more than there is room for at first.
pub fn check(subject: &Subject, fault: Option<Fault>) -> Result<(), String> {
    let seed = 42;
    let model = Model::random(&model::spec(), seed);
    let (reference, hidden) = (Reference::new(&model, subject.rounding(), fault), model.spec().hidden);
    for plan in plans() {
        let mut ranks = subject.ranks(&model, &plan, &Settings::default());
        let mut sequences = Sequences::new(3, model.spec(), seed);
        let mut random = Random::new(seed);
        let steps = [
            (vec![rows(0, 40), decode(1), Work { logits: true, ..rows(2, 9) }], false),
            (vec![rows(0, 12)], false),
            (vec![decode(1)], false),
            (vec![rows(0, 20), rows(2, LOGIT_ROWS)], true),
        ];
        for (works, all) in steps {
            let mut step = sequences.step(&works);
            if all {
                step.batch.logit_rows = (0..step.rows()).collect();
            }
            // Small enough for the norm's epsilon to count.
            let x: Vec<f32> = random.units(step.rows() * hidden).iter().map(|x| x * 3e-3).collect();
            let wanted = step.batch.logit_rows.clone();
            let mut found = vec![Vec::new(); wanted.len()];
            for rank in &mut ranks {
                rank.play(&step.batch, &x, &[Op::AddNorm(Norm::Final), Op::Unembed]);
                found.iter_mut().enumerate().for_each(|(n, found)| found.extend(rank.logits(n)));
            }
            for (found, row) in found.iter().zip(wanted) {
                let expected = reference.logits(&wide(&x[row * hidden..][..hidden]));
                let what = format!("logits, {} ranks, row {row}, seed {seed}", plan.rank_count());
                close(&what, subject, TOLERANCE, found, &expected, expected.len())?;
            }
        }
    }
    Ok(())
}

/// Greedy, warm and hot rows, over ranges with gaps.
#[test]
fn the_best_token_is_the_one_of_the_highest_score() {
    for subject in subjects() {
        let model = Model::random(&model::spec(), 43);
        let settings = settings();
        for plan in plans() {
            let mut ranks = subject.ranks(&model, &plan, &settings);
            let works: Vec<Work> = (0..12).map(decode).collect();
            let step = Sequences::new(12, model.spec(), 43).step(&works);
            let x = Random::new(43).units(step.rows() * model.spec().hidden);
            for (rank, vocab) in ranks.iter_mut().zip(vocab_of(&plan)) {
                rank.play(&step.batch, &x, &[Op::AddNorm(Norm::Final), Op::Unembed]);
                let logits: Vec<Vec<f32>> = (0..12).map(|row| rank.logits(row)).collect();
                let picks = picks();
                let found = rank.best(&picks);
                for (pick, found) in picks.iter().zip(found) {
                    let logits = &logits[pick.logit_row];
                    let own = settings.sampleable.iter().cloned().flatten().map(|token| token as usize);
                    let own = own.filter(|token| vocab.contains(token));
                    let expected = best(pick, own.map(|token| (token, logits[token - vocab.start])));
                    let steps = found.score.to_bits().abs_diff(expected.score.to_bits());
                    // The last bit of a logarithm is a card's own.
                    let close = steps <= u32::from(!pick.sampling.is_greedy());
                    assert!(
                        found.token == expected.token && close,
                        "{}, {vocab:?}, {pick:?}: {found:?}, not {expected:?}",
                        subject.name()
                    );
                }
            }
        }
    }
}

/// The ids that may be chosen have gaps.
fn settings() -> Settings {
    Settings { sampleable: vec![2..30, 36..37, 38..39, 55..80], ..Settings::default() }
}

/// The sampler's tokens where the card has the logits, and where the host does: cut rows among plain ones, with
/// logits that are changed and without. In the second step it is that step's logits that are looked at.
#[test]
fn tokens_are_chosen_alike() {
    for subject in subjects() {
        let model = Model::random(&model::spec(), 44);
        let plan = model::whole(model.spec());
        let mut rank = subject.rank(&model, &plan, 0, &settings());
        for seed in [44, 45] {
            let works: Vec<Work> = (0..12).map(decode).collect();
            let step = Sequences::new(12, model.spec(), seed).step(&works);
            let x = Random::new(seed).units(step.rows() * model.spec().hidden);
            rank.play(&step.batch, &x, &[Op::AddNorm(Norm::Final), Op::Unembed]);
            let logits = (0..12).map(|row| rank.logits(row)).collect();
            let found = rank.sample(&sampled());
            assert_eq!(found, OnHost(logits).sample(&sampled()), "{}, {seed}", subject.name());
        }
    }
}

fn sampled() -> Vec<SampleRow> {
    let row = |n: u32| {
        let (logit_row, top_p) = (n as usize % 12, [1.0, 0.9, 0.5, 0.1][n as usize % 4]);
        let sampling = Sampling {
            temperature: 1.5,
            top_p,
            presence_penalty: 0.5,
            logprobs: Some(n as u8 % 3),
            seed: u64::from(n),
            ..Sampling::GREEDY
        };
        let history = n.is_multiple_of(5).then(|| History::new(&[3, 4, 60], 2).into());
        let mask = n.is_multiple_of(7).then(|| (20..70).collect());
        SampleRow { history, mask, ..SampleRow::new(sampling, n, logit_row) }
    };
    (0..24).map(row).collect()
}

/// f32 [logit rows][V]
struct OnHost(Vec<Vec<f32>>);

impl OnHost {
    fn sample(&mut self, rows: &[SampleRow]) -> Vec<Option<Chosen>> {
        let sampleable = Sampleable::new(0..model::spec().vocab, &settings().sampleable);
        Sampler::new(sampleable).sample(rows, self, &mut Solo::new()).unwrap()
    }
}

impl Shard for OnHost {
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        Ok(&self.0[row])
    }
}

/// Logit rows in an order of their own, and more rows than are looked at at once.
fn picks() -> Vec<SampleRow> {
    let pick = |n: usize| {
        let logit_row = [3, 0, 11, 7, 7, 5, 1, 2, 10, 9][n % 10];
        let temperature = [0.0, 1.0, 0.7, 0.0, 5.0][n % 5];
        let sampling =
            Sampling { temperature, top_p: 1.0, seed: 0x1234_5678_9abc_def0 ^ n as u64, ..Sampling::GREEDY };
        SampleRow::new(sampling, 100 + 7 * n as u32, logit_row)
    };
    (0..70).map(pick).collect()
}

fn best(row: &SampleRow, tokens: impl Iterator<Item = (usize, f32)>) -> Candidate {
    let sampling = &row.sampling;
    let mut best = Candidate::NONE;
    for (token, logit) in tokens {
        let token = token as TokenId;
        let noise = || gumbel(sampling.seed, row.position, token);
        let score = if sampling.is_greedy() { logit } else { logit / sampling.temperature + noise() };
        if score > best.score {
            best = Candidate { score, token };
        }
    }
    best
}
