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

/// Of two replicas together; a step is as long as the longer one's.
impl std::ops::Add for Stats {
    type Output = Stats;

    fn add(self, other: Stats) -> Stats {
        Stats {
            load: self.load + other.load,
            counters: self.counters + other.counters,
            step_compute_us: self.step_compute_us.max(other.step_compute_us),
            compute_us: self.compute_us + other.compute_us,
        }
    }
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
