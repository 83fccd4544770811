//! The search for a plan: against brute force, and what holds of whatever it finds.

mod brute;
mod fleets;
mod grid;
mod properties;
