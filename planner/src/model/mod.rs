//! What a step of a plan takes: a roofline of each phase, sums over ranks, hand-over between stages, fixed costs.
//! Each phase of a layer waits for its slowest rank.

mod plan;
mod routing;
mod sizes;
mod spread;
mod stage;
mod step;
mod sums;
mod work;

pub use plan::{Decode, Prediction, Prefill, predict_decode, predict_prefill, predict_step};
pub use routing::{distinct_experts, slowest_whole_s};
pub(crate) use sizes::Sizes;
pub use spread::Spread;
pub(crate) use stage::{Layers, StageModel, Units};
pub use stage::{RankTime, StageTime};
pub use step::StepTime;
pub use sums::{all_reduce_s, hand_over_s, whole_values_max};
pub use work::Work;
