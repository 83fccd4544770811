//! What is predicted of a plan.

use super::spread::Spread;
use super::stage::{Layers, StageModel, Units, placement_of};
use super::step::StepTime;
use super::sums::hand_over_s;
use super::work::Work;
use crate::fleet::Fleet;
use flotilla_shared::{ModelSpec, Plan};
use serde::Serialize;

/// The times of a plan's steps, none of them measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// By the number of sequences.
    pub decode: Vec<Decode>,
    pub prefill: Prefill,
}

/// Sequences that decode at once.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decode {
    pub sequences: usize,
    /// Parts into which they are divided, so that stages have something to do at the same time.
    pub micro_batches: usize,
    /// Between two tokens of one sequence.
    pub token_s: f64,
    /// Of all sequences together.
    pub tokens_per_s: f64,
    /// Of one micro-batch.
    pub step: StepTime,
}

/// One prompt, in chunks that follow each other through the stages.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prefill {
    pub tokens: usize,
    pub seconds: f64,
    pub tokens_per_s: f64,
    /// Of one chunk.
    pub step: StepTime,
}

/// One step of one micro-batch. `devices`: of the fleet, by rank of the plan.
pub fn predict_step(spec: &ModelSpec, fleet: &Fleet, plan: &Plan, devices: &[usize], work: Work) -> StepTime {
    let model = StageModel::new(spec, fleet, work);
    let mut rest = devices;
    let (mut stages, mut spreads) = (Vec::new(), Vec::new());
    for stage in &plan.stages {
        let (mine, others) = rest.split_at(stage.ranks.len());
        rest = others;
        let units: Vec<Units> = stage.ranks.iter().map(Units::of).collect();
        let layers = Layers::of(spec, stage.layers.clone());
        stages.push(model.stage(mine, &units, placement_of(spec, stage), layers));
        spreads.push(Spread::of(fleet, mine));
    }
    let values = work.rows * spec.hidden;
    let hand_overs = spreads.windows(2).map(|pair| hand_over_s(fleet, &pair[0], &pair[1], values));
    let return_s = match spreads.as_slice() {
        [first, .., last] => hand_over_s(fleet, last, first, 2 * work.logit_rows),
        _ => 0.0,
    };
    StepTime { stages, hand_overs_s: hand_overs.collect(), return_s }
}

/// `sequences` that decode, divided into micro-batches as is fastest.
pub fn predict_decode(
    spec: &ModelSpec,
    fleet: &Fleet,
    plan: &Plan,
    devices: &[usize],
    sequences: usize,
    context: usize,
) -> Decode {
    let most = if plan.stages.len() == 1 { 1 } else { sequences.min(2 * plan.stages.len()) };
    let decodes = (1..=most.max(1)).map(|micro_batches| {
        let work = Work::decode(sequences.div_ceil(micro_batches), context);
        let step = predict_step(spec, fleet, plan, devices, work);
        let token_s = step.period_s(micro_batches);
        Decode { sequences, micro_batches, token_s, tokens_per_s: sequences as f64 / token_s, step }
    });
    decodes.min_by(|a, b| a.token_s.total_cmp(&b.token_s)).expect("there is at least one micro-batch")
}

/// A prompt of so many tokens, in chunks of `chunk` at most.
pub fn predict_prefill(
    spec: &ModelSpec,
    fleet: &Fleet,
    plan: &Plan,
    devices: &[usize],
    tokens: usize,
    chunk: usize,
) -> Prefill {
    let chunk = chunk.clamp(1, tokens.max(1));
    let chunks = tokens.div_ceil(chunk);
    // Of the middle chunk: what rows see grows evenly.
    let before = (tokens - chunk) / 2;
    let step = predict_step(spec, fleet, plan, devices, Work::prefill(chunk, before));
    let seconds = step.round_s() + (chunks - 1) as f64 * step.slowest_s();
    Prefill { tokens, seconds, tokens_per_s: tokens as f64 / seconds, step }
}
