//! A worker: dials the coordinator, hands in its inventory, receives its part of the plan and its
//! slices, and then executes steps. The shell is async; one OS thread owns the engine.
#![forbid(unsafe_code)]

pub mod device;
mod engine_thread;
pub mod executor;
mod link;
mod load;

pub use device::{CardUse, Device};
pub use executor::{Executor, StepError};
pub use link::{Settings, WorkerError, run};
