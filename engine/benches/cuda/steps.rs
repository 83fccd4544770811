//! Whole steps of a model with random weights: [`CudaBackend`] under the one forward, as a worker runs them,
//! sampling included, by the host's clock. Beside them the least that a step must read.

use crate::bench::Bench;
use crate::report::{Row, Work};
use crate::timing::{elapsed, median};
use flotilla_engine::backend::Backend;
use flotilla_engine::backend::cuda::{CudaBackend, CudaSettings, CudaWeights};
use flotilla_engine::batch::{Batch, Table};
use flotilla_engine::collective::card::{CardSettings, SumChoice, Wire};
use flotilla_engine::collective::{AllReduce, CardCollective, Solo};
use flotilla_engine::cuda::{CudaError, DeviceSum};
use flotilla_engine::model::{Part, forward};
use flotilla_engine::sample::{SampleRow, Sampleable, Shard};
use flotilla_engine::weights::{Synthetic, WeightSink};
use flotilla_shared::KvBlocks;
use flotilla_shared::activations::activation_bytes;
use flotilla_shared::sampling::mix;
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{
    Assignment, BackendKind, BlockId, Demand, Epoch, LayerKind, ModelSpec, Plan, Rank, Sampling, TokenId,
    WeightOrigin, WeightsId,
};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What is run.
struct Course {
    /// Tokens of each sequence before it decodes: a prompt that is measured too.
    depth: usize,
    long_prompt: usize,
    long_repeats: usize,
    batches: &'static [usize],
    warm: usize,
    steps: usize,
}

const COURSE: Course =
    Course { depth: 512, long_prompt: 2048, long_repeats: 7, batches: &[1, 8, 32], warm: 4, steps: 48 };
const QUICK: Course =
    Course { depth: 20, long_prompt: 40, long_repeats: 1, batches: &[1, 3], warm: 1, steps: 2 };

pub fn run(bench: &mut Bench) -> Result<(), CudaError> {
    let course = if bench.quick { QUICK } else { COURSE };
    let model = bench.model();
    let mut spec = model.spec.clone();
    spec.layers.truncate(bench.layers.unwrap_or(usize::MAX));
    let mut runner = Runner::new(bench, &spec, &course)?;
    let name = format!("{} L{}", model.name, spec.layer_count());
    memory(bench, &runner, &name);

    let long = (0..course.long_repeats).map(|_| runner.prompt(0, course.long_prompt));
    let long = long.collect::<Result<Vec<_>, _>>()?;
    push(
        bench,
        &name,
        "prompt",
        course.long_prompt,
        median(long),
        0.0,
        prompt_work(&spec, course.long_prompt),
    );
    let sequences = *course.batches.iter().max().expect("there are batches");
    let short = (0..sequences).map(|sequence| runner.prompt(sequence, course.depth));
    let short = short.collect::<Result<Vec<_>, _>>()?;
    push(bench, &name, "prompt", course.depth, median(short), 0.0, prompt_work(&spec, course.depth));

    for &batch in course.batches {
        let (mut seconds, mut on_card) = (Vec::new(), Vec::new());
        for step in 0..course.warm + course.steps {
            let (whole, card) = runner.decode(batch)?;
            if step >= course.warm {
                seconds.push(whole);
                on_card.push(card);
            }
        }
        let bytes = runner.decode_bytes(batch)?;
        let work = Work { bytes, flops: 0.0 };
        push(bench, &name, "decode", batch, median(seconds), median(on_card), work);
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn push(bench: &mut Bench, model: &str, what: &str, rows: usize, seconds: f64, on_card: f64, work: Work) {
    let mut note = format!("{:.1} tokens/s", rows as f64 / seconds);
    let mut outside_ms = None;
    if on_card > 0.0 {
        let least = work.bytes / bench.report.ceilings.read_bytes_per_second;
        let outside = (seconds - least) * 1e3;
        outside_ms = Some(outside);
        note += &format!(
            ", {outside:.2} ms outside the byte bound, forward and sampling {:.2} ms on the card",
            on_card * 1e3
        );
    }
    bench.report.push(Row {
        family: "step",
        what: what.into(),
        model: model.into(),
        ranks: 1,
        rows,
        microseconds: seconds * 1e6,
        work: Some(work),
        outside_ms,
        note,
        ..Row::default()
    });
}

/// Planned and taken. What the driver takes in whole pages is part of the difference.
fn memory(bench: &mut Bench, runner: &Runner, model: &str) {
    let Memory { checkpoint, weights, planned, taken } = runner.memory;
    bench.report.push(Row {
        family: "memory",
        what: "planned and taken".into(),
        model: model.into(),
        ranks: 1,
        weights_ratio: Some(weights as f64 / checkpoint as f64),
        memory_ratio: Some(taken as f64 / planned as f64),
        note: format!(
            "weights {:.4} of the checkpoint's bytes; planned {:.3} GB, taken {:.3} GB: {:.4}",
            weights as f64 / checkpoint as f64,
            planned as f64 / 1e9,
            taken as f64 / 1e9,
            taken as f64 / planned as f64
        ),
        ..Row::default()
    });
}

#[derive(Clone, Copy)]
struct Memory {
    checkpoint: u64,
    weights: u64,
    planned: u64,
    taken: u64,
}

/// A worker's engine without a worker.
struct Runner {
    spec: ModelSpec,
    plan: Plan,
    backend: CudaBackend,
    group: CardCollective<Solo>,
    card: flotilla_engine::cuda::Card,
    sampleable: Sampleable,
    memory: Memory,
    batch: Batch,
    /// Tokens of each sequence so far.
    lengths: Vec<usize>,
    blocks_each: usize,
    chance: u64,
}

fn failed(doing: &'static str, error: impl std::fmt::Display) -> CudaError {
    CudaError::Driver { doing: doing.into(), reason: error.to_string() }
}

impl Runner {
    fn new(bench: &Bench, spec: &ModelSpec, course: &Course) -> Result<Runner, CudaError> {
        let card = bench.card.clone();
        let sequences = *course.batches.iter().max().expect("there are batches");
        let tokens = course.depth + course.batches.len() * (course.warm + course.steps);
        let blocks_each = tokens.div_ceil(BLOCK_TOKENS);
        // The long prompt lies in the blocks of sequences that come after it.
        let kv_blocks = (sequences * blocks_each).max(course.long_prompt.div_ceil(BLOCK_TOKENS));
        let plan = Plan::with_shares(spec, &[1.0]);
        let all = vec![0..spec.vocab as TokenId];
        let assignment = Assignment {
            epoch: Epoch(1),
            rank: Rank(0),
            spec: spec.clone(),
            plan: plan.clone(),
            weights: WeightOrigin::Synthetic { seed: 1 },
            weights_id: WeightsId([0; 32]),
            kv_blocks: KvBlocks::plain(kv_blocks as u32),
            step_tokens_max: course.long_prompt as u32,
            logit_rows_max: 64,
            sampleable: all.clone(),
            peers: vec![String::new()],
            links: Default::default(),
            group_key: [0; 32],
            holders: Vec::new(),
            lends: false,
        };
        // What other families have given back is free only now.
        card.synchronize()?;
        let free = card.memory_free_bytes()?;
        let slices = plan.slices(spec, Rank(0));
        let checkpoint = slices.iter().map(|slice| slice.bytes() as u64).sum();
        let mut weights = CudaWeights::new(&card, slices)?;
        eprintln!("making {:.1} GB of weights", weights.bytes() as f64 / 1e9);
        let loaded = weights.make_from(&Synthetic::new(spec.clone(), 1), &mut |_, _| {});
        loaded.map_err(|error| failed("make weights", error))?;
        let weight_bytes = weights.bytes();
        let settings = CardSettings {
            choice: SumChoice::Auto,
            wire: Wire::F32,
            elements_max: course.long_prompt * spec.hidden,
            deadline: Duration::from_secs(60),
            latency_runs: 0,
        };
        let group = CardCollective::form(&card, Solo::new(), &settings);
        let group = group.map_err(|error| failed("form a group of one", error))?;
        let backend = CudaBackend::new(&CudaSettings { graphs: true }, &assignment, weights)?;
        let demand = Demand {
            kv_blocks: KvBlocks::plain(kv_blocks as u32),
            step_tokens_max: course.long_prompt,
            logit_rows_max: 64,
        };
        let mut share = plan.share(Rank(0)).1.clone();
        share.backend = BackendKind::Cuda;
        let kv = (spec.layer_count() * spec.kv_heads * spec.head_dim * 4 * kv_blocks * BLOCK_TOKENS) as u64;
        let planned = weight_bytes + kv + activation_bytes(spec, &share, demand);
        card.synchronize()?;
        let taken = free.saturating_sub(card.memory_free_bytes()?);
        Ok(Runner {
            memory: Memory { checkpoint, weights: weight_bytes, planned, taken },
            sampleable: Sampleable::new(0..spec.vocab, &all),
            spec: spec.clone(),
            plan,
            backend,
            group,
            card,
            batch: Batch::default(),
            lengths: vec![0; sequences],
            blocks_each,
            chance: 1,
        })
    }

    fn token(&mut self) -> TokenId {
        self.chance += 1;
        (mix(self.chance) % self.spec.vocab as u64) as TokenId
    }

    /// Seconds of a prompt alone in its step, its blocks from those of `sequence` on.
    fn prompt(&mut self, sequence: usize, tokens: usize) -> Result<f64, CudaError> {
        let tokens: Vec<TokenId> = (0..tokens).map(|_| self.token()).collect();
        let first = sequence * self.blocks_each;
        let table: Vec<BlockId> =
            (0..tokens.len().div_ceil(BLOCK_TOKENS)).map(|block| BlockId((first + block) as u32)).collect();
        self.batch.clear();
        self.batch.push(&tokens, 0, Table::whole(&table), Table::whole(&table));
        self.batch.logit_rows = vec![tokens.len() - 1];
        self.lengths[sequence] = tokens.len();
        Ok(self.step()?.0)
    }

    /// One more token for the first `count` sequences: (seconds, seconds of the forward and of sampling on the card).
    fn decode(&mut self, count: usize) -> Result<(f64, f64), CudaError> {
        self.batch.clear();
        for sequence in 0..count {
            let (token, position) = (self.token(), self.lengths[sequence]);
            let first = sequence * self.blocks_each;
            let table: Vec<BlockId> =
                (0..=position / BLOCK_TOKENS).map(|block| BlockId((first + block) as u32)).collect();
            self.batch.push(&[token], position as u32, Table::whole(&table), Table::whole(&table));
            self.lengths[sequence] += 1;
        }
        self.batch.logit_rows = (0..count).collect();
        self.step()
    }

    fn step(&mut self) -> Result<(f64, f64), CudaError> {
        let Runner { spec, backend, group, batch, card, sampleable, .. } = self;
        let row = |logit_row: usize| SampleRow::new(Sampling::GREEDY, 1, logit_row);
        let rows: Vec<SampleRow> = (0..batch.logit_rows.len()).map(row).collect();
        let start = Instant::now();
        let on_card = elapsed(card, || {
            forward(&Part::whole(spec), backend, group, batch)
                .map_err(|error| failed("run a step", error))?;
            backend.begin_best(&rows);
            AllReduce::<DeviceSum>::settle(group).map_err(|error| failed("run a step", error))
        })?;
        backend.best(&rows, sampleable).map_err(|error| failed("sample", error))?;
        backend.finish().map_err(|error| failed("run a step", error))?;
        Ok((start.elapsed().as_secs_f64(), on_card))
    }

    /// What the last step of `count` sequences had to read: weights of the experts that were chosen, everything
    /// dense, keys and values.
    fn decode_bytes(&mut self, count: usize) -> Result<f64, CudaError> {
        let spec = &self.spec;
        let per_token = spec.experts_per_token;
        let mut chosen = vec![BTreeSet::new(); spec.layer_count()];
        for row in 0..count {
            let routing = self.backend.routing(row).map_err(|error| failed("read the routing", error))?;
            for (experts, chosen) in routing.chunks(per_token).zip(&mut chosen) {
                chosen.extend(experts.iter().copied());
            }
        }
        let distinct: usize = chosen.iter().map(BTreeSet::len).sum();
        let bytes = self.plan.bytes(spec, Rank(0));
        let dense = bytes.attention + bytes.unembedding + bytes.replicated;
        let keys = |kind: &LayerKind, length: usize| match kind {
            LayerKind::Window => length.min(spec.window),
            LayerKind::Full => length,
        };
        let seen: usize = self.lengths[..count]
            .iter()
            .map(|length| spec.layers.iter().map(|kind| keys(kind, *length)).sum::<usize>())
            .sum();
        let kv = seen * spec.kv_heads * spec.head_dim * 4;
        Ok(dense as f64 + (distinct * expert_bytes(spec)) as f64 + kv as f64)
    }
}

/// Of one expert of one layer.
fn expert_bytes(spec: &ModelSpec) -> usize {
    use LayerTensor::{DownBias, DownBlocks, DownScales, GateUpBias, GateUpBlocks, GateUpScales};
    let all = [GateUpBlocks, GateUpScales, GateUpBias, DownBlocks, DownScales, DownBias];
    let bytes = |tensor| {
        let tensor = TensorId::Layer(0, tensor);
        tensor.shape(spec).iter().product::<usize>() * tensor.dtype().bytes()
    };
    all.into_iter().map(bytes).sum::<usize>() / spec.experts
}

/// Products and attention of a prompt; every expert is read once.
fn prompt_work(spec: &ModelSpec, t: usize) -> Work {
    let (hidden, q, kv) = (spec.hidden, spec.q_heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let dense = hidden * (q + 2 * kv) + q * hidden + spec.experts * hidden;
    let experts = spec.experts_per_token * 3 * hidden * spec.intermediate;
    let seen = |kind: &LayerKind| -> usize {
        match kind {
            LayerKind::Window => (1..=t).map(|keys| keys.min(spec.window)).sum(),
            LayerKind::Full => t * (t + 1) / 2,
        }
    };
    let attention: usize = spec.layers.iter().map(|kind| 4 * q * seen(kind)).sum();
    let flops = (2 * t * spec.layer_count() * (dense + experts) + attention + 2 * hidden * spec.vocab) as f64;
    let plan = Plan::with_shares(spec, &[1.0]);
    let bytes = plan.bytes(spec, Rank(0));
    Work { bytes: (bytes.weights() - bytes.embedding) as f64, flops }
}
