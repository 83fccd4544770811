//! The shapes that are measured: those of the published models, or tiny ones that show no more than that
//! everything runs.

use flotilla_engine::backend::cuda::attention::AttentionShape;
use flotilla_engine::backend::cuda::experts::ExpertShape;
use flotilla_engine::backend::cuda::route::RouteShape;
use flotilla_shared::{ModelSpec, Plan, Rank, RankShare};

#[derive(Clone, Debug)]
pub struct Model {
    /// As tables have it.
    pub name: &'static str,
    pub spec: ModelSpec,
}

/// gpt-oss-20b and gpt-oss-120b.
pub fn models(quick: bool) -> Vec<Model> {
    let model = |(name, published): (&'static str, &str)| Model {
        name,
        spec: ModelSpec::published(published).expect("a published name"),
    };
    let models = [("20b", "gpt-oss-20b"), ("120b", "gpt-oss-120b")].map(model);
    if quick { models.map(tiny).to_vec() } else { models.to_vec() }
}

fn tiny(model: Model) -> Model {
    let experts = model.spec.experts / 8;
    let layers = model.spec.layers[..2].to_vec();
    let spec = ModelSpec {
        hidden: 64,
        intermediate: 128,
        layers,
        q_heads: 8,
        kv_heads: 4,
        head_dim: 16,
        experts,
        experts_per_token: 2,
        vocab: 300,
        window: 24,
        ..model.spec
    };
    Model { spec, ..model }
}

/// The first of so many equal ranks.
pub fn share(spec: &ModelSpec, ranks: usize) -> RankShare {
    Plan::with_shares(spec, &vec![1.0; ranks]).share(Rank(0)).1.clone()
}

pub fn attention(spec: &ModelSpec, share: &RankShare) -> AttentionShape {
    AttentionShape { head_dim: spec.head_dim, group: spec.group(), kv_heads: share.kv_heads.len() }
}

pub fn experts(spec: &ModelSpec, share: &RankShare) -> ExpertShape {
    let route = RouteShape {
        hidden: spec.hidden,
        experts: spec.experts,
        per_token: spec.experts_per_token,
        own: share.experts.experts.clone(),
    };
    ExpertShape { intermediate: share.experts.intermediate(), route }
}
