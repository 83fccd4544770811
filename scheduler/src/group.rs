//! One epoch of a group: what its workers hold, and the next step for them. It dies with the epoch, and
//! with it every block, table and step in flight.

use crate::blocks::{BlockPool, blocks_for};
use crate::event::GroupFault;
use crate::sequence::{Arrival, Sequence};
use crate::settings::Settings;
use flotilla_shared::step::{Admission, Sampled, SequenceWork};
use flotilla_shared::{Epoch, SequenceId, StepId, StepPlan};
use std::collections::VecDeque;

pub struct Group {
    pub epoch: Epoch,
    pub pool: BlockPool,
    /// In order of arrival, all of them before the first that waits.
    pub running: Vec<Sequence>,
    /// What the workers still hold and must forget with the next plan.
    releases: Vec<SequenceId>,
    step_last: StepId,
    /// Running one step ahead will make this a queue of two.
    pub in_flight: Option<InFlight>,
    pub preemptions: u64,
}

impl Group {
    pub fn new(epoch: Epoch, kv_blocks: usize) -> Group {
        Group {
            epoch,
            pool: BlockPool::new(kv_blocks),
            running: Vec::new(),
            releases: Vec::new(),
            step_last: StepId(0),
            in_flight: None,
            preemptions: 0,
        }
    }

    /// The next step, unless one is in flight or nothing is to be done.
    pub fn plan_step(&mut self, settings: &Settings, waiting: &mut VecDeque<Sequence>) -> Option<StepPlan> {
        if self.in_flight.is_some() {
            return None;
        }
        self.grow_tables(waiting);
        let mut batch = Batch::new(settings.tokens_per_step_max, self.running.len());
        self.running.iter_mut().filter(|sequence| sequence.rows_lacking() == 1).for_each(|s| batch.add(s));
        self.running.iter_mut().filter(|sequence| sequence.rows_lacking() > 1).for_each(|s| batch.add(s));
        self.admit(settings, waiting, &mut batch);
        (!batch.work.is_empty()).then(|| self.send(batch))
    }

    /// Blocks for every token that runs, oldest first; where they run out, the youngest gives its own.
    fn grow_tables(&mut self, waiting: &mut VecDeque<Sequence>) {
        let mut index = 0;
        while let Some(sequence) = self.running.get_mut(index) {
            if !sequence.lacks_blocks() {
                index += 1;
            } else if let Some(block) = self.pool.take(sequence.id) {
                sequence.blocks.push(block);
            } else {
                self.preempt_youngest(waiting);
            }
        }
    }

    /// May preempt the very sequence that asks for a block, but never the oldest: it fits alone.
    fn preempt_youngest(&mut self, waiting: &mut VecDeque<Sequence>) {
        let youngest = self.remove(self.running.len() - 1);
        tracing::debug!(sequence = %youngest.id, tokens = youngest.tokens.len(), "preempted");
        self.preemptions += 1;
        waiting.push_front(youngest);
    }

    /// Takes in the next in line while they fit. Who is first in line is the place for priorities.
    fn admit(&mut self, settings: &Settings, waiting: &mut VecDeque<Sequence>, batch: &mut Batch) {
        while batch.rows_free > 0 && self.running.len() < settings.sequences_max {
            let Some(mut sequence) = waiting.pop_front_if(|sequence| self.has_blocks_for(sequence)) else {
                return;
            };
            let id = sequence.id;
            let taken = (0..blocks_for(sequence.tokens.len())).map_while(|_| self.pool.take(id));
            sequence.blocks.extend(taken);
            batch.admit.push(sequence.admission());
            batch.add(&mut sequence);
            self.running.push(sequence);
        }
    }

    /// All its tokens, and a block to grow for each that runs: those take one in 16 steps, so what is
    /// admitted is not preempted at once, and what is preempted is not admitted in the same step.
    fn has_blocks_for(&self, sequence: &Sequence) -> bool {
        blocks_for(sequence.tokens.len()) + self.running.len() <= self.pool.free_count()
    }

    fn send(&mut self, batch: Batch) -> StepPlan {
        let step = StepId(self.step_last.0 + 1);
        self.step_last = step;
        self.in_flight = Some(InFlight { step, samples: batch.samples });
        let release = std::mem::take(&mut self.releases);
        StepPlan { epoch: self.epoch, step, release, admit: batch.admit, work: batch.work }
    }

    /// Takes a running sequence out. Its blocks are free at once: no plan is made while a step is in
    /// flight, and the next one tells the workers to forget the sequence before it gives them again.
    pub fn remove(&mut self, index: usize) -> Sequence {
        let mut sequence = self.running.remove(index);
        for &block in &sequence.blocks {
            self.pool.give(block, sequence.id);
        }
        sequence.start_over();
        self.releases.push(sequence.id);
        sequence
    }

    pub fn find(&self, arrival: Arrival) -> Option<usize> {
        self.running.binary_search_by_key(&arrival, |sequence| sequence.arrival).ok()
    }
}

/// A step being put together.
struct Batch {
    rows_free: usize,
    admit: Vec<Admission>,
    work: Vec<SequenceWork>,
    samples: Vec<Sample>,
}

impl Batch {
    fn new(rows_free: usize, sequence_count: usize) -> Batch {
        Batch {
            rows_free,
            admit: Vec::new(),
            work: Vec::with_capacity(sequence_count),
            samples: Vec::with_capacity(sequence_count),
        }
    }

    /// As many rows of the sequence as are left.
    fn add(&mut self, sequence: &mut Sequence) {
        let rows = sequence.rows_lacking().min(self.rows_free);
        if rows == 0 {
            return;
        }
        let work = sequence.next_work(rows);
        if work.sample {
            self.samples.push(Sample { arrival: sequence.arrival, sequence: sequence.id });
        }
        self.rows_free -= rows;
        self.work.push(work);
    }
}

/// The step that the workers run, and the tokens that it owes.
pub struct InFlight {
    pub step: StepId,
    pub samples: Vec<Sample>,
}

/// A token that is to come. The arrival finds the sequence, and finds none if it ended meanwhile.
pub struct Sample {
    pub arrival: Arrival,
    pub sequence: SequenceId,
}

impl InFlight {
    /// Whether these are the tokens that were asked for, in their order.
    pub fn verify(&self, sampled: &[Sampled]) -> Result<(), GroupFault> {
        let step = self.step;
        let (expected, found) = (self.samples.len(), sampled.len());
        if expected != found {
            return Err(GroupFault::SampledCount { step, expected, found });
        }
        match self.samples.iter().zip(sampled).find(|(sample, sampled)| sample.sequence != sampled.sequence) {
            Some((Sample { sequence: expected, .. }, Sampled { sequence: found, .. })) => {
                Err(GroupFault::SampledSequence { step, expected: *expected, found: *found })
            }
            None => Ok(()),
        }
    }
}
