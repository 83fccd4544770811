//! Obeys step plans: keeps the sequences that the coordinator admitted, lays their rows out as a batch,
//! runs the forward, samples, and answers. It decides nothing; what does not fit what it holds is
//! refused before anything is computed.

use flotilla_engine::backend::{Backend, BackendError};
use flotilla_engine::batch::Batch;
use flotilla_engine::collective::{AllReduce, Collective, CollectiveError};
use flotilla_engine::model::forward;
use flotilla_engine::sample::{SampleError, SampleRow, Sampleable, Sampler};
use flotilla_shared::step::{BLOCK_TOKENS, CapturedRow, Sampled, SequenceWork};
use flotilla_shared::{
    Assignment, BlockId, Epoch, ModelSpec, Sampling, SequenceId, StepId, StepOutcome, StepPlan,
};
use std::collections::BTreeMap;
use thiserror::Error;

/// Why a step was not run, or not finished. The group is unusable afterwards.
#[derive(Debug, Error)]
pub enum StepError {
    #[error(
        "stale step: expected step {step} of epoch {epoch}, got step {found_step} of epoch {found_epoch}"
    )]
    Stale { epoch: Epoch, step: StepId, found_epoch: Epoch, found_step: StepId },
    #[error("step has {found} rows, at most {max} were announced")]
    TooManyRows { found: usize, max: usize },
    #[error("sequence {0} is not held here")]
    UnknownSequence(SequenceId),
    #[error("sequence {0} is held here already, or has two works in one step")]
    DuplicateSequence(SequenceId),
    #[error("sequence {sequence}: {problem}")]
    Work { sequence: SequenceId, problem: String },
    #[error("sequence {0}: no logit is a number, nothing can be sampled")]
    NoToken(SequenceId),
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl From<SampleError> for StepError {
    fn from(error: SampleError) -> Self {
        match error {
            SampleError::Backend(error) => error.into(),
            SampleError::Collective(error) => error.into(),
        }
    }
}

/// What is held of a sequence between steps.
#[derive(Debug)]
struct Held {
    sampling: Sampling,
    /// Positions that are in the cache.
    length: usize,
    table: Vec<BlockId>,
}

/// One rank's engine and what it holds.
#[derive(Debug)]
pub struct Executor<B, C> {
    spec: ModelSpec,
    epoch: Epoch,
    next_step: StepId,
    kv_blocks: u32,
    rows_max: usize,
    backend: B,
    collective: C,
    sampler: Sampler,
    sequences: BTreeMap<SequenceId, Held>,
    batch: Batch,
}

impl<B, C> Executor<B, C>
where
    B: Backend,
    C: Collective + AllReduce<B::Activations>,
{
    pub fn new(assignment: &Assignment, backend: B, collective: C) -> Self {
        let (_, share) = assignment.plan.share(assignment.rank);
        Executor {
            spec: assignment.spec.clone(),
            epoch: assignment.epoch,
            next_step: StepId(1),
            kv_blocks: assignment.kv_blocks.full,
            rows_max: assignment.step_tokens_max as usize,
            backend,
            collective,
            sampler: Sampler::new(Sampleable::new(share.vocab.clone(), &assignment.sampleable)),
            sequences: BTreeMap::new(),
            batch: Batch::default(),
        }
    }

    /// Runs one step. `compute_us` is left to the caller, who has a clock.
    pub fn execute(&mut self, plan: &StepPlan) -> Result<StepOutcome, StepError> {
        self.expect_step(plan)?;
        self.update_sequences(plan)?;
        self.lay_out(plan)?;
        let (spec, collective, batch) = (&self.spec, &mut self.collective, &self.batch);
        self.backend.run(batch, |backend| forward(spec, backend, collective, batch))?;
        AllReduce::<B::Activations>::settle(&mut self.collective)?;
        let sampled = self.sample(plan)?;
        let captured = self.capture(plan)?;
        self.backend.finish()?;
        Ok(StepOutcome { epoch: plan.epoch, step: plan.step, sampled, captured, compute_us: 0 })
    }

    fn expect_step(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        if (plan.epoch, plan.step) != (self.epoch, self.next_step) {
            return Err(StepError::Stale {
                epoch: self.epoch,
                step: self.next_step,
                found_epoch: plan.epoch,
                found_step: plan.step,
            });
        }
        self.next_step.0 += 1;
        let found = plan.token_count();
        if found > self.rows_max {
            return Err(StepError::TooManyRows { found, max: self.rows_max });
        }
        Ok(())
    }

    fn update_sequences(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        for sequence in &plan.release {
            self.sequences.remove(sequence).ok_or(StepError::UnknownSequence(*sequence))?;
        }
        for admission in &plan.admit {
            let held = Held { sampling: admission.sampling.clone(), length: 0, table: Vec::new() };
            if self.sequences.insert(admission.sequence, held).is_some() {
                return Err(StepError::DuplicateSequence(admission.sequence));
            }
        }
        Ok(())
    }

    /// Fills the batch. A row's logits are computed where a token is sampled or the row is captured.
    fn lay_out(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        self.batch.clear();
        for work in &plan.work {
            let held =
                self.sequences.get_mut(&work.sequence).ok_or(StepError::UnknownSequence(work.sequence))?;
            held.table.extend_from_slice(&work.blocks);
            check_work(work, held, &self.spec, self.kv_blocks)
                .map_err(|problem| StepError::Work { sequence: work.sequence, problem })?;
            held.length += work.tokens.len();
            let rows = self.batch.push(&work.tokens, work.position, &held.table);
            if work.capture {
                self.batch.keep_routing = true;
                self.batch.logit_rows.extend(rows);
            } else if work.sample {
                self.batch.logit_rows.extend(rows.last());
            }
        }
        Ok(())
    }

    fn sample(&mut self, plan: &StepPlan) -> Result<Vec<Sampled>, StepError> {
        let mut rows = Vec::new();
        let mut logit_rows = 0;
        for work in &plan.work {
            logit_rows += logit_row_count(work);
            if work.sample {
                let position = work.position + work.tokens.len() as u32;
                let sampling = self.sequences[&work.sequence].sampling.clone();
                rows.push(SampleRow { sampling, position, logit_row: logit_rows - 1 });
            }
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let tokens = self.sampler.sample(&rows, &mut self.backend, &mut self.collective)?;
        let sampling = plan.work.iter().filter(|work| work.sample);
        let sampled = sampling.zip(tokens).map(|(work, token)| {
            let token = token.ok_or(StepError::NoToken(work.sequence))?;
            Ok(Sampled { sequence: work.sequence, token, logprobs: None })
        });
        sampled.collect()
    }

    fn capture(&mut self, plan: &StepPlan) -> Result<Vec<CapturedRow>, StepError> {
        let mut captured = Vec::new();
        let (mut row, mut logit_index) = (0, 0);
        for work in &plan.work {
            for offset in 0..work.tokens.len() * usize::from(work.capture) {
                captured.push(CapturedRow {
                    sequence: work.sequence,
                    position: work.position + offset as u32,
                    logits: self.backend.logits(logit_index + offset)?.to_vec(),
                    experts: self.backend.routing(row + offset)?,
                });
            }
            row += work.tokens.len();
            logit_index += logit_row_count(work);
        }
        Ok(captured)
    }
}

fn logit_row_count(work: &SequenceWork) -> usize {
    if work.capture { work.tokens.len() } else { usize::from(work.sample) }
}

/// `held` has the work's blocks already, but not its tokens.
fn check_work(work: &SequenceWork, held: &Held, spec: &ModelSpec, kv_blocks: u32) -> Result<(), String> {
    if work.tokens.is_empty() {
        return Err("work without tokens".into());
    }
    if work.position as usize != held.length {
        return Err(format!("rows begin at position {}, {} are in the cache", work.position, held.length));
    }
    let end = held.length + work.tokens.len();
    if end > spec.context_max {
        return Err(format!("rows reach position {end}, the context ends at {}", spec.context_max));
    }
    let blocks_needed = end.div_ceil(BLOCK_TOKENS);
    if held.table.len() < blocks_needed {
        return Err(format!("its table has {} blocks, {blocks_needed} are needed", held.table.len()));
    }
    if let Some(block) = work.blocks.iter().find(|block| block.0 >= kv_blocks) {
        return Err(format!("block {block} is past the {kv_blocks} held"));
    }
    if let Some(token) = work.tokens.iter().find(|token| **token as usize >= spec.vocab) {
        return Err(format!("token {token} is past the vocabulary of {}", spec.vocab));
    }
    Ok(())
}
