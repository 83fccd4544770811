//! Which plan is the fastest: a cost model of a step, and a search over the ways to cut a model. Facts and a goal in,
//! a plan and its predicted times out; no clock, no files, no threads.
//!
//! `model/` says what a step of a plan takes; `search/` finds the plan that takes least. Sizes are divided in
//! `shared/src/plan/` alone: here it is only decided by how many.
//!
//! Letters: T rows of a step, R ranks of a stage, H hidden, D head_dim, E experts, K experts per token, V vocabulary.
#![forbid(unsafe_code)]

mod capacity;
pub mod choice;
pub mod collective;
pub mod fleet;
pub mod goal;
pub mod link;
pub mod model;
mod search;
pub mod ways;

pub use capacity::kv_tokens_max;
pub use choice::{Choice, Kind, LeftOut, Lost, Part, Reason, RunnerUp, parts};
pub use collective::{Collective, SumWay, collectives};
pub use fleet::{Costs, Fleet, KindCosts, Rate, Rates};
pub use goal::{Aim, Goal};
pub use link::Link;
pub use model::{Decode, Prediction, StageTime, StepTime, Work, predict_decode, predict_step};
pub use search::choose;
pub use ways::{Way, Ways};
