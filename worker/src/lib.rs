//! A worker: dials the coordinator, hands in its inventory, receives its part of the plan and its
//! slices, and then executes steps. The shell is async; one OS thread owns the engine.
#![forbid(unsafe_code)]

mod cache;
pub mod device;
mod engine_thread;
mod error;
pub mod executor;
mod handing;
mod link;
mod load;
mod measuring;
mod member;
mod memory;
mod obtain;
mod patchwork;
mod recut;
mod session;
mod settings;
mod standing;
mod stock;
mod tls;

pub use cache::CacheSettings;
pub use device::{CardUse, Device};
pub use error::WorkerError;
pub use executor::{Executor, StepError};
pub use link::check;
pub use memory::memory_available;
pub use session::run;
pub use settings::Settings;
pub use standing::{Standing, StandingCell};
