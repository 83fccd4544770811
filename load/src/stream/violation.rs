//! What a server can do wrong in an answer that still can be read.

use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    pub kind: ViolationKind,
    /// What was seen, short.
    pub example: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ViolationKind {
    /// A line that is none of an event stream.
    NotAnEvent,
    NotJson,
    /// JSON, without what every chunk or event has.
    NotAChunk,
    /// `id` or `model` is not what the first chunk had.
    IdentityChanged,
    /// A choice that was not asked for, or that was there before.
    UnknownIndex,
    PieceAfterFinish,
    FinishedTwice,
    NeverFinished,
    UsageMissing,
    UsageTwice,
    /// Its total is not the sum of its parts, or it counts less than before.
    UsageDoesNotAddUp,
    /// Fewer tokens than pieces were seen, or more than were asked for.
    UsageIsNotWhatCame,
    /// The response at the end of a stream has another text than its pieces had.
    TextIsNotWhatCame,
    /// An event's number is not the next one.
    SequenceBroken,
    DoneMissing,
    SomethingAfterDone,
}
