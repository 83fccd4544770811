//! The executor: obeys step plans, refuses what does not fit.

mod echo;
mod golden;
mod guesses;
mod steps;
