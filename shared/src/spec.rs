//! The shape of a gpt-oss model, read from its published `config.json`. Nothing is hard-coded to one
//! size; what the engine cannot compute is refused here, by the name of the field.

mod config;
mod rope;

pub use rope::Rope;

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
        let spec = config::read(text)?;
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
        let positive = [
            ("rms_norm_eps", self.norm_eps),
            ("swiglu_limit", f64::from(self.swiglu_limit)),
            ("rope_scaling.beta_fast", self.rope.beta_fast),
            ("rope_scaling.beta_slow", self.rope.beta_slow),
        ];
        for (field, number) in positive {
            if !(number.is_finite() && number > 0.0) {
                return Err(refuse(field, number, "a positive number"));
            }
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
    fn what_would_change_the_arithmetic_is_refused_by_name() {
        let cases: [(&str, serde_json::Value); 5] = [
            ("hidden_act", "gelu".into()),
            ("swiglu_limit", (-1.0).into()),
            ("swiglu_limit", 0.into()),
            ("swiglu_limit", 1e300.into()),
            ("rms_norm_eps", 0.into()),
        ];
        for (field, value) in cases {
            let error = edited(|map| drop(map.insert(field.into(), value))).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
        let scaled = |fields: serde_json::Value| {
            edited(|map| {
                let scaling = map["rope_scaling"].as_object_mut().unwrap();
                scaling.extend(fields.as_object().unwrap().clone());
            })
        };
        for (fields, named) in [
            (serde_json::json!({"beta_fast": 0}), "rope_scaling.beta_fast"),
            (serde_json::json!({"beta_slow": -1.0}), "rope_scaling.beta_slow"),
            (
                serde_json::json!({"attention_factor": 1.0}),
                "rope_scaling.attention_factor is 1, expected 1.3465",
            ),
            (serde_json::json!({"mscale": 0.707, "mscale_all_dim": 0.707}), "rope_scaling.mscale"),
        ] {
            let error = scaled(fields).unwrap_err().to_string();
            assert!(error.contains(named), "{named}: {error}");
        }
        // What says the same in other words is what was published.
        for fields in [
            serde_json::json!({"attention_factor": 1.3465735902799727}),
            serde_json::json!({"attention_factor": 1.3466}),
            serde_json::json!({"attention_factor": null, "mscale": 1.0}),
        ] {
            assert_eq!(
                scaled(fields.clone()).unwrap(),
                ModelSpec::published("gpt-oss-20b").unwrap(),
                "{fields}"
            );
        }
    }

    #[test]
    fn rope_parameters_of_newer_transformers_are_read_alike() {
        let moved = edited(|map| {
            let mut rope = map.remove("rope_scaling").unwrap();
            rope["rope_theta"] = map.remove("rope_theta").unwrap();
            map.insert("rope_parameters".into(), rope);
        });
        assert_eq!(moved.unwrap(), ModelSpec::published("gpt-oss-20b").unwrap());
        // The old field may be left behind and say nothing, or say it as well.
        for old in [serde_json::Value::Null, serde_json::json!({"rope_type": "yarn", "factor": 32.0})] {
            let both = edited(|map| {
                let rope = map.insert("rope_scaling".into(), old.clone()).unwrap();
                map.insert("rope_parameters".into(), rope);
            });
            let yarn = ModelSpec::published("gpt-oss-20b").unwrap().rope;
            let expected = match old.is_null() {
                true => yarn,
                false => Rope { original_context: 131_072.0, truncate: true, ..yarn },
            };
            assert_eq!(both.unwrap().rope, expected, "{old}");
        }
    }
}
