//! The executor before a backend that computes nothing but says what it was given: what is obeyed, and
//! what is refused before anything is computed.

use flotilla_engine::backend::{Backend, BackendError, Norm};
use flotilla_engine::batch::Batch;
use flotilla_engine::collective::Solo;
use flotilla_engine::sample::Shard;
use flotilla_shared::KvBlocks;
use flotilla_shared::step::{Admission, SequenceWork};
use flotilla_shared::{
    Assignment, BlockId, Epoch, ModelSpec, Plan, Rank, Sampling, SequenceId, StepId, StepPlan, WeightOrigin,
};
use flotilla_worker::{Executor, StepError};

const VOCAB: usize = 64;

/// The logits of a row have their peak at (token + position) mod V.
#[derive(Default)]
struct Echo {
    logits: Vec<Vec<f32>>,
    layers: usize,
}

impl Backend for Echo {
    type Activations = [f32];

    fn embed(&mut self, batch: &Batch) -> &mut [f32] {
        for sequence in &batch.sequences {
            assert_eq!(sequence.rows.len(), batch.positions[sequence.rows.clone()].len());
            let last = batch.positions[sequence.rows.end - 1] as usize;
            assert!(batch.table(sequence).len() * 16 > last, "the table reaches the last row");
        }
        &mut []
    }
    fn add_norm(&mut self, _: Norm, _: &Batch) {}
    fn qkv(&mut self, _: usize, _: &Batch) {}
    fn attend(&mut self, _: usize, _: &Batch) {}
    fn project(&mut self, _: usize, _: &Batch) -> &mut [f32] {
        &mut []
    }
    fn route(&mut self, layer: usize, _: &Batch) {
        self.layers = layer + 1;
    }
    fn experts(&mut self, _: usize, _: &Batch) -> &mut [f32] {
        &mut []
    }
    fn unembed(&mut self, batch: &Batch) {
        let peak = |row: &usize| (batch.tokens[*row] + batch.positions[*row]) as usize % VOCAB;
        self.logits = batch.logit_rows.iter().map(|row| one_hot(peak(row))).collect();
    }
    fn routing(&mut self, row: usize) -> Result<Vec<u16>, BackendError> {
        Ok(vec![row as u16; self.layers])
    }
}

impl Shard for Echo {
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        Ok(&self.logits[row])
    }
}

fn one_hot(at: usize) -> Vec<f32> {
    (0..VOCAB).map(|token| f32::from(u8::from(token == at))).collect()
}

fn executor() -> Executor<Echo, Solo> {
    let mut spec = ModelSpec::published("gpt-oss-20b").unwrap();
    (spec.vocab, spec.context_max) = (VOCAB, 64);
    let assignment = Assignment {
        epoch: Epoch(1),
        rank: Rank(0),
        plan: Plan::with_shares(&spec, &[1.0]),
        weights: WeightOrigin::Stream,
        kv_blocks: KvBlocks::plain(4),
        step_tokens_max: 40,
        sampleable: vec![0..VOCAB as u32],
        peers: vec![String::new()],
        group_key: [0; 32],
        spec,
    };
    Executor::new(&assignment, Echo::default(), Solo::new())
}

/// Work on sequence `id`, with the blocks given.
fn work(id: u64, position: u32, tokens: &[u32], blocks: &[u32]) -> SequenceWork {
    SequenceWork {
        sequence: SequenceId(id),
        position,
        tokens: tokens.to_vec(),
        blocks: blocks.iter().copied().map(BlockId).collect(),
        sample: true,
        ..SequenceWork::default()
    }
}

fn plan(step: u64, admit: &[u64], work: Vec<SequenceWork>) -> StepPlan {
    let admission = |id: &u64| Admission { sequence: SequenceId(*id), ..Admission::default() };
    let admit = admit.iter().map(admission).collect();
    StepPlan { epoch: Epoch(1), step: StepId(step), release: Vec::new(), admit, work }
}

#[test]
fn two_sequences_step_together_and_go_on() {
    let mut executor = executor();
    let first = plan(1, &[7, 9], vec![work(7, 0, &[1, 2, 3], &[0]), work(9, 0, &[5], &[1])]);
    let sampled = executor.execute(&first).unwrap().sampled;
    let tokens: Vec<_> = sampled.iter().map(|s| (s.sequence.0, s.token)).collect();
    assert_eq!(tokens, [(7, 3 + 2), (9, 5)]);

    let next = plan(2, &[], vec![work(9, 1, &[10], &[]), work(7, 3, &[20], &[])]);
    let tokens: Vec<_> = executor.execute(&next).unwrap().sampled.iter().map(|s| s.token).collect();
    assert_eq!(tokens, [10 + 1, 20 + 3]);

    let mut after = plan(3, &[7], vec![work(7, 0, &[4], &[0])]);
    after.release = vec![SequenceId(7)];
    assert_eq!(executor.execute(&after).unwrap().sampled[0].token, 4);
}

#[test]
fn captured_rows_come_with_logits_and_routing_beside_sampled_ones() {
    let mut executor = executor();
    let captured = SequenceWork { sample: false, capture: true, ..work(1, 0, &[8, 9], &[0]) };
    let outcome = executor.execute(&plan(1, &[1, 2], vec![captured, work(2, 0, &[3, 4], &[1])])).unwrap();
    assert_eq!(outcome.sampled.len(), 1);
    assert_eq!(outcome.sampled[0].token, 4 + 1);
    let rows: Vec<_> = outcome.captured.iter().map(|row| (row.position, row.logits.clone())).collect();
    assert_eq!(rows, [(0, one_hot(8)), (1, one_hot(10))]);
    assert_eq!(outcome.captured[1].experts, vec![1; 24]);
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    type Case = (&'static str, fn(&mut StepPlan));
    let cases: [Case; 11] = [
        ("stale step: expected step 2 of epoch 1, got step 5", |p| p.step = StepId(5)),
        ("got step 2 of epoch 3", |p| p.epoch = Epoch(3)),
        ("step has 41 rows, at most 40", |p| p.work[0].tokens = vec![0; 41]),
        ("sequence 8 is not held here", |p| p.work[0].sequence = SequenceId(8)),
        ("sequence 8 is not held here", |p| p.release.push(SequenceId(8))),
        ("sequence 7 is held here already", |p| {
            p.admit.push(Admission { sequence: SequenceId(7), ..Admission::default() });
        }),
        ("work without tokens", |p| p.work[0].tokens.clear()),
        ("rows begin at position 4, 3 are in the cache", |p| p.work[0].position = 4),
        ("its table has 1 blocks, 2 are needed", |p| p.work[0].tokens = vec![0; 14]),
        ("block 4 is past the 4 held", |p| p.work[0].blocks.push(BlockId(4))),
        ("token 64 is past the vocabulary of 64", |p| p.work[0].tokens = vec![64]),
    ];
    for (words, spoil) in cases {
        let mut executor = executor();
        executor.execute(&plan(1, &[7], vec![work(7, 0, &[1, 2, 3], &[0])])).unwrap();
        let mut next = plan(2, &[], vec![work(7, 3, &[4], &[])]);
        spoil(&mut next);
        let error = executor.execute(&next).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn the_context_ends_where_the_model_says() {
    let mut executor = executor();
    let blocks = [0, 1, 2, 3];
    executor.execute(&plan(1, &[1], vec![work(1, 0, &[0; 40], &blocks)])).unwrap();
    executor.execute(&plan(2, &[], vec![work(1, 40, &[0; 24], &[])])).unwrap();
    let error = executor.execute(&plan(3, &[], vec![work(1, 64, &[0], &[])])).unwrap_err();
    assert!(error.to_string().contains("reach position 65, the context ends at 64"), "{error}");
}

#[test]
fn logits_that_are_no_numbers_are_an_error_not_a_token() {
    let mut executor = executor();
    let mut nothing_allowed = plan(1, &[1], vec![work(1, 0, &[1], &[0])]);
    nothing_allowed.admit[0].sampling = Sampling { temperature: f32::NAN, ..Sampling::GREEDY };
    let error = executor.execute(&nothing_allowed).unwrap_err();
    assert!(matches!(error, StepError::NoToken(SequenceId(1))), "{error}");
}
