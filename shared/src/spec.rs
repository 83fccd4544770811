//! The shape of a gpt-oss model, read from its published `config.json`. Nothing is hard-coded to one
//! size; what the engine cannot compute is refused here, by the name of the field.

use serde::{Deserialize, Serialize};
use std::ops::Range;
use thiserror::Error;

/// Elements that share one MXFP4 scale, along the input dimension.
pub const MXFP4_BLOCK: usize = 32;

/// The published config.json of gpt-oss-120b and gpt-oss-20b.
pub const PUBLISHED: [(&str, &str); 2] = [
    ("gpt-oss-120b", include_str!("../published/gpt-oss-120b.config.json")),
    ("gpt-oss-20b", include_str!("../published/gpt-oss-20b.config.json")),
];

/// Which keys a layer's attention sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerKind {
    /// The last `window` keys, self included.
    #[serde(rename = "sliding_attention")]
    Window,
    /// Every key before and self.
    #[serde(rename = "full_attention")]
    Full,
}

/// Rotary embedding with YaRN; a factor of 1 is plain rotary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    pub theta: f64,
    pub factor: f64,
    pub beta_fast: f64,
    pub beta_slow: f64,
    /// Context length before extension, L0.
    pub original_context: f64,
    /// Round the ends of the ramp to whole dimensions; gpt-oss does not.
    pub truncate: bool,
}

/// Everything about the architecture that sizes or formulas depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// H
    pub hidden: usize,
    /// I, of each expert
    pub intermediate: usize,
    /// One entry a layer, in order.
    pub layers: Vec<LayerKind>,
    /// nq
    pub q_heads: usize,
    /// nk
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// E
    pub experts: usize,
    /// Experts chosen per token.
    pub experts_per_token: usize,
    /// V
    pub vocab: usize,
    /// Keys that a window layer sees, self included.
    pub window: usize,
    pub context_max: usize,
    pub norm_eps: f64,
    pub swiglu_limit: f32,
    pub rope: Rope,
}

/// Why a config.json is refused.
#[derive(Debug, Error)]
pub enum SpecError {
    #[error(
        "config.json is not readable as a gpt-oss config: {0}\nhint: it must be the config.json of a Hugging Face gpt-oss folder"
    )]
    Json(#[from] serde_json::Error),
    #[error(
        "config.json: {field} is {found}, expected {expected}\nhint: only gpt-oss models as published can be served"
    )]
    Field { field: &'static str, found: String, expected: String },
}

fn refuse(field: &'static str, found: impl ToString, expected: impl ToString) -> SpecError {
    SpecError::Field { field, found: found.to_string(), expected: expected.to_string() }
}

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

/// Sizes past these are a mistake or an attack, not a model.
const SIZE_MAX: usize = 1 << 24;
/// The widest head that kernels have room for.
pub const HEAD_DIM_MAX: usize = 256;

/// Elements of one tensor at most, which keeps every product of sizes in `usize`. The published
/// gpt-oss-120b has 2^31 in its largest.
const TENSOR_ELEMENTS_MAX: u64 = 1 << 40;

impl ModelSpec {
    /// Reads a published `config.json`.
    pub fn from_config_json(text: &str) -> Result<Self, SpecError> {
        // The published files name the experts per token twice; take one before serde sees a duplicate.
        let mut value: serde_json::Value = serde_json::from_str(text)?;
        if let Some(map) = value.as_object_mut() {
            drop_twin(map, "num_experts_per_tok", "experts_per_token");
            drop_twin(map, "rope_scaling", "rope_parameters");
        }
        let config: Config = serde_json::from_value(value)?;
        let spec = config.into_spec()?;
        spec.check()?;
        Ok(spec)
    }

    /// The published shape of that name: `gpt-oss-120b` or `gpt-oss-20b`.
    pub fn published(name: &str) -> Option<Self> {
        let (_, text) = PUBLISHED.iter().find(|(known, _)| *known == name)?;
        Some(Self::from_config_json(text).expect("the published configs are valid"))
    }

    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Query heads that share one kv head.
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// MXFP4 blocks along the intermediate dimension: the unit in which experts are cut.
    pub fn intermediate_blocks(&self) -> usize {
        self.intermediate / MXFP4_BLOCK
    }

    /// Query heads that belong to a range of kv heads.
    pub fn q_heads_of(&self, kv_heads: &Range<usize>) -> Range<usize> {
        kv_heads.start * self.group()..kv_heads.end * self.group()
    }

    /// Refuses sizes that no engine can compute; every spec that comes from outside passes here.
    pub fn check(&self) -> Result<(), SpecError> {
        let sizes = [
            ("hidden_size", self.hidden),
            ("intermediate_size", self.intermediate),
            ("num_hidden_layers", self.layer_count()),
            ("num_attention_heads", self.q_heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("num_local_experts", self.experts),
            ("num_experts_per_tok", self.experts_per_token),
            ("vocab_size", self.vocab),
            ("sliding_window", self.window),
            ("max_position_embeddings", self.context_max),
        ];
        for (field, size) in sizes {
            if size == 0 || size > SIZE_MAX {
                return Err(refuse(field, size, format!("1 to {SIZE_MAX}")));
            }
        }
        for (field, size) in [("hidden_size", self.hidden), ("intermediate_size", self.intermediate)] {
            if !size.is_multiple_of(MXFP4_BLOCK) {
                return Err(refuse(field, size, "a multiple of 32, the MXFP4 block"));
            }
        }
        if !self.q_heads.is_multiple_of(self.kv_heads) {
            let multiple = format!("a multiple of num_key_value_heads {}", self.kv_heads);
            return Err(refuse("num_attention_heads", self.q_heads, multiple));
        }
        if self.head_dim > HEAD_DIM_MAX {
            let most = format!("at most {HEAD_DIM_MAX}, what attention has room for");
            return Err(refuse("head_dim", self.head_dim, most));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(refuse("head_dim", self.head_dim, "an even number, for rotary halves"));
        }
        if self.experts_per_token > self.experts {
            let most = format!("at most num_local_experts {}", self.experts);
            return Err(refuse("num_experts_per_tok", self.experts_per_token, most));
        }
        for (field, size) in [("num_local_experts", self.experts), ("num_hidden_layers", self.layer_count())]
        {
            if size > u16::MAX as usize {
                return Err(refuse(field, size, "at most 65535"));
            }
        }
        let largest = [
            ("num_local_experts", self.experts, 2 * self.intermediate, self.hidden),
            ("num_attention_heads", self.q_heads, self.head_dim, self.hidden),
            ("vocab_size", self.vocab, self.hidden, 1),
        ];
        for (field, a, b, c) in largest {
            let elements = (a as u64).checked_mul(b as u64).and_then(|ab| ab.checked_mul(c as u64));
            if elements.is_none_or(|elements| elements > TENSOR_ELEMENTS_MAX) {
                return Err(refuse(field, a, "sizes whose tensors have at most 2^40 elements"));
            }
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return Err(refuse("rms_norm_eps", self.norm_eps, "a positive number"));
        }
        if !(self.rope.theta > 1.0 && self.rope.factor >= 1.0 && self.rope.original_context > 0.0) {
            return Err(refuse(
                "rope_scaling",
                format!("{:?}", self.rope),
                "theta > 1, factor ≥ 1, length > 0",
            ));
        }
        Ok(())
    }
}

fn drop_twin(map: &mut serde_json::Map<String, serde_json::Value>, keep: &str, twin: &str) {
    if map.contains_key(keep) {
        map.remove(twin);
    }
}

impl Config {
    fn into_spec(self) -> Result<ModelSpec, SpecError> {
        if self.model_type != "gpt_oss" {
            return Err(refuse("model_type", self.model_type, "gpt_oss"));
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
        "yarn" => Ok(Rope {
            theta,
            factor: scaling.factor,
            beta_fast: scaling.beta_fast,
            beta_slow: scaling.beta_slow,
            original_context: scaling.original_max_position_embeddings.unwrap_or(context_max as f64),
            truncate: scaling.truncate,
        }),
        other => Err(refuse("rope_scaling.rope_type", other, "yarn or default")),
    }
}

impl Rope {
    /// Angle per position of each pair (j, j + D/2), [D/2]; model-card formula "YaRN", not rounded unless asked.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f64> {
        let half = head_dim / 2;
        let theta_j = |j: usize| self.theta.powf(-(j as f64) / half as f64);
        if self.factor <= 1.0 {
            return (0..half).map(theta_j).collect();
        }
        let (low, high) = self.ramp_range(head_dim);
        let ramp = |j: usize| ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
        (0..half).map(|j| theta_j(j) / self.factor * ramp(j) + theta_j(j) * (1.0 - ramp(j))).collect()
    }

    /// Factor on both cos and sin, at every length: 0.1 ln(factor) + 1.
    pub fn concentration(&self) -> f64 {
        if self.factor <= 1.0 { 1.0 } else { 0.1 * self.factor.ln() + 1.0 }
    }

    /// Dimensions between which extrapolation turns into interpolation.
    fn ramp_range(&self, head_dim: usize) -> (f64, f64) {
        let half = (head_dim / 2) as f64;
        let dim_of = |rotations: f64| {
            half * (self.original_context / (rotations * 2.0 * std::f64::consts::PI)).ln() / self.theta.ln()
        };
        let (mut low, mut high) = (dim_of(self.beta_fast), dim_of(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
        if low == high { (low, high + 0.001) } else { (low, high) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(
        edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
    ) -> Result<ModelSpec, SpecError> {
        let mut value: serde_json::Value = serde_json::from_str(PUBLISHED[1].1).unwrap();
        edit(value.as_object_mut().unwrap());
        ModelSpec::from_config_json(&value.to_string())
    }

    #[test]
    fn published_shapes() {
        let large = ModelSpec::published("gpt-oss-120b").unwrap();
        assert_eq!((large.hidden, large.layer_count(), large.experts), (2880, 36, 128));
        assert_eq!((large.q_heads, large.kv_heads, large.head_dim, large.group()), (64, 8, 64, 8));
        assert_eq!((large.intermediate_blocks(), large.vocab, large.window), (90, 201_088, 128));
        assert_eq!(large.layers[0], LayerKind::Window);
        let small = ModelSpec::published("gpt-oss-20b").unwrap();
        assert_eq!((small.layer_count(), small.experts), (24, 32));
        assert!(ModelSpec::published("gpt-5").is_none());
    }

    #[test]
    fn yarn_range_is_not_rounded() {
        let rope = ModelSpec::published("gpt-oss-120b").unwrap().rope;
        let (low, high) = rope.ramp_range(64);
        assert!((low - 8.0927791).abs() < 1e-6 && (high - 17.3980245).abs() < 1e-6, "{low} {high}");
        assert!((rope.concentration() - 1.3465735902799727).abs() < 1e-15);
    }

    #[test]
    fn what_cannot_be_computed_is_refused_by_name() {
        let cases: [(&str, serde_json::Value); 10] = [
            ("model_type", "llama".into()),
            ("hidden_size", 2881.into()),
            ("intermediate_size", 0.into()),
            ("num_attention_heads", 63.into()),
            ("head_dim", 258.into()),
            ("num_experts_per_tok", 33.into()),
            ("tie_word_embeddings", true.into()),
            ("attention_bias", false.into()),
            ("layer_types", vec!["full_attention"].into()),
            ("quantization_config", serde_json::json!({"quant_method": "awq"})),
        ];
        for (field, value) in cases {
            let error = edited(|map| drop(map.insert(field.into(), value))).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
        let error = edited(|map| {
            map.insert("intermediate_size".into(), (1 << 23).into());
            map.insert("hidden_size".into(), (1 << 23).into());
        });
        assert!(error.unwrap_err().to_string().contains("2^40 elements"));
        let error = edited(|map| drop(map.remove("head_dim"))).unwrap_err().to_string();
        assert!(error.contains("head_dim"), "{error}");
    }

    #[test]
    fn rope_parameters_of_newer_transformers_are_read_alike() {
        let moved = edited(|map| {
            let mut rope = map.remove("rope_scaling").unwrap();
            rope["rope_theta"] = map.remove("rope_theta").unwrap();
            map.insert("rope_parameters".into(), rope);
        });
        assert_eq!(moved.unwrap(), ModelSpec::published("gpt-oss-20b").unwrap());
    }
}
