//! The emulated card itself: that it computes what a card computes, and that it notices what a card would not
//! forgive. Everything goes through cudarc, as in production.

mod support;

mod collectives;
mod graphs;
mod matrices;
mod memory;
mod policy;
mod threads;
mod values;
mod warpgroups;
