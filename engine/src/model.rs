//! The forward of gpt-oss, the only one: generic over the backend that computes and the collective that
//! sums. Formulas: the gpt-oss model card and the published `gpt_oss/torch/model.py`.
//!
//! Letters used in this crate: T rows of the step, R ranks, L layers, H hidden, D head_dim, nq and nk
//! query and kv heads, E experts, K experts per token, I intermediate, V vocabulary.
//! `/R` marks a rank's own part.

use crate::backend::{Backend, Norm};
use crate::batch::Batch;
use crate::collective::{AllReduce, CollectiveError};
use flotilla_shared::{ModelSpec, Stage};
use std::ops::Range;

/// What a stage computes: some layers, and the ends of the model that lie at them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub layers: Range<usize>,
    /// Begins with the tokens; any other stage begins with what the one before hands on.
    pub is_first: bool,
    /// Ends with the logits; any other stage hands on what it has made.
    pub is_last: bool,
}

impl Part {
    /// All of it: of a plan with one stage.
    pub fn whole(spec: &ModelSpec) -> Part {
        Part { layers: 0..spec.layer_count(), is_first: true, is_last: true }
    }

    pub fn of(spec: &ModelSpec, stage: &Stage) -> Part {
        let layers = stage.layers.clone();
        Part { is_first: layers.start == 0, is_last: layers.end == spec.layer_count(), layers }
    }
}

/// Runs the layers of a stage over the batch. The last stage leaves the logits of the batch's logit rows in the
/// backend, any other hands x on. What passes between stages passes outside of what a backend may record.
pub fn forward<B, C>(
    part: &Part,
    backend: &mut B,
    collective: &mut C,
    batch: &Batch,
) -> Result<(), CollectiveError>
where
    B: Backend,
    C: AllReduce<B::Activations> + ?Sized,
{
    if !part.is_first {
        collective.take_over(backend.enter(batch))?;
    }
    backend.run(batch, |backend| layers(part, backend, collective, batch))?;
    if !part.is_last {
        collective.hand_on(backend.leave(batch))?;
    }
    Ok(())
}

/// Two sums over the stage's ranks a layer, and one for the embedding. Router and norms see whole sums only,
/// so that every rank routes alike.
fn layers<B, C>(
    part: &Part,
    backend: &mut B,
    collective: &mut C,
    batch: &Batch,
) -> Result<(), CollectiveError>
where
    B: Backend,
    C: AllReduce<B::Activations> + ?Sized,
{
    if part.is_first {
        // x = E[token]
        collective.all_reduce(backend.embed(batch))?;
    }
    for layer in part.layers.clone() {
        // x += Wₒ attention(n₁(x)) + bₒ
        backend.add_norm(Norm::Attention(layer), batch);
        backend.qkv(layer, batch);
        backend.attend(layer, batch);
        collective.all_reduce(backend.project(layer, batch))?;

        // x += Σ w expert(n₂(x)) over the chosen experts
        backend.add_norm(Norm::Mlp(layer), batch);
        backend.route(layer, batch);
        collective.all_reduce(backend.experts(layer, batch))?;
    }
    if part.is_last {
        // logits = W n(x)
        backend.add_norm(Norm::Final, batch);
        backend.unembed(batch);
    }
    Ok(())
}
