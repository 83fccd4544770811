//! Obeys step plans: keeps the sequences that the coordinator admitted, lays their rows out as a batch,
//! runs the forward, samples, and answers. It decides nothing; what does not fit what it holds is
//! refused before anything is computed.
//!
//! Ranks of every stage do this with every step, one step after the other. Tokens are chosen on the last stage; the
//! first needs those of rows that run ahead, and hears them from there ([`tokens`]).

mod error;
mod held;
mod tokens;

pub use error::StepError;

use flotilla_engine::backend::Backend;
use flotilla_engine::batch::Batch;
use flotilla_engine::collective::{AbortHandle, AllReduce, Collective, Timed};
use flotilla_engine::model::{Part, forward};
use flotilla_engine::sample::{SampleRow, Sampleable, Sampler};
use flotilla_shared::step::{CapturedRow, Sampled, SequenceWork, StepTimes};
use flotilla_shared::{Assignment, Epoch, KvBlocks, ModelSpec, SequenceId, StepId, StepOutcome, StepPlan};
use held::Held;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// One rank's engine and what it holds.
#[derive(Debug)]
pub struct Executor<B, C> {
    spec: ModelSpec,
    part: Part,
    epoch: Epoch,
    next_step: StepId,
    kv_blocks: KvBlocks,
    rows_max: usize,
    backend: B,
    collective: Timed<C>,
    sampler: Sampler,
    sequences: BTreeMap<SequenceId, Held>,
    batch: Batch,
    /// What is told, or heard, of tokens.
    told: Vec<u8>,
    /// The last step of which tokens were heard.
    heard: StepId,
}

impl<B, C> Executor<B, C>
where
    B: Backend,
    C: Collective + AllReduce<B::Activations>,
{
    pub fn new(assignment: &Assignment, backend: B, collective: C) -> Self {
        let (stage, share) = assignment.plan.share(assignment.rank);
        Executor {
            spec: assignment.spec.clone(),
            part: Part::of(&assignment.spec, stage),
            epoch: assignment.epoch,
            next_step: StepId(1),
            kv_blocks: assignment.kv_blocks,
            rows_max: assignment.step_tokens_max as usize,
            backend,
            collective: Timed::new(collective),
            sampler: Sampler::new(Sampleable::new(share.vocab.clone(), &assignment.sampleable)),
            sequences: BTreeMap::new(),
            batch: Batch::default(),
            told: Vec::new(),
            heard: StepId(0),
        }
    }

    /// What the steps are computed with.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Leaves the group. NCCL does so only when no recording holds its communicator any more.
    pub fn into_backend(self) -> B {
        let Executor { mut backend, collective, .. } = self;
        backend.forget_recordings();
        drop(collective);
        backend
    }

    /// Ends the group from another thread.
    pub fn abort_handle(&self) -> AbortHandle {
        self.collective.abort_handle()
    }

    /// Runs one step. `compute_us` and `memory_bytes` are left to the caller, who has a clock.
    pub fn execute(&mut self, plan: &StepPlan) -> Result<StepOutcome, StepError> {
        self.expect_step(plan)?;
        self.update_sequences(plan)?;
        self.hear_tokens(plan)?;
        self.lay_out(plan)?;
        forward(&self.part, &mut self.backend, &mut self.collective, &self.batch)?;
        // A card goes on with what it finds by itself, so that it is waited for once.
        let rows = self.sample_rows(plan);
        self.sampler.begin(&rows, &mut self.backend);
        AllReduce::<B::Activations>::settle(&mut self.collective)?;
        let (sampled, sampling) = self.choose(plan, rows)?;
        self.tell_tokens(plan, &sampled)?;
        let captured = self.capture(plan)?;
        self.backend.finish()?;
        let times = self.times(sampling);
        let (epoch, step) = (plan.epoch, plan.step);
        Ok(StepOutcome { epoch, step, sampled, captured, times, ..StepOutcome::default() })
    }

    /// The tokens, where they are chosen, and the time that choosing took, without exchanges.
    fn choose(
        &mut self,
        plan: &StepPlan,
        rows: Vec<SampleRow>,
    ) -> Result<(Vec<Sampled>, Duration), StepError> {
        if !self.part.is_last {
            return Ok((self.expect_samples(plan), Duration::ZERO));
        }
        let (start, before) = (Instant::now(), self.collective.spent().time);
        let sampled = self.sample(plan, rows)?;
        let exchanging = self.collective.spent().time - before;
        Ok((sampled, start.elapsed().saturating_sub(exchanging)))
    }

    /// A card only begins its sums when it is told to: where they end is not seen from here, and choosing waits for them.
    fn times(&mut self, sampling: Duration) -> StepTimes {
        let spent = self.collective.take_spent();
        match AllReduce::<B::Activations>::sums_end_with_their_call(&self.collective) {
            false => StepTimes::default(),
            true => StepTimes {
                collective_us: Some(spent.time.as_micros() as u64),
                exchanges: spent.exchanges,
                sample_us: Some(sampling.as_micros() as u64),
            },
        }
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
            let held = Held::new(admission)
                .map_err(|problem| StepError::Work { sequence: admission.sequence, problem })?;
            if self.sequences.insert(admission.sequence, held).is_some() {
                return Err(StepError::DuplicateSequence(admission.sequence));
            }
        }
        Ok(())
    }

    /// Fills the batch. A row's logits are computed where a token is sampled after it or the row is captured.
    fn lay_out(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        self.batch.clear();
        for work in &plan.work {
            let held =
                self.sequences.get_mut(&work.sequence).ok_or(StepError::UnknownSequence(work.sequence))?;
            if !held.works_in(plan.step) {
                return Err(StepError::DuplicateSequence(work.sequence));
            }
            let first = held
                .take(work, &self.spec, self.kv_blocks)
                .map_err(|problem| StepError::Work { sequence: work.sequence, problem })?;
            let rows = self.batch.push(&work.tokens, work.position, held.full.table(), held.window.table());
            self.batch.tokens[rows.start] = first;
            self.batch.keep_routing |= work.capture;
            self.batch.logit_rows.extend(rows.end - logit_row_count(work)..rows.end);
        }
        Ok(())
    }

    /// That tokens are chosen for, which is done on the last stage.
    fn sample_rows(&self, plan: &StepPlan) -> Vec<SampleRow> {
        let mut rows = Vec::new();
        let mut logit_rows = 0;
        for work in plan.work.iter().filter(|_| self.part.is_last) {
            logit_rows += logit_row_count(work);
            if work.sample {
                let held = &self.sequences[&work.sequence];
                rows.extend(held.sample_rows(work, logit_rows - 1 - work.drafts as usize));
            }
        }
        rows
    }

    fn sample(&mut self, plan: &StepPlan, rows: Vec<SampleRow>) -> Result<Vec<Sampled>, StepError> {
        let mut chosen = self.sampler.sample(&rows, &mut self.backend, &mut self.collective)?.into_iter();
        // Histories are changed next, and not copied if nobody else has them.
        drop(rows);
        let mut sampled = Vec::new();
        for work in plan.work.iter().filter(|work| work.sample) {
            let held = self.sequences.get_mut(&work.sequence).expect("its rows were computed");
            let own: Vec<_> = chosen.by_ref().take(work.drafts as usize + 1).collect();
            sampled.extend(held.accept(work, own.into_iter())?);
        }
        Ok(sampled)
    }

    /// Tokens of `plan` will be sampled elsewhere.
    fn expect_samples(&mut self, plan: &StepPlan) -> Vec<Sampled> {
        for work in plan.work.iter().filter(|work| work.sample) {
            let held = self.sequences.get_mut(&work.sequence).expect("its rows were computed");
            held.is_sampled_elsewhere(work);
        }
        Vec::new()
    }

    fn capture(&mut self, plan: &StepPlan) -> Result<Vec<CapturedRow>, StepError> {
        let mut captured = Vec::new();
        let (mut row, mut logit_index) = (0, 0);
        for work in &plan.work {
            for offset in 0..work.tokens.len() * usize::from(work.capture) {
                captured.push(CapturedRow {
                    sequence: work.sequence,
                    position: work.position + offset as u32,
                    logits: match self.part.is_last {
                        true => self.backend.logits(logit_index + offset)?.to_vec(),
                        false => Vec::new(),
                    },
                    experts: self.backend.routing(row + offset)?,
                });
            }
            row += work.tokens.len();
            logit_index += logit_row_count(work);
        }
        Ok(captured)
    }
}

/// Of the work's last rows, so many have their logits taken.
fn logit_row_count(work: &SequenceWork) -> usize {
    match (work.capture, work.sample) {
        (true, _) => work.tokens.len(),
        (false, true) => work.drafts as usize + 1,
        (false, false) => 0,
    }
}
