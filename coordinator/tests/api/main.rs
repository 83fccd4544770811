//! The API over real HTTP on the loopback, before a driver and a scheduler that are real as well. Only
//! the workers are not: see [`parrot`]. Nothing here measures time; whatever waits, waits at most
//! [`server::PATIENCE`].

mod chat;
mod clients;
mod completions;
mod groups;
mod logprobs;
mod parameters;
mod parrot;
mod refusals;
mod server;
mod stops;
