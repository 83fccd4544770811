//! Real clusters on loopback: servers, workers and clients as processes that come, talk, and die.

mod clients;
mod deadly;
mod drain;
mod growing;
mod handing;
mod links;
mod loss;
mod malformed;
mod memory;
mod origins;
mod planning;
mod refusals;
mod regroup;
mod replicas;
mod scheduling;
mod serving;
mod signals;
#[path = "../support/mod.rs"]
mod support;
mod tls;
mod weights;
