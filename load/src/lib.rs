//! A load test of any server that speaks OpenAI's API: when requests are due (`schedule`), what they ask (`prompt`),
//! the client that times and checks each stream (`client`, `stream`), the run itself (`run`), and what came of it
//! (`record`, `stats`, `sweep`, `compare`, `chaos`, `report`).
//!
//! Latency counts from the moment at which a request was due, not from when it was sent: a client or a server that
//! stalls delays what follows, and that delay is measured, not left out.
//!
//! Only `client` and `run` know the network and the clock. This crate deliberately knows nothing of Flotilla.
#![forbid(unsafe_code)]

pub mod chance;
pub mod chaos;
pub mod client;
pub mod compare;
pub mod goal;
pub mod lengths;
pub mod prompt;
pub mod record;
pub mod report;
pub mod run;
pub mod schedule;
pub mod span;
pub mod stats;
pub mod stream;
pub mod sweep;
