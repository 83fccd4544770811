//! The executor: obeys step plans, refuses what does not fit.

mod echo;
mod golden;
mod group;
mod guesses;
mod stages;
mod steps;
mod times;
mod waits;
