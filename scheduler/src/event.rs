//! What the world tells the scheduler and what the scheduler asks of the world. One event in, then
//! every action out.

use flotilla_shared::step::Logprobs;
use flotilla_shared::{Epoch, KvBlocks, Sampling, SequenceId, StepId, StepOutcome, StepPlan, TokenId};
use std::time::Duration;

/// A request to continue one prompt. A client's `n` choices are `n` requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Unique over the life of the scheduler; given by the caller. Only a duplicate of a sequence that
    /// has not ended yet is noticed.
    pub sequence: SequenceId,
    pub prompt: Vec<TokenId>,
    pub sampling: Sampling,
    /// Tokens to generate at most; with 0 the request is taken in and ends at once.
    pub tokens_max: usize,
    /// Generation ends with the first of these; it is reported and counted.
    pub stop_tokens: Vec<TokenId>,
    /// Each token of it is sampled under a mask, which the caller makes of the tokens before: no step
    /// samples for it before [`Event::Masked`] says that the next mask is there. The first one is there from
    /// the start.
    pub guided: bool,
    /// On whose account: clients that wait share the group evenly.
    pub client: ClientId,
    /// Lower goes first.
    pub priority: i32,
    /// The time since the scheduler's start at which it ends, done or not.
    pub deadline: Option<Duration>,
    /// Prompts that begin alike share what was computed of them within one salt only.
    pub salt: u64,
}

/// Who pays for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A group is ready to step, with nothing in its cache. Sequences in flight start over from their
    /// tokens. Epochs rise: one that does not is refused and logged.
    GroupFormed {
        epoch: Epoch,
        kv_blocks: KvBlocks,
        /// Into which the model is cut, one behind the other: 1 at least. So many steps run at once.
        stages: usize,
    },
    /// The group is gone; its steps in flight will not come back.
    GroupLost {
        epoch: Epoch,
    },
    Arrived(Request),
    /// The client left, or wants no more. Of a sequence that has ended it says nothing new.
    Cancelled(SequenceId),
    /// The mask of this sequence's next token is there: see [`Request::guided`].
    Masked(SequenceId),
    /// From now on this sequence alone is taken in from the line, and nobody else, until it ends or the next such
    /// event; with nobody, or one that has ended, all are again. What runs goes on, unless it has to make way.
    OnTrial(Option<Trial>),
    /// Time has passed: a deadline may have come. See [`crate::Scheduler::wakes_at`].
    Tick,
    /// The oldest step in flight is done. Of any other step it is stale, and ignored.
    Stepped(StepOutcome),
}

/// Who alone is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    pub sequence: SequenceId,
    /// Whatever runs makes way for it: once nothing is in flight it goes back to the line, with its tokens.
    pub alone: bool,
}

/// What must now be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Run this step and answer with [`Event::Stepped`] (or [`Event::GroupLost`]).
    Step(StepPlan),
    /// One more token of a sequence.
    Emit {
        sequence: SequenceId,
        token: TokenId,
        logprobs: Option<Logprobs>,
        /// As in [`Usage`]: who stops reading early does not hear the last word.
        cached_tokens: usize,
    },
    /// The last word on a sequence.
    Finish { sequence: SequenceId, reason: FinishReason, usage: Usage },
    /// The only word on a sequence that was never taken in.
    Reject { sequence: SequenceId, reason: Rejection },
    /// This group cannot be served: end its epoch and form another. The scheduler has forgotten it, as
    /// after [`Event::GroupLost`], which need not follow. Says nothing of a later epoch.
    Abandon { epoch: Epoch, fault: GroupFault },
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was sampled.
    StopToken(TokenId),
    /// `tokens_max`, the end of the context, or as many tokens as the group's whole cache can hold.
    Length,
    Cancelled,
    /// [`Request::deadline`] has come.
    Deadline,
}

/// Why a request was not taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    EmptyPrompt,
    /// The prompt leaves no room for one token, in the context or in the whole cache of the group.
    PromptTooLong {
        tokens: usize,
        tokens_max: usize,
    },
    /// The waiting queue is full, or this client's share of it is.
    QueueFull {
        waiting_max: usize,
    },
    DuplicateSequence,
}

/// What a group did that ended the trust in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupFault {
    #[error("the group formed with no kv blocks\nhint: its devices have no memory left after the weights")]
    NoBlocks,
    #[error("step {step} answered with {found} sampled tokens, but {expected} were asked for")]
    SampledCount { step: StepId, expected: usize, found: usize },
    #[error("step {step} sampled for sequence {found} where sequence {expected} was to come")]
    SampledSequence { step: StepId, expected: SequenceId, found: SequenceId },
}

/// What a finished sequence took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    /// Every token that was emitted, a stop token too.
    pub completion_tokens: usize,
    /// Prompt tokens that were found in the prefix cache.
    pub cached_tokens: usize,
    /// From its arrival to its first seat in a group, or to its end if it never had one.
    pub queued: Duration,
}
