//! The forward of gpt-oss, the only one: generic over the backend that computes and the collective that
//! sums. Formulas: the gpt-oss model card and the published `gpt_oss/torch/model.py`.
//!
//! Letters used in this crate: T rows of the step, R ranks, L layers, H hidden, D head_dim, nq and nk
//! query and kv heads, E experts, K experts per token, I intermediate, V vocabulary.
//! `/R` marks a rank's own part.

use crate::backend::{Backend, Norm};
use crate::batch::Batch;
use crate::collective::{AllReduce, CollectiveError};
use flotilla_shared::ModelSpec;

/// Runs every layer over the batch and leaves the logits of its logit rows in the backend.
///
/// Two sums over ranks a layer, and one for the embedding. Router and norms see whole sums only, so
/// that every rank routes alike.
pub fn forward<B, C>(
    spec: &ModelSpec,
    backend: &mut B,
    collective: &mut C,
    batch: &Batch,
) -> Result<(), CollectiveError>
where
    B: Backend,
    C: AllReduce<B::Activations> + ?Sized,
{
    // x = E[token]
    collective.all_reduce(backend.embed(batch))?;
    for layer in 0..spec.layer_count() {
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
    // logits = W n(x)
    backend.add_norm(Norm::Final, batch);
    backend.unembed(batch);
    Ok(())
}
