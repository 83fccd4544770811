//! The shell that faces clients and commands workers
#![forbid(unsafe_code)]

pub mod harmony;
pub mod tokenizer;
