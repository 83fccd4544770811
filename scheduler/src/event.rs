//! What the world tells the scheduler and what the scheduler asks of the world. One event in, then
//! every action out.

use flotilla_shared::{Epoch, Sampling, SequenceId, StepOutcome, StepPlan, TokenId};

/// A request to continue one prompt. A client's `n` choices are `n` requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Unique over the life of the scheduler; given by the caller.
    pub sequence: SequenceId,
    pub prompt: Vec<TokenId>,
    pub sampling: Sampling,
    /// Tokens to generate at most.
    pub tokens_max: usize,
    /// Generation ends with the first of these; it is reported and counted.
    pub stop_tokens: Vec<TokenId>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A group is ready to step, with nothing in its cache. Sequences in flight start over from their
    /// tokens.
    GroupFormed {
        epoch: Epoch,
        kv_blocks: usize,
    },
    /// The group is gone; its step in flight will not come back.
    GroupLost {
        epoch: Epoch,
    },
    Arrived(Request),
    /// The client left, or wants no more.
    Cancelled(SequenceId),
    Stepped(StepOutcome),
}

/// What must now be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Run this step and answer with [`Event::Stepped`] (or [`Event::GroupLost`]).
    Step(StepPlan),
    /// One more token of a sequence.
    Emit { sequence: SequenceId, token: TokenId },
    /// The last word on a sequence.
    Finish {
        sequence: SequenceId,
        reason: FinishReason,
        usage: Usage,
    },
    /// The only word on a sequence that was never taken in.
    Reject { sequence: SequenceId, reason: Rejection },
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was sampled.
    StopToken(TokenId),
    /// `tokens_max`, or the end of the context.
    Length,
    Cancelled,
}

/// Why a request was not taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    EmptyPrompt,
    /// The prompt leaves no room for one token.
    PromptTooLong {
        tokens: usize,
        tokens_max: usize,
    },
    /// The waiting queue is full.
    QueueFull {
        waiting_max: usize,
    },
    DuplicateSequence,
}

/// Token counts of a finished sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    /// Prompt tokens that were found in the prefix cache.
    pub cached_tokens: usize,
}
