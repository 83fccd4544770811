//! The model on a machine: weights, forward, backends, collectives

pub mod backend;
