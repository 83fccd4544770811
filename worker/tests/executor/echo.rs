//! A backend that computes nothing but says what it was given, and steps for an executor before it.

use flotilla_engine::backend::{Backend, BackendError, Norm};
use flotilla_engine::batch::Batch;
use flotilla_engine::collective::{AllReduce, Collective, Solo};
use flotilla_engine::sample::{SampleRow, Shard};
use flotilla_shared::step::{Admission, SequenceWork};
use flotilla_shared::{
    Assignment, BlockId, Epoch, KvBlocks, LayerKind, ModelSpec, Plan, Rank, SequenceId, StepId, StepPlan,
    WeightOrigin, WeightsId,
};
use flotilla_worker::Executor;
use std::sync::{Arc, Mutex};

pub const VOCAB: usize = 64;
pub const WINDOW: usize = 20;

/// Of each sequence of each step: full blocks, window entries that are gone, window blocks.
pub type Tables = Vec<(Vec<BlockId>, usize, Vec<BlockId>)>;

/// The logits of a row have their peak at (token + position) mod V.
#[derive(Default)]
pub struct Echo {
    logits: Vec<Vec<f32>>,
    layers: usize,
    pub tables: Tables,
    /// How many rows were begun, and others' words between.
    pub heard: Arc<Mutex<Vec<String>>>,
}

impl Backend for Echo {
    type Activations = [f32];

    fn embed(&mut self, batch: &Batch) -> &mut [f32] {
        for sequence in &batch.sequences {
            assert_eq!(sequence.rows.len(), batch.positions[sequence.rows.clone()].len());
            let last = batch.positions[sequence.rows.end - 1] as usize;
            let first = batch.positions[sequence.rows.start] as usize;
            let [full, window] = [LayerKind::Full, LayerKind::Window].map(|kind| batch.table(sequence, kind));
            assert!(full.positions().start == 0 && full.positions().end > last, "the table reaches all rows");
            let seen = (first + 1).saturating_sub(WINDOW)..last + 1;
            let there = window.positions();
            assert!(
                there.start <= seen.start && seen.end <= there.end,
                "{there:?} are there, {seen:?} are seen"
            );
            self.tables.push((full.blocks.to_vec(), window.gone, window.blocks.to_vec()));
        }
        &mut []
    }
    fn enter(&mut self, _: &Batch) -> &mut [f32] {
        unreachable!("there is one stage")
    }
    fn leave(&mut self, _: &Batch) -> &mut [f32] {
        unreachable!("there is one stage")
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

    fn begin_best(&mut self, rows: &[SampleRow]) {
        self.heard.lock().unwrap().push(format!("{} rows begun", rows.len()));
    }
}

pub fn one_hot(at: usize) -> Vec<f32> {
    (0..VOCAB).map(|token| f32::from(u8::from(token == at))).collect()
}

pub fn executor() -> Executor<Echo, Solo> {
    executor_of(Echo::default(), Solo::new())
}

pub fn executor_of<C: Collective + AllReduce<[f32]>>(echo: Echo, group: C) -> Executor<Echo, C> {
    let mut spec = ModelSpec::published("gpt-oss-20b").unwrap();
    (spec.vocab, spec.context_max, spec.window) = (VOCAB, 64, WINDOW);
    let assignment = Assignment {
        epoch: Epoch(1),
        rank: Rank(0),
        plan: Plan::with_shares(&spec, &[1.0]),
        weights: WeightOrigin::Stream,
        weights_id: WeightsId([0; 32]),
        kv_blocks: KvBlocks { full: 4, window: 3 },
        step_tokens_max: 40,
        logit_rows_max: 64,
        sampleable: vec![0..VOCAB as u32],
        peers: vec![String::new()],
        links: Default::default(),
        group_key: [0; 32],
        holders: Vec::new(),
        lends: false,
        spec,
    };
    Executor::new(&assignment, echo, group)
}

/// Work on sequence `id`, with the blocks given to both kinds of layers.
pub fn work(id: u64, position: u32, tokens: &[u32], blocks: &[u32]) -> SequenceWork {
    let blocks = ids(blocks);
    SequenceWork {
        sequence: SequenceId(id),
        position,
        tokens: tokens.to_vec(),
        window_blocks: blocks.clone(),
        blocks,
        sample: true,
        ..SequenceWork::default()
    }
}

pub fn ids(blocks: &[u32]) -> Vec<BlockId> {
    blocks.iter().copied().map(BlockId).collect()
}

pub fn plan(step: u64, admit: &[u64], work: Vec<SequenceWork>) -> StepPlan {
    let admission = |id: &u64| Admission { sequence: SequenceId(*id), ..Admission::default() };
    let admit = admit.iter().map(admission).collect();
    StepPlan { epoch: Epoch(1), step: StepId(step), release: Vec::new(), admit, work }
}
