//! Whole steps of a rank that is alone: what they ask of the card, and when.

use crate::support::{cards, is_real};
use flotilla_engine::backend::Backend;
use flotilla_engine::backend::cuda::{CudaBackend, CudaSettings, CudaWeights, ROWS_MAX};
use flotilla_engine::batch::{Batch, Table};
use flotilla_engine::collective::card::{CardSettings, SumChoice, Wire};
use flotilla_engine::collective::{AllReduce, CardCollective, Solo};
use flotilla_engine::cuda::{Card, CudaError, DeviceSum};
use flotilla_engine::model::{Part, forward};
use flotilla_engine::sample::{SampleRow, Sampleable, Sampler, Shard};
use flotilla_engine::weights::{Synthetic, WeightSink};
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{
    Assignment, BlockId, Epoch, KvBlocks, ModelSpec, Plan, Rank, Sampling, TokenId, WeightOrigin, WeightsId,
};
use std::ffi::CStr;
use std::time::Duration;

const SEED: u64 = 7;
const SEQUENCES: usize = 3;

fn spec() -> ModelSpec {
    let mut spec = ModelSpec::published("gpt-oss-20b").unwrap();
    (spec.hidden, spec.intermediate, spec.vocab) = (64, 96, 90);
    (spec.experts, spec.experts_per_token) = (8, 2);
    (spec.q_heads, spec.kv_heads, spec.head_dim) = (8, 2, 16);
    spec.layers.truncate(2);
    spec
}

fn backend(card: &Card, step_tokens_max: u32) -> Result<CudaBackend, CudaError> {
    let spec = spec();
    let plan = Plan::with_shares(&spec, &[1.0]);
    let mut weights = CudaWeights::new(card, plan.slices(&spec, Rank(0)))?;
    weights.load_from(&Synthetic::new(spec.clone(), SEED), &mut |_, _| {}).unwrap();
    let assignment = Assignment {
        epoch: Epoch(1),
        rank: Rank(0),
        plan,
        weights: WeightOrigin::Synthetic { seed: SEED },
        weights_id: WeightsId([0; 32]),
        kv_blocks: KvBlocks::plain(SEQUENCES as u32),
        step_tokens_max,
        logit_rows_max: SEQUENCES as u32,
        sampleable: vec![0..spec.vocab as TokenId],
        peers: vec![String::new()],
        links: Default::default(),
        group_key: [0; 32],
        holders: Vec::new(),
        lends: false,
        spec,
    };
    CudaBackend::new(&CudaSettings { graphs: true }, &assignment, weights)
}

/// A rank and its group of one.
struct Alone {
    card: Card,
    backend: CudaBackend,
    group: CardCollective<Solo>,
    batch: Batch,
    sampleable: Sampleable,
}

impl Alone {
    fn new(card: Card) -> Alone {
        let settings = CardSettings {
            choice: SumChoice::Auto,
            wire: Wire::F32,
            elements_max: 8 * spec().hidden,
            deadline: Duration::from_secs(60),
            latency_runs: 0,
        };
        let group = CardCollective::form(&card, Solo::new(), &settings).unwrap();
        let backend = backend(&card, 8).unwrap();
        let sampleable = Sampleable::new(0..spec().vocab, &[0..spec().vocab as TokenId]);
        Alone { card, backend, group, batch: Batch::default(), sampleable }
    }

    /// A token of each sequence at this position.
    fn decode(&mut self, position: usize) {
        assert!(position < BLOCK_TOKENS);
        self.batch.clear();
        for sequence in 0..SEQUENCES {
            let (token, block) = ((position * 31 + sequence * 17) % spec().vocab, BlockId(sequence as u32));
            let table = Table::whole(std::slice::from_ref(&block));
            self.batch.push(&[token as TokenId], position as u32, table, table);
        }
        self.batch.logit_rows = (0..SEQUENCES).collect();
        forward(&Part::whole(&spec()), &mut self.backend, &mut self.group, &self.batch).unwrap();
    }

    fn settle(&mut self) {
        AllReduce::<DeviceSum>::settle(&mut self.group).unwrap();
    }

    fn best(&mut self, rows: &[SampleRow]) -> Vec<TokenId> {
        let found = self.backend.best(rows, &self.sampleable).unwrap();
        found.iter().map(|candidate| candidate.token).collect()
    }

    /// What is likeliest in each row, as the host finds it.
    fn likeliest(&mut self) -> Vec<TokenId> {
        let largest = |logits: &[f32]| {
            let token = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
            token.unwrap() as TokenId
        };
        (0..SEQUENCES).map(|row| largest(self.backend.logits(row).unwrap())).collect()
    }

    /// What the emulated card counts of this rank's stream; a real one does not.
    fn counted(&self, what: &CStr) -> u64 {
        type Count = unsafe extern "C" fn(cudarc::driver::sys::CUstream) -> u64;
        if is_real() {
            return 0;
        }
        // SAFETY: the library is open already; the function is the emulated driver's, of that type.
        unsafe {
            let folder = flotilla_emulator::folder().unwrap();
            let driver = libloading::Library::new(folder.join("libcuda.so.1")).unwrap();
            driver.get::<Count>(what).unwrap()(self.card.stream().cu_stream())
        }
    }
}

fn row(sampling: Sampling, logit_row: usize) -> SampleRow {
    SampleRow::new(sampling, 5, logit_row)
}

fn greedy() -> Vec<SampleRow> {
    (0..SEQUENCES).map(|logit_row| row(Sampling::GREEDY, logit_row)).collect()
}

/// The card is waited for once: then all that was asked of it is done, the choice of tokens too.
#[test]
fn tokens_that_were_begun_need_nothing_more_of_the_card() {
    let mut alone = Alone::new(cards().remove(0).card);
    let rows = greedy();
    // As it is, recorded, replayed.
    for position in 0..4 {
        alone.decode(position);
        alone.backend.begin_best(&rows);
        alone.settle();
        let asked = alone.counted(c"flotilla_emulated_stream_asked");
        let found = alone.best(&rows);
        assert_eq!(alone.counted(c"flotilla_emulated_stream_asked"), asked, "position {position}");
        assert_eq!(found, alone.likeliest(), "position {position}");
        alone.backend.finish().unwrap();
    }
}

/// Neither of rows that nobody began, nor of a step that is over.
#[test]
fn tokens_that_were_begun_are_not_told_of_others() {
    let mut alone = Alone::new(cards().remove(0).card);
    let rows = greedy();
    let mut before = Vec::new();
    for position in 0..4 {
        alone.decode(position);
        let found = alone.best(&rows);
        let expected = alone.likeliest();
        assert_eq!(found, expected, "position {position}");
        assert_ne!(found, before, "position {position}: the next step must tell others");
        alone.backend.begin_best(&rows[1..]);
        assert_eq!(alone.best(&rows[..2]), expected[..2], "position {position}");
        // Nobody asks for these.
        alone.backend.begin_best(&rows);
        alone.backend.finish().unwrap();
        before = found;
    }
}

/// They are the largest that is copied in a step.
#[test]
fn logits_are_copied_without_the_drivers_memory() {
    let mut alone = Alone::new(cards().remove(0).card);
    alone.decode(0);
    alone.settle();
    let before = alone.counted(c"flotilla_emulated_stream_pageable_reads");
    let cut = Sampling { temperature: 1.0, top_p: 0.5, ..Sampling::GREEDY };
    let biased = Sampling { logit_bias: vec![(3, 1.0)], ..Sampling::GREEDY };
    let rows = [row(cut, 0), row(biased, 2), row(Sampling::GREEDY, 1)];
    let mut sampler = Sampler::new(alone.sampleable.clone());
    let chosen = sampler.sample(&rows, &mut alone.backend, &mut alone.group).unwrap();
    assert!(chosen.iter().all(Option::is_some));
    alone.backend.logits(1).unwrap();
    assert_eq!(alone.counted(c"flotilla_emulated_stream_pageable_reads"), before);
}

/// What is here stays when there is more than was room for.
#[test]
fn rows_of_logits_may_come_one_after_the_other() {
    let mut alone = Alone::new(cards().remove(0).card);
    for position in 0..2 {
        alone.decode(position);
        let expected: Vec<Vec<f32>> =
            (0..SEQUENCES).map(|row| alone.backend.logits(row).unwrap().to_vec()).collect();
        for rows in [&[2][..], &[0, 2], &[2, 1, 0], &[1]] {
            let found = alone.backend.each(rows, |_, logits| logits.to_vec()).unwrap();
            let expected: Vec<Vec<f32>> = rows.iter().map(|&row| expected[row].clone()).collect();
            assert_eq!(found, expected, "{rows:?} at {position}");
        }
    }
}

#[test]
fn more_rows_than_a_grid_has_are_refused() {
    let card = cards().remove(0).card;
    let error = backend(&card, ROWS_MAX as u32 + 1).err().expect("no launch takes so many").to_string();
    assert!(error.contains("65536 tokens") && error.contains("\nhint: lower --step-tokens"), "{error}");
}
