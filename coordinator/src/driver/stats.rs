//! What the driver tells of itself to metrics and pages: a copy, made after each thing that happened.

use flotilla_scheduler::{Counters, Load, Scheduler};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// As it is now.
    pub load: Load,
    /// Since the start.
    pub counters: Counters,
    /// Time of the last step in the engine of the slowest rank.
    pub step_compute_us: u64,
    /// Of all steps.
    pub compute_us: u64,
}

impl Stats {
    pub(super) fn computed(&mut self, compute_us: u64) {
        self.step_compute_us = compute_us;
        self.compute_us += compute_us;
    }

    pub(super) fn update(&mut self, scheduler: &Scheduler) {
        self.load = scheduler.load();
        self.counters = scheduler.counters();
    }
}
