//! The words of Flotilla, spoken by every crate: ids, units, the model's spec and tensors, the plan
//! that cuts it, the step that runs it, and sampling. Plain data and pure functions: no clock, no
//! network, no files, no threads.
#![forbid(unsafe_code)]

pub mod activations;
pub mod group;
pub mod held;
pub mod ids;
pub mod inventory;
pub mod links;
pub mod plan;
pub mod sampling;
pub mod spec;
pub mod step;
pub mod tensor;
pub mod units;

pub use group::{
    Assignment, ByPlace, HOLDERS_MAX, Holder, KvBlocks, Loading, Place, WeightOrigin, WeightsId,
};
pub use held::Held;
pub use ids::{BlockId, Epoch, Rank, SequenceId, StepId, TokenId};
pub use inventory::{BackendKind, Inventory, KvDtype};
pub use links::{LinkChoice, LinkKind, LinkRate, LinkTest, Links, Reach, WireFormat};
pub use plan::{Demand, Plan, PlanError, RankShare, Stage};
pub use sampling::Sampling;
pub use spec::{LayerKind, ModelSpec, SpecError};
pub use step::{StepOutcome, StepPlan};
pub use tensor::{Dtype, TensorInfo, TensorSlice};
