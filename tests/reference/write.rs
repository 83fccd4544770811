//! Random checkpoints of any shape, with the magnitudes of `golden/scripts/gen_tiny.py`: scores, windows,
//! sinks, clipped gates and every expert count.

use super::tensors::FP4;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize_to_file};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// What makes a checkpoint.
pub struct Shape {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub experts: usize,
    pub per_token: usize,
    pub vocab: usize,
    pub window: usize,
    /// Fields of config.json that differ from what all have; null removes one.
    pub config: Value,
    /// 1: model.safetensors, without index and `__metadata__`; more: shards that cut layers, with an index.
    pub files: usize,
    pub seed: u64,
}

/// Chance by counting: splitmix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Between 0 and 1.
    fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Standard normal, by Box and Muller.
    fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// Writes config.json and the tensors.
pub fn write(dir: &Path, shape: &Shape) {
    std::fs::write(dir.join("config.json"), config(shape).to_string()).unwrap();
    let tensors = Writer { dice: Dice(shape.seed), tensors: Vec::new() }.all(shape);
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let views: Vec<(String, TensorView<'_>)> = views.collect();
    if shape.files == 1 {
        return serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut index = BTreeMap::new();
    let per_file = views.len().div_ceil(shape.files);
    for (number, views) in views.chunks(per_file).enumerate() {
        let file = format!("model-{number:05}-of-{:05}.safetensors", shape.files - 1);
        index.extend(views.iter().map(|(name, _)| (name.clone(), file.clone())));
        let named = views.iter().map(|(name, view)| (name, view));
        serialize_to_file(named, Some(metadata.clone()), &dir.join(file)).unwrap();
    }
    let index = json!({ "metadata": {}, "weight_map": index });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

fn config(shape: &Shape) -> Value {
    let mut config = json!({
        "model_type": "gpt_oss", "hidden_size": shape.hidden, "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.q_heads,
        "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim, "num_local_experts": shape.experts,
        "num_experts_per_tok": shape.per_token, "vocab_size": shape.vocab, "sliding_window": shape.window,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "swiglu_limit": 7.0, "rope_theta": 150_000,
        "rope_scaling": { "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                          "original_max_position_embeddings": 4096, "truncate": false },
        "attention_bias": true, "tie_word_embeddings": false,
        "quantization_config": { "quant_method": "mxfp4" },
    });
    let fields = config.as_object_mut().unwrap();
    for (field, value) in shape.config.as_object().expect("fields") {
        match value {
            Value::Null => drop(fields.remove(field)),
            value => drop(fields.insert(field.clone(), value.clone())),
        }
    }
    config
}

struct Writer {
    dice: Dice,
    tensors: Vec<(String, Stored)>,
}

impl Writer {
    fn all(mut self, s: &Shape) -> Vec<(String, Stored)> {
        let (h, i, d) = (s.hidden, s.intermediate, s.head_dim);
        let (nq_d, nk_d, per_h) = (s.q_heads * d, s.kv_heads * d, 1.0 / (h as f64).sqrt());
        self.dense("model.embed_tokens.weight", &[s.vocab, h], 0.0, 1.0);
        for layer in 0..s.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            self.dense(&name("input_layernorm.weight"), &[h], 1.0, 0.25);
            self.dense(&name("post_attention_layernorm.weight"), &[h], 1.0, 0.25);
            let linears = [
                ("self_attn.q_proj", nq_d, h, 0.7f64.sqrt() * per_h, 0.3),
                ("self_attn.k_proj", nk_d, h, 0.7f64.sqrt() * per_h, 0.3),
                ("self_attn.v_proj", nk_d, h, per_h, 0.2),
                ("self_attn.o_proj", h, nq_d, 1.4 / (nq_d as f64).sqrt(), 0.1),
                ("mlp.router", s.experts, h, 2.0 * per_h, 0.4),
            ];
            for (part, out, width, weight, bias) in linears {
                self.dense(&name(&format!("{part}.weight")), &[out, width], 0.0, weight);
                self.dense(&name(&format!("{part}.bias")), &[out], 0.0, bias);
            }
            self.dense(&name("self_attn.sinks"), &[s.q_heads], 0.8, 1.2);
            self.experts(&name("mlp.experts.gate_up_proj"), [s.experts, 2 * i, h], per_h, 0.05);
            self.dense(&name("mlp.experts.gate_up_proj_bias"), &[s.experts, 2 * i], 0.0, 0.3);
            self.experts(&name("mlp.experts.down_proj"), [s.experts, h, i], 0.4 / (i as f64).sqrt(), 0.0);
            self.dense(&name("mlp.experts.down_proj_bias"), &[s.experts, h], 0.0, 0.1);
        }
        self.dense("model.norm.weight", &[h], 1.0, 0.25);
        self.dense("lm_head.weight", &[s.vocab, h], 0.0, 3.5 * per_h);
        self.tensors
    }

    fn dense(&mut self, name: &str, shape: &[usize], mean: f64, deviation: f64) {
        let count = shape.iter().product::<usize>();
        let values = (0..count).map(|_| (mean + deviation * self.dice.normal()) as f32);
        let bytes = values.flat_map(|value| bf16(value).to_le_bytes()).collect();
        self.tensors.push((name.to_owned(), (Dtype::BF16, shape.to_vec(), bytes)));
    }

    /// Rows of different sizes, a part of them so large that gates are clipped.
    fn experts(&mut self, name: &str, shape: [usize; 3], deviation: f64, large: f64) {
        let [experts, rows, width] = shape;
        let (mut blocks, mut scales) = (Vec::new(), Vec::new());
        for _ in 0..experts * rows {
            let is_large = self.dice.unit() < large;
            let row = deviation * if is_large { 5.0 } else { (0.3 * self.dice.normal()).exp() };
            for _ in 0..width / 32 {
                let values: [f64; 32] = std::array::from_fn(|_| row * self.dice.normal());
                let (block, scale) = mxfp4(&values);
                blocks.extend(block);
                scales.push(scale);
            }
        }
        let shapes = (vec![experts, rows, width / 32, 16], vec![experts, rows, width / 32]);
        self.tensors.push((format!("{name}_blocks"), (Dtype::U8, shapes.0, blocks)));
        self.tensors.push((format!("{name}_scales"), (Dtype::U8, shapes.1, scales)));
    }
}

/// To nearest, ties to even.
fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}

/// 32 elements as 16 bytes (element 2b low, 2b + 1 high) and an exponent that brings the largest to 4…8.
fn mxfp4(values: &[f64; 32]) -> ([u8; 16], u8) {
    let largest = values.iter().fold(0f64, |max, value| max.max(value.abs()));
    let exponent = (largest.log2().floor() as i32 - 2).clamp(-127, 127);
    let code = |value: f64| {
        let scaled = value.abs() / 2f64.powi(exponent);
        let above = FP4.windows(2).filter(|pair| scaled > f64::from(pair[0] + pair[1]) / 2.0).count() as u8;
        above | if value < 0.0 { 8 } else { 0 }
    };
    let bytes = std::array::from_fn(|b| code(values[2 * b]) | code(values[2 * b + 1]) << 4);
    (bytes, (exponent + 127) as u8)
}
