//! One sequence: its tokens, and how many of them the workers hold. A prompt, a decode and a sequence
//! that starts over are the same thing, told apart only by the rows that they lack.

use crate::blocks::blocks_for;
use crate::event::{FinishReason, Request, Usage};
use flotilla_shared::step::{Admission, SequenceWork};
use flotilla_shared::{BlockId, Sampling, SequenceId, TokenId};
use std::time::Duration;

/// A place in the line: counts the requests that were taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival(pub u64);

pub struct Sequence {
    pub id: SequenceId,
    pub arrival: Arrival,
    pub arrived_at: Duration,
    /// Prompt, then what was generated: all that is needed to start over.
    pub tokens: Vec<TokenId>,
    prompt_count: usize,
    tokens_max: usize,
    stop_tokens: Vec<TokenId>,
    sampling: Sampling,
    /// Positions in the workers' cache once the step in flight is back.
    pub computed: usize,
    /// The table: block i holds positions 16·i to 16·i + 15.
    pub blocks: Vec<BlockId>,
}

impl Sequence {
    pub fn new(arrival: Arrival, arrived_at: Duration, request: Request) -> Sequence {
        let Request { sequence: id, prompt, sampling, tokens_max, stop_tokens, .. } = request;
        Sequence {
            id,
            arrival,
            arrived_at,
            prompt_count: prompt.len(),
            tokens: prompt,
            tokens_max,
            stop_tokens,
            sampling,
            computed: 0,
            blocks: Vec::new(),
        }
    }

    /// Rows to compute until the next token can be sampled: 1 is a decode, 0 is in flight.
    pub fn rows_lacking(&self) -> usize {
        self.tokens.len() - self.computed
    }

    pub fn lacks_blocks(&self) -> bool {
        self.blocks.len() < blocks_for(self.tokens.len())
    }

    /// The first `rows` of the rows that are lacking, which are computed from now on.
    pub fn next_work(&mut self, rows: usize) -> SequenceWork {
        let (start, end) = (self.computed, self.computed + rows);
        self.computed = end;
        SequenceWork {
            sequence: self.id,
            position: u32::try_from(start).expect("context_max keeps positions in 32 bits"),
            tokens: self.tokens[start..end].to_vec(),
            // The workers hold the blocks of every position before `start`.
            blocks: self.blocks[blocks_for(start)..blocks_for(end)].to_vec(),
            sample: end == self.tokens.len(),
            ..SequenceWork::default()
        }
    }

    pub fn admission(&self) -> Admission {
        Admission { sequence: self.id, sampling: self.sampling.clone(), ..Admission::default() }
    }

    /// Forgets what the workers hold of it. The tokens stay.
    pub fn start_over(&mut self) {
        self.computed = 0;
        self.blocks.clear();
    }

    /// The reason to end now, where a sequence may have `length_max` tokens.
    pub fn end(&self, length_max: usize) -> Option<FinishReason> {
        let generated = &self.tokens[self.prompt_count..];
        match generated.last() {
            Some(&last) if self.stop_tokens.contains(&last) => Some(FinishReason::StopToken(last)),
            _ if generated.len() >= self.tokens_max => Some(FinishReason::Length),
            _ if self.tokens.len() >= length_max => Some(FinishReason::Length),
            _ => None,
        }
    }

    pub fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_count,
            completion_tokens: self.tokens.len() - self.prompt_count,
            cached_tokens: 0,
        }
    }
}
