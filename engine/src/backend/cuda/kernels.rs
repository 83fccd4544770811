//! The kernels of one rank's part: which it needs, and these compiled for its shapes.

use super::attention::{AttentionKernels, AttentionShape};
use super::cut::{self, CutKernels};
use super::dense::{self, DenseKernels};
use super::experts::{self, ExpertKernels, ExpertShape};
use super::norm::{self, NormKernels};
use super::route::{self, RouteKernels, RouteShape};
use super::sample::{self, SampleKernels};
use super::synthetic;
use crate::cuda::{Card, CudaError, Source};
use flotilla_shared::activations::LOGIT_ROWS;
use flotilla_shared::{ModelSpec, RankShare, TokenId};
use std::ops::Range;

/// The shapes of a rank's part, by family; `None` where it has no part.
#[derive(Clone, Debug)]
pub(super) struct Shapes {
    pub(super) attention: Option<AttentionShape>,
    pub(super) route: RouteShape,
    pub(super) experts: Option<ExpertShape>,
}

impl Shapes {
    pub(super) fn of(spec: &ModelSpec, share: &RankShare) -> Shapes {
        let kv_heads = share.kv_heads.len();
        let attention =
            (kv_heads > 0).then(|| AttentionShape { head_dim: spec.head_dim, group: spec.group(), kv_heads });
        // A rank without experts routes all the same, for whoever asks how rows were routed.
        let own = if share.experts.is_empty() { 0..spec.experts } else { share.experts.experts.clone() };
        let route =
            RouteShape { hidden: spec.hidden, experts: spec.experts, per_token: spec.experts_per_token, own };
        let intermediate = share.experts.intermediate();
        let experts = (!share.experts.is_empty()).then(|| ExpertShape { intermediate, route: route.clone() });
        Shapes { attention, route, experts }
    }
}

/// Every source that a rank compiles, for checks that need no card.
pub fn sources(spec: &ModelSpec, share: &RankShare) -> Vec<Source> {
    let shapes = Shapes::of(spec, share);
    let mut sources = vec![
        norm::source(spec.hidden),
        dense::source(),
        sample::source(),
        cut::source(),
        synthetic::source(),
    ];
    sources.push(route::source(&shapes.route));
    if let Some(shape) = shapes.attention {
        sources.extend([shape.source(), shape.tiles_source()]);
    }
    if let Some(shape) = &shapes.experts {
        sources.extend(experts::Way::ALL.map(|way| experts::source(shape, way)));
    }
    sources
}

/// Compiled for one rank's shapes.
pub(super) struct Kernels {
    pub(super) norm: NormKernels,
    pub(super) dense: DenseKernels,
    pub(super) attention: Option<AttentionKernels>,
    pub(super) route: RouteKernels,
    pub(super) experts: Option<ExpertKernels>,
    pub(super) sample: Option<SampleKernels>,
    pub(super) cut: Option<CutKernels>,
}

impl Kernels {
    pub(super) fn new(
        card: &Card,
        spec: &ModelSpec,
        shapes: &Shapes,
        vocab: Range<usize>,
        sampleable: &[Range<TokenId>],
        rows_max: usize,
    ) -> Result<Self, CudaError> {
        let limit = spec.swiglu_limit;
        let experts = shapes.experts.as_ref().map(|shape| ExpertKernels::new(card, shape, limit, rows_max));
        let cut = (!vocab.is_empty()).then(|| CutKernels::new(card, vocab.clone(), sampleable));
        let sample = (!vocab.is_empty()).then(|| SampleKernels::new(card, vocab, sampleable, LOGIT_ROWS));
        Ok(Kernels {
            norm: NormKernels::new(card, spec.hidden, spec.norm_eps as f32)?,
            dense: DenseKernels::new(card)?,
            attention: shapes.attention.map(|shape| AttentionKernels::new(card, shape)).transpose()?,
            route: RouteKernels::new(card, &shapes.route)?,
            experts: experts.transpose()?,
            sample: sample.transpose()?,
            cut: cut.transpose()?,
        })
    }
}
