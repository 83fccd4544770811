//! The API over real HTTP on the loopback, before a driver and a scheduler that are real as well. Only
//! the workers are not: see [`parrot`]. Nothing here measures time; whatever waits, waits at most
//! [`server::PATIENCE`].

mod ahead;
mod chat;
mod clients;
mod cluster;
mod completions;
mod connections;
mod cors;
mod drain;
mod forms;
mod groups;
mod keys;
mod limits;
mod logprobs;
mod metrics;
mod onward;
mod parameters;
mod parrot;
mod probes;
mod refusals;
mod responses;
mod server;
mod spoken;
mod stops;
mod tls;
mod tokenize;
