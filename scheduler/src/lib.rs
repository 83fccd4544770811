//! Which rows run in the next step: a state machine without clock, network or threads.
//! `handle(now, event)` says what the world did, `poll()` until `None` what the caller must now do.
#![forbid(unsafe_code)]

pub mod event;

pub use event::{Action, Event, FinishReason, Rejection, Request, Usage};
