//! The shell that faces clients and commands workers
#![forbid(unsafe_code)]

pub mod api;
pub mod board;
pub mod driver;
pub mod fleet;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod group;
pub mod guide;
pub mod harmony;
pub mod keys;
pub mod mirror;
pub mod pace;
pub mod router;
pub mod service;
pub mod tokenizer;
pub mod traces;
