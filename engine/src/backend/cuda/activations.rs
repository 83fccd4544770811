//! The memory that a step of a rank computes in, on its card: taken at start, for the most rows of a step.

use super::attention::Partials;
use super::experts::ExpertBuffers;
use super::kernels::{Kernels, Shapes};
use super::picks::Picks;
use super::route::Routes;
use crate::cuda::{Card, CudaError, DeviceSum};
use cudarc::driver::CudaSlice;
use flotilla_shared::ModelSpec;

/// What a step computes with, beside weights and cache. Letters as in [`crate::model`].
pub(super) struct Activations {
    /// Residual stream: f32 [T, H], whole.
    pub(super) x: CudaSlice<f32>,
    /// Partial sums: f32 [T, H].
    pub(super) y: DeviceSum,
    /// x normed: act [T, H]; after [`Norm::Final`] the logit rows only.
    pub(super) h: CudaSlice<u16>,
    /// x normed, for the router: f32 [T, H].
    pub(super) h32: CudaSlice<f32>,
    /// f32 [T, (nq + 2 nk)/R · D]
    pub(super) qkv: CudaSlice<f32>,
    /// act [T, nq/R · D]: q rotated, and what attention gives.
    pub(super) q: CudaSlice<u16>,
    pub(super) attended: CudaSlice<u16>,
    pub(super) partials: Option<Partials>,
    /// u16 [L of the stage, T, K]
    pub(super) chosen: CudaSlice<u16>,
    pub(super) routes: Routes,
    pub(super) experts: Option<ExpertBuffers>,
    /// f32 [logit rows, V/R]; of the last stage.
    pub(super) logits: CudaSlice<f32>,
    /// That there is room for: the same on every rank, with a vocabulary or without.
    pub(super) logit_rows: usize,
    pub(super) picks: Picks,
}

impl Activations {
    pub(super) fn new(
        card: &Card,
        spec: &ModelSpec,
        (layer_count, logit_width): (usize, usize),
        shapes: &Shapes,
        kernels: &Kernels,
        (t, logit_rows): (usize, usize),
    ) -> Result<Self, CudaError> {
        let hidden = spec.hidden;
        let (q_width, qkv_width) =
            shapes.attention.map_or((1, 1), |shape| (shape.q_width(), shape.qkv_width()));
        let partials = shapes.attention.zip(kernels.attention.as_ref());
        let partials = partials.map(|(shape, kernels)| Partials::new(card, shape, kernels.parts_max(t)));
        let experts = shapes.experts.as_ref().map(|shape| ExpertBuffers::new(card, shape, t));
        let y = DeviceSum { stream: card.stream().clone(), values: card.zeros(t * hidden)?, len: 0 };
        Ok(Activations {
            x: card.zeros(t * hidden)?,
            y,
            h: card.zeros(t * hidden)?,
            h32: card.zeros(t * hidden)?,
            qkv: card.zeros(t * qkv_width)?,
            q: card.zeros(t * q_width)?,
            attended: card.zeros(t * q_width)?,
            partials: partials.transpose()?,
            chosen: card.zeros(layer_count * t * spec.experts_per_token)?,
            routes: Routes::new(card, &shapes.route, t)?,
            experts: experts.transpose()?,
            logits: card.zeros(logit_rows * logit_width.max(1))?,
            logit_rows,
            picks: Picks::new(card)?,
        })
    }
}
