//! The shell that faces clients and commands workers
#![forbid(unsafe_code)]

pub mod driver;
pub mod group;
pub mod harmony;
pub mod tokenizer;
