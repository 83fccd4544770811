//! A group driven by hand, as the scheduler would: decode of several sequences, prompts in chunks, and decode deep in a
//! context, whose cache is said to be there and is read, but was never computed.

use anyhow::{Result, ensure};
use flotilla_coordinator::group::Group;
use flotilla_shared::plan::apportion;
use flotilla_shared::step::{Admission, BLOCK_TOKENS, SequenceWork};
use flotilla_shared::{BlockId, Epoch, KvBlocks, ModelSpec, SequenceId, StepId, StepPlan, TokenId};
use serde::Serialize;
use std::fmt;
use std::time::Instant;

/// Rows of one step at most, as served.
pub const STEP_ROWS: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "what")]
pub enum Kind {
    Decode { sequences: usize, depth: usize },
    Prompt { tokens: usize },
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Kind::Decode { sequences, .. } => format!("decode of {sequences}"),
            Kind::Prompt { tokens } => format!("prompt of {tokens}"),
        })
    }
}

/// Whether all of `cases` stay within a step's rows and the model's context, in so many stages.
pub fn check(cases: &[Kind], steps: usize, stages: usize, spec: &ModelSpec) -> Result<()> {
    let (rows, context) = (STEP_ROWS * stages, spec.context_max);
    for kind in cases {
        let (sequences, end) = match *kind {
            Kind::Decode { sequences, depth } => (sequences, depth.saturating_add(steps)),
            Kind::Prompt { tokens } => (1, tokens),
        };
        ensure!(sequences <= rows, "{kind} at once is more than the {rows} rows of a round of steps");
        ensure!(end <= context, "{kind} ends at {end} tokens, past the model's context, {context} tokens");
    }
    Ok(())
}

/// Blocks that the greediest of `cases` takes.
pub fn blocks(cases: &[Kind], steps: usize, spec: &ModelSpec) -> KvBlocks {
    let need = |blocks: fn(&Kind, usize, &ModelSpec) -> usize| {
        cases.iter().map(|kind| blocks(kind, steps, spec)).max().unwrap_or(1) as u32
    };
    KvBlocks { full: need(full_blocks), window: need(window_blocks) }
}

fn full_blocks(kind: &Kind, steps: usize, _: &ModelSpec) -> usize {
    match *kind {
        Kind::Decode { sequences, depth } => sequences * (depth + steps).div_ceil(BLOCK_TOKENS),
        Kind::Prompt { tokens } => tokens.div_ceil(BLOCK_TOKENS),
    }
}

fn window_blocks(kind: &Kind, steps: usize, spec: &ModelSpec) -> usize {
    match *kind {
        Kind::Decode { sequences, depth } => {
            sequences * ((depth + steps).div_ceil(BLOCK_TOKENS) - gone(depth, spec))
        }
        Kind::Prompt { tokens } => tokens.div_ceil(BLOCK_TOKENS),
    }
}

/// Blocks of a window layer that a row at `depth` no longer sees.
fn gone(depth: usize, spec: &ModelSpec) -> usize {
    (depth + 1).saturating_sub(spec.window) / BLOCK_TOKENS
}

/// A group, and what it has been sent.
pub struct Driver<'a, G> {
    group: G,
    spec: &'a ModelSpec,
    /// Parts of the sequences that decode, each with a step of its own in flight.
    lanes: usize,
    in_flight: usize,
    /// Steps in flight beyond one a lane.
    ahead: usize,
    epoch: Epoch,
    step: StepId,
    sequence: u64,
    release: Vec<SequenceId>,
}

impl<'a, G: Group> Driver<'a, G> {
    /// As many steps in flight as there are stages: each begins when the one before it has come back, as predictions say.
    pub fn in_turn(group: G, spec: &'a ModelSpec) -> Self {
        let (lanes, epoch, step) = (group.stages(), Epoch(1), StepId(0));
        let (sequence, release) = (0, Vec::new());
        Driver { group, spec, lanes, in_flight: 0, ahead: 0, epoch, step, sequence, release }
    }

    /// One more: workers have the next step when they are done with one.
    pub fn as_served(group: G, spec: &'a ModelSpec) -> Self {
        Driver { ahead: 1, ..Driver::in_turn(group, spec) }
    }

    /// Of a group that is not the first of its workers.
    pub fn of_epoch(self, epoch: Epoch) -> Self {
        Driver { epoch, ..self }
    }

    /// What is measured, between its cases.
    pub fn group(&self) -> &G {
        &self.group
    }

    /// Seconds of each case in each round, after one that does not count.
    pub async fn rounds(&mut self, rounds: usize, steps: usize, cases: &[Kind]) -> Result<Vec<Vec<f64>>> {
        ensure!(rounds > 0 && steps > 0, "--rounds and --steps must be at least 1");
        let mut seconds = vec![Vec::new(); cases.len()];
        self.warm(steps).await?;
        for _ in 0..rounds {
            for (kind, seconds) in cases.iter().zip(&mut seconds) {
                seconds.push(self.measure(kind, steps).await?);
            }
        }
        Ok(seconds)
    }

    /// A measurement that does not count.
    pub async fn warm(&mut self, steps: usize) -> Result<()> {
        self.measure(&Kind::Decode { sequences: 1, depth: 0 }, steps).await.map(drop)
    }

    pub async fn measure(&mut self, kind: &Kind, steps: usize) -> Result<f64> {
        match *kind {
            Kind::Decode { sequences, depth } => self.decode(sequences, depth, steps).await,
            Kind::Prompt { tokens } => self.prompt(tokens).await,
        }
    }

    async fn decode(&mut self, sequences: usize, depth: usize, steps: usize) -> Result<f64> {
        let ids = self.take(sequences);
        let lanes = apportion(sequences, &vec![1.0; self.lanes.min(sequences)]);
        let start = Instant::now();
        for step in 0..steps {
            for lane in &lanes {
                self.make_room(lanes.len() + self.ahead).await?;
                let admission =
                    |at| Admission { sequence: ids[at], cached: depth as u32, ..Admission::default() };
                let admit = if step == 0 { lane.clone().map(admission).collect() } else { Vec::new() };
                let work = lane.clone().map(|at| self.decode_work(ids[at], at, depth, (step, steps)));
                let work = work.collect();
                self.send(admit, work)?;
            }
        }
        self.settle().await?;
        let seconds = start.elapsed().as_secs_f64();
        self.release = ids;
        Ok(seconds)
    }

    /// Of the sequence at place `at`: its row of one of so many steps.
    fn decode_work(
        &self,
        sequence: SequenceId,
        at: usize,
        depth: usize,
        (step, steps): (usize, usize),
    ) -> SequenceWork {
        let full = (depth + steps).div_ceil(BLOCK_TOKENS);
        let gone = gone(depth, self.spec);
        let blocks = |count: usize| match step {
            0 => (at * count..(at + 1) * count).map(|id| BlockId(id as u32)).collect(),
            _ => Vec::new(),
        };
        SequenceWork {
            sequence,
            position: (depth + step) as u32,
            tokens: vec![self.token(at * steps + step)],
            ahead: step > 0,
            blocks: blocks(full),
            window_blocks: blocks(full - gone),
            window_gone: gone as u32,
            sample: true,
            ..SequenceWork::default()
        }
    }

    async fn prompt(&mut self, tokens: usize) -> Result<f64> {
        let ids = self.take(1);
        let blocks: Vec<_> = (0..tokens.div_ceil(BLOCK_TOKENS)).map(|id| BlockId(id as u32)).collect();
        let start = Instant::now();
        for from in (0..tokens).step_by(STEP_ROWS) {
            let end = tokens.min(from + STEP_ROWS);
            let new = || if from == 0 { blocks.clone() } else { Vec::new() };
            let work = SequenceWork {
                sequence: ids[0],
                position: from as u32,
                tokens: (from..end).map(|at| self.token(at)).collect(),
                blocks: new(),
                window_blocks: new(),
                sample: end == tokens,
                ..SequenceWork::default()
            };
            let admission = Admission { sequence: ids[0], ..Admission::default() };
            self.make_room(1 + self.ahead).await?;
            self.send(if from == 0 { vec![admission] } else { Vec::new() }, vec![work])?;
        }
        self.settle().await?;
        let seconds = start.elapsed().as_secs_f64();
        self.release = ids;
        Ok(seconds)
    }

    fn take(&mut self, count: usize) -> Vec<SequenceId> {
        let first = self.sequence;
        self.sequence += count as u64;
        (first..self.sequence).map(SequenceId).collect()
    }

    /// Tokens all over the vocabulary.
    fn token(&self, at: usize) -> TokenId {
        (at * 7919 % self.spec.vocab) as TokenId
    }

    fn send(&mut self, admit: Vec<Admission>, work: Vec<SequenceWork>) -> Result<()> {
        self.step.0 += 1;
        let release = std::mem::take(&mut self.release);
        self.group.send(&StepPlan { epoch: self.epoch, step: self.step, release, admit, work })?;
        self.in_flight += 1;
        Ok(())
    }

    async fn outcome(&mut self) -> Result<()> {
        self.group.outcome().await?;
        self.in_flight -= 1;
        Ok(())
    }

    /// Waits until one step more makes at most so many.
    async fn make_room(&mut self, in_flight_max: usize) -> Result<()> {
        while self.in_flight >= in_flight_max {
            self.outcome().await?;
        }
        Ok(())
    }

    async fn settle(&mut self) -> Result<()> {
        while self.in_flight > 0 {
            self.outcome().await?;
        }
        Ok(())
    }
}
