//! The model on a machine: weights, the one forward, backends that compute, collectives that sum.
//! Knows no tokio, no tonic, no HTTP and no clock that decides anything.

pub mod backend;
pub mod batch;
pub mod collective;
pub mod cuda;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod model;
pub mod sample;
pub mod weights;
