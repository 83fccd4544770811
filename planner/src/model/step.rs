//! A step over all stages: one after the other for what is in it, all at once for steps that follow each other.

use super::stage::StageTime;
use serde::Serialize;

/// Seconds of a step of one micro-batch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepTime {
    pub stages: Vec<StageTime>,
    /// x from each stage to the next.
    pub hand_overs_s: Vec<f64>,
    /// The sampled tokens from the last stage to the first.
    pub return_s: f64,
}

impl StepTime {
    /// From the first stage's start to when the next step of the same rows can start.
    pub fn round_s(&self) -> f64 {
        let stages: f64 = self.stages.iter().map(StageTime::total_s).sum();
        stages + self.hand_overs_s.iter().sum::<f64>() + self.return_s
    }

    /// The slowest stage, or way between two: nothing follows faster.
    pub fn slowest_s(&self) -> f64 {
        let stages = self.stages.iter().map(StageTime::total_s);
        stages.chain(self.hand_overs_s.iter().copied()).fold(0.0, f64::max)
    }

    /// Until each of `micro_batches`, which follow each other, has made one step.
    pub fn period_s(&self, micro_batches: usize) -> f64 {
        (micro_batches as f64 * self.slowest_s()).max(self.round_s())
    }
}
