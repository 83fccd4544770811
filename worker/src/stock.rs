//! The weights that a worker keeps from group to group, on its device. A part that is the same again is taken as it
//! is; of another part comes what is here already, and only the rest is fetched.

use flotilla_engine::backend::cpu::{CpuBackend, CpuWeights};
use flotilla_engine::backend::cuda::{CudaBackend, CudaWeights};
use flotilla_engine::weights::{Kept, RankWeights, Several, WeightSink};
use flotilla_shared::{Assignment, Held, TensorSlice};
use std::sync::Arc;

/// Weights, and whose share they are.
pub struct Stock {
    pub held: Held,
    pub on: OnDevice,
}

/// Where and how they lie.
pub enum OnDevice {
    /// Whole, in the checkpoint's order.
    Loaded(Arc<RankWeights>),
    /// As products read them.
    Cpu(Arc<CpuWeights>),
    /// Whole, or what a load that was broken off has left of them.
    Card(Box<CudaWeights>),
    /// What a load that was broken off has left, in the host's memory.
    Pieces(Several),
}

/// A backend that ends and leaves its weights behind.
pub trait Leaves {
    /// Nothing, if the device failed.
    fn leave(self) -> Option<OnDevice>;
}

impl Leaves for CpuBackend {
    fn leave(self) -> Option<OnDevice> {
        Some(OnDevice::Cpu(self.into_weights()))
    }
}

impl Leaves for CudaBackend {
    fn leave(self) -> Option<OnDevice> {
        self.into_weights().map(|weights| OnDevice::Card(Box::new(weights)))
    }
}

/// Weights that others could read, and cannot any more.
///
/// # Panics
/// If they are on the shelf still.
pub fn alone<W>(weights: Arc<W>) -> W {
    Arc::into_inner(weights).expect("they are off the shelf, and nobody else holds them")
}

impl Stock {
    /// What an assignment left.
    pub fn of(assignment: &Assignment, on: OnDevice) -> Stock {
        let Assignment { weights_id, plan, rank, .. } = assignment;
        Stock { held: Held::of(*weights_id, plan, *rank), on }
    }

    /// Whether they are of the model that is assigned.
    pub fn is_of(&self, assignment: &Assignment) -> bool {
        self.held.weights == assignment.weights_id
    }

    /// Whether they are all that is assigned, and nothing else.
    pub fn is_all_of(&self, assignment: &Assignment) -> bool {
        let slices = || assignment.plan.slices(&assignment.spec, assignment.rank);
        self.is_of(assignment) && self.on.whole().is_some_and(|own| own == slices())
    }
}

impl OnDevice {
    /// The slices of one load that came to its end.
    fn whole(&self) -> Option<&[TensorSlice]> {
        match self {
            OnDevice::Loaded(weights) => {
                (weights.tensors().count() == weights.slices().len()).then(|| weights.slices())
            }
            OnDevice::Cpu(weights) => Some(weights.slices()),
            OnDevice::Card(weights) => weights.is_whole().then(|| weights.slices()),
            OnDevice::Pieces(_) => None,
        }
    }

    /// For weights in the host's memory, which can be read back while others are taken. They must be off the shelf.
    pub fn into_kept(self) -> Option<Box<dyn Kept>> {
        match self {
            OnDevice::Loaded(weights) => Some(Box::new(alone(weights))),
            OnDevice::Cpu(weights) => Some(Box::new(alone(weights))),
            OnDevice::Pieces(pieces) => Some(Box::new(pieces)),
            OnDevice::Card(_) => None,
        }
    }

    /// For weights on a card. They must be off the shelf.
    pub fn into_card(self) -> Option<CudaWeights> {
        match self {
            OnDevice::Card(weights) => Some(*weights),
            OnDevice::Loaded(_) | OnDevice::Cpu(_) | OnDevice::Pieces(_) => None,
        }
    }
}
