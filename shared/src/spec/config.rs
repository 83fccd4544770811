//! A published `config.json`, word by word.

use super::{LayerKind, ModelSpec, Rope, SIZE_MAX, SpecError, refuse};
use serde::Deserialize;

/// The file's own words; fields that do not change the arithmetic are left unread.
#[derive(Deserialize)]
struct Config {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    layer_types: Option<Vec<LayerKind>>,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    num_local_experts: usize,
    #[serde(alias = "experts_per_token")]
    num_experts_per_tok: Option<usize>,
    vocab_size: usize,
    sliding_window: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    #[serde(default = "default_swiglu_limit")]
    swiglu_limit: f32,
    rope_theta: Option<f64>,
    #[serde(alias = "rope_parameters")]
    rope_scaling: Option<RopeScaling>,
    hidden_act: Option<String>,
    #[serde(default = "yes")]
    attention_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    quantization_config: Option<Quantization>,
}

#[derive(Deserialize)]
struct RopeScaling {
    rope_type: String,
    #[serde(default = "one")]
    factor: f64,
    #[serde(default = "thirty_two")]
    beta_fast: f64,
    #[serde(default = "one")]
    beta_slow: f64,
    original_max_position_embeddings: Option<f64>,
    #[serde(default = "yes")]
    truncate: bool,
    rope_theta: Option<f64>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
}

#[derive(Deserialize)]
struct Quantization {
    quant_method: String,
}

fn yes() -> bool {
    true
}
fn one() -> f64 {
    1.0
}
fn thirty_two() -> f64 {
    32.0
}
fn default_swiglu_limit() -> f32 {
    7.0
}

/// As the file says it, not checked yet.
pub(super) fn read(text: &str) -> Result<ModelSpec, SpecError> {
    // The published files name the experts per token twice; take one that says something before serde sees a duplicate.
    let mut value: serde_json::Value = serde_json::from_str(text)?;
    if let Some(map) = value.as_object_mut() {
        drop_twin(map, "num_experts_per_tok", "experts_per_token");
        drop_twin(map, "rope_scaling", "rope_parameters");
    }
    let config: Config = serde_json::from_value(value)?;
    config.into_spec()
}

fn drop_twin(map: &mut serde_json::Map<String, serde_json::Value>, keep: &str, twin: &str) {
    if map.get(keep).is_some_and(|value| !value.is_null()) {
        map.remove(twin);
    } else if map.contains_key(twin) {
        map.remove(keep);
    }
}

impl Config {
    fn into_spec(self) -> Result<ModelSpec, SpecError> {
        if self.model_type != "gpt_oss" {
            return Err(refuse("model_type", self.model_type, "gpt_oss"));
        }
        if let Some(act) = self.hidden_act.filter(|act| act != "silu") {
            return Err(refuse("hidden_act", act, "silu"));
        }
        if !self.attention_bias {
            return Err(refuse("attention_bias", false, "true"));
        }
        if self.tie_word_embeddings {
            return Err(refuse("tie_word_embeddings", true, "false"));
        }
        match &self.quantization_config {
            Some(q) if q.quant_method == "mxfp4" => {}
            Some(q) => {
                return Err(refuse("quantization_config.quant_method", &q.quant_method, "mxfp4"));
            }
            None => {
                return Err(refuse("quantization_config", "absent", "mxfp4 experts, as published"));
            }
        }
        let layers = match self.layer_types {
            Some(kinds) if kinds.len() == self.num_hidden_layers => kinds,
            Some(kinds) => {
                let expected = format!("num_hidden_layers {}", self.num_hidden_layers);
                return Err(refuse("layer_types", format!("{} entries", kinds.len()), expected));
            }
            None => (0..self.num_hidden_layers.min(SIZE_MAX))
                .map(|layer| if layer % 2 == 0 { LayerKind::Window } else { LayerKind::Full })
                .collect(),
        };
        let rope = rope(self.rope_scaling, self.rope_theta, self.max_position_embeddings)?;
        let experts_per_token =
            self.num_experts_per_tok.ok_or_else(|| refuse("num_experts_per_tok", "absent", "a number"))?;
        Ok(ModelSpec {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers,
            q_heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            experts: self.num_local_experts,
            experts_per_token,
            vocab: self.vocab_size,
            window: self.sliding_window,
            context_max: self.max_position_embeddings,
            norm_eps: self.rms_norm_eps,
            swiglu_limit: self.swiglu_limit,
            rope,
        })
    }
}

fn rope(scaling: Option<RopeScaling>, theta: Option<f64>, context_max: usize) -> Result<Rope, SpecError> {
    let plain = |theta| Rope {
        theta,
        factor: 1.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_context: context_max as f64,
        truncate: false,
    };
    let missing = || refuse("rope_theta", "absent", "a number");
    let Some(scaling) = scaling else {
        return Ok(plain(theta.ok_or_else(missing)?));
    };
    let theta = theta.or(scaling.rope_theta).ok_or_else(missing)?;
    match scaling.rope_type.as_str() {
        "default" => Ok(plain(theta)),
        "yarn" => yarn(&scaling, theta, context_max),
        other => Err(refuse("rope_scaling.rope_type", other, "yarn or default")),
    }
}

fn yarn(scaling: &RopeScaling, theta: f64, context_max: usize) -> Result<Rope, SpecError> {
    let rope = Rope {
        theta,
        factor: scaling.factor,
        beta_fast: scaling.beta_fast,
        beta_slow: scaling.beta_slow,
        original_context: scaling.original_max_position_embeddings.unwrap_or(context_max as f64),
        truncate: scaling.truncate,
    };
    let computed = rope.concentration();
    match scaling.concentration() {
        // Files may have it rounded.
        Some((field, told)) if (told - computed).abs() > 1e-4 || told.is_nan() => {
            Err(refuse(field, told, format!("{computed}, which is 0.1 ln(factor) + 1")))
        }
        _ => Ok(rope),
    }
}

impl RopeScaling {
    /// What cos and sin are to be multiplied by, if it is told, and by which field; as transformers reads them
    /// (`_compute_yarn_parameters`).
    fn concentration(&self) -> Option<(&'static str, f64)> {
        let of = |mscale: f64| if self.factor <= 1.0 { 1.0 } else { 0.1 * mscale * self.factor.ln() + 1.0 };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(factor), ..) => Some(("rope_scaling.attention_factor", factor)),
            (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                Some(("rope_scaling.mscale / mscale_all_dim", of(mscale) / of(all)))
            }
            _ => None,
        }
    }
}
