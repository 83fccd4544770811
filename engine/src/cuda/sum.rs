//! Activations of a card that are summed over ranks.

use cudarc::driver::{CudaSlice, CudaStream};
use std::sync::Arc;

/// y: f32 [T, H] in a card's memory, partial before a sum and whole after it.
#[derive(Debug)]
pub struct DeviceSum {
    /// Everything that reads or writes the values is ordered by it.
    pub stream: Arc<CudaStream>,
    /// Room for the most rows of a step; it never moves, so that a graph may keep its address.
    pub values: CudaSlice<f32>,
    /// T · H of this step.
    pub len: usize,
}
