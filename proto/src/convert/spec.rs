//! The shape of the model.

use super::{WireError, narrow, need, wrong};
use crate::wire;
use flotilla_shared::spec::Rope;
use flotilla_shared::{LayerKind, ModelSpec};

impl From<&ModelSpec> for wire::ModelSpec {
    fn from(spec: &ModelSpec) -> Self {
        let rope = &spec.rope;
        wire::ModelSpec {
            hidden: spec.hidden as u64,
            intermediate: spec.intermediate as u64,
            layers: spec.layers.iter().map(|kind| u8::from(*kind == LayerKind::Window)).collect(),
            q_heads: spec.q_heads as u64,
            kv_heads: spec.kv_heads as u64,
            head_dim: spec.head_dim as u64,
            experts: spec.experts as u64,
            experts_per_token: spec.experts_per_token as u64,
            vocab: spec.vocab as u64,
            window: spec.window as u64,
            context_max: spec.context_max as u64,
            norm_eps: spec.norm_eps,
            swiglu_limit: spec.swiglu_limit,
            rope: Some(wire::Rope {
                theta: rope.theta,
                factor: rope.factor,
                beta_fast: rope.beta_fast,
                beta_slow: rope.beta_slow,
                original_context: rope.original_context,
                truncate: rope.truncate,
            }),
        }
    }
}

impl TryFrom<wire::ModelSpec> for ModelSpec {
    type Error = WireError;

    fn try_from(spec: wire::ModelSpec) -> Result<Self, WireError> {
        let rope = need(spec.rope, "ModelSpec.rope")?;
        let layers = spec.layers.iter().map(|kind| match kind {
            0 => Ok(LayerKind::Full),
            1 => Ok(LayerKind::Window),
            other => Err(wrong("ModelSpec.layers", format!("has a layer of kind {other}, expected 0 or 1"))),
        });
        let spec = ModelSpec {
            hidden: narrow(spec.hidden, "ModelSpec.hidden")?,
            intermediate: narrow(spec.intermediate, "ModelSpec.intermediate")?,
            layers: layers.collect::<Result<_, _>>()?,
            q_heads: narrow(spec.q_heads, "ModelSpec.q_heads")?,
            kv_heads: narrow(spec.kv_heads, "ModelSpec.kv_heads")?,
            head_dim: narrow(spec.head_dim, "ModelSpec.head_dim")?,
            experts: narrow(spec.experts, "ModelSpec.experts")?,
            experts_per_token: narrow(spec.experts_per_token, "ModelSpec.experts_per_token")?,
            vocab: narrow(spec.vocab, "ModelSpec.vocab")?,
            window: narrow(spec.window, "ModelSpec.window")?,
            context_max: narrow(spec.context_max, "ModelSpec.context_max")?,
            norm_eps: spec.norm_eps,
            swiglu_limit: spec.swiglu_limit,
            rope: Rope {
                theta: rope.theta,
                factor: rope.factor,
                beta_fast: rope.beta_fast,
                beta_slow: rope.beta_slow,
                original_context: rope.original_context,
                truncate: rope.truncate,
            },
        };
        spec.check().map_err(|error| wrong("Assignment.spec", error.to_string()))?;
        Ok(spec)
    }
}
