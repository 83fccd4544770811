//! gpt-oss once more, as plain as it can be written: whole sequences, no cache, no cutting, f32, with
//! candle. It shares no code with the engine, so that the two can only agree by both being right; it is
//! itself held against the golden sets, which Hugging Face's transformers calculated.

pub mod golden;
pub mod tensors;
pub mod write;

use candle_core::{DType, Device, Result, Tensor};
use serde_json::Value;
use std::path::Path;
use tensors::Tensors;

/// Letters: T tokens, H hidden, I intermediate, E experts, V vocabulary, D head_dim, nq and nk heads.
pub struct Reference {
    config: Config,
    /// [V, H]
    embed: Tensor,
    layers: Vec<Layer>,
    /// [H]
    norm: Tensor,
    /// [V, H]
    head: Tensor,
}

struct Config {
    hidden: usize,
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    per_token: usize,
    window: usize,
    eps: f64,
    limit: f64,
    /// Per pair (j, j + D/2).
    inv_freq: Vec<f64>,
    concentration: f64,
}

struct Layer {
    slides: bool,
    norms: [Tensor; 2],
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// [nq]
    sinks: Vec<f32>,
    router: Linear,
    gate_up: Vec<Linear>,
    down: Vec<Linear>,
}

/// y = x Wᵀ + b; weight [out, in], bias [out].
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

/// What the forward of one sequence gave.
pub struct Trace {
    /// [T][V]
    pub logits: Vec<Vec<f32>>,
    /// [L + 1][T][H]: the embedding, then the residual stream after each layer.
    pub hidden: Vec<Vec<Vec<f32>>>,
    /// [L][T]
    pub routes: Vec<Vec<Route>>,
}

/// Where one row of one layer goes.
#[derive(Clone)]
pub struct Route {
    /// By falling logit.
    pub experts: Vec<usize>,
    pub weights: Vec<f32>,
    /// From the last chosen to the first not chosen logit.
    pub gap: f32,
}

impl Reference {
    pub fn load(dir: &Path) -> Result<Reference> {
        let json: Value =
            serde_json::from_str(&std::fs::read_to_string(dir.join("config.json"))?).expect("JSON");
        let tensors = Tensors::load(dir);
        let layers = json["num_hidden_layers"].as_u64().expect("a number") as usize;
        Ok(Reference {
            config: Config::read(&json),
            embed: tensors.dense("model.embed_tokens.weight")?,
            layers: (0..layers).map(|layer| Layer::load(&json, &tensors, layer)).collect::<Result<_>>()?,
            norm: tensors.dense("model.norm.weight")?,
            head: tensors.dense("lm_head.weight")?,
        })
    }

    pub fn forward(&self, tokens: &[u32]) -> Result<Trace> {
        let ids = Tensor::from_slice(tokens, tokens.len(), &Device::Cpu)?;
        let mut x = self.embed.index_select(&ids, 0)?;
        let mut hidden = vec![x.to_vec2()?];
        let mut routes = Vec::new();
        for layer in &self.layers {
            x = (&x + self.attention(layer, &self.norm(&x, &layer.norms[0])?)?)?;
            let (y, routed) = self.experts(layer, &self.norm(&x, &layer.norms[1])?)?;
            x = (x + y)?;
            hidden.push(x.to_vec2()?);
            routes.push(routed);
        }
        let logits = self.norm(&x, &self.norm)?.matmul(&self.head.t()?)?;
        Ok(Trace { logits: logits.to_vec2()?, hidden, routes })
    }

    /// x / √(mean x² + ε) · w
    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let mean_square = (x.sqr()?.mean_keepdim(1)? + self.config.eps)?;
        x.broadcast_div(&mean_square.sqrt()?)?.broadcast_mul(weight)
    }

    /// x [T, H] → [T, H]
    fn attention(&self, layer: &Layer, x: &Tensor) -> Result<Tensor> {
        let Config { q_heads, kv_heads, head_dim, .. } = self.config;
        let rows = x.dim(0)?;
        let (q, k, v) = (layer.q.of(x)?, layer.k.of(x)?, layer.v.of(x)?);
        let head = |of: &Tensor, head: usize| of.narrow(1, head * head_dim, head_dim);
        let mask = self.mask(rows, layer.slides)?;
        let mut attended = Vec::new();
        for h in 0..q_heads {
            let kv = h / (q_heads / kv_heads);
            let (q, k) = (self.rotate(&head(&q, h)?)?, self.rotate(&head(&k, kv)?)?);
            // s = q·k / √D, and beside the keys the sink, a logit that has no value.
            let scores = (q.matmul(&k.t()?)? / (head_dim as f64).sqrt())?.broadcast_add(&mask)?;
            let sink = Tensor::full(layer.sinks[h], (rows, 1), &Device::Cpu)?;
            let p = softmax(&Tensor::cat(&[scores, sink], 1)?)?.narrow(1, 0, rows)?.contiguous()?;
            attended.push(p.matmul(&head(&v, kv)?.contiguous()?)?);
        }
        layer.o.of(&Tensor::cat(&attended, 1)?)
    }

    /// [T, T]: 0 where row q sees key k, else −∞.
    fn mask(&self, rows: usize, slides: bool) -> Result<Tensor> {
        let window = if slides { self.config.window } else { rows };
        let sees = |q: usize, k: usize| k <= q && k + window > q;
        let mask = (0..rows * rows).map(|i| if sees(i / rows, i % rows) { 0.0 } else { f32::NEG_INFINITY });
        Tensor::from_iter(mask, &Device::Cpu)?.reshape((rows, rows))
    }

    /// x [T, D], row t at position t: turns the pairs (j, j + D/2).
    fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, half) = (x.dim(0)?, self.config.head_dim / 2);
        let table = |f: fn(f64) -> f64| {
            let angles = (0..rows).flat_map(|t| self.config.inv_freq.iter().map(move |freq| t as f64 * freq));
            let values = angles.map(|angle| (f(angle) * self.config.concentration) as f32);
            Tensor::from_iter(values, &Device::Cpu)?.reshape((rows, half))
        };
        let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
        let (a, b) = (x.narrow(1, 0, half)?, x.narrow(1, half, half)?);
        Tensor::cat(&[((&a * &cos)? - (&b * &sin)?)?, ((&b * &cos)? + (&a * &sin)?)?], 1)
    }

    /// x [T, H] → Σ over the chosen experts of weight · expert(x), and who was chosen.
    fn experts(&self, layer: &Layer, x: &Tensor) -> Result<(Tensor, Vec<Route>)> {
        let logits: Vec<Vec<f32>> = layer.router.of(x)?.to_vec2()?;
        let routes: Vec<Route> = logits.iter().map(|row| route(row, self.config.per_token)).collect();
        let mut sum = Tensor::zeros((routes.len(), self.config.hidden), DType::F32, &Device::Cpu)?;
        for (expert, (gate_up, down)) in layer.gate_up.iter().zip(&layer.down).enumerate() {
            let weight_of = |route: &Route| {
                route.experts.iter().position(|chosen| *chosen == expert).map(|place| route.weights[place])
            };
            let chosen =
                routes.iter().enumerate().filter_map(|(row, route)| Some((row as u32, weight_of(route)?)));
            let (rows, weights): (Vec<u32>, Vec<f32>) = chosen.unzip();
            if rows.is_empty() {
                continue;
            }
            let rows = Tensor::new(rows, &Device::Cpu)?;
            let weights = Tensor::new(weights, &Device::Cpu)?.unsqueeze(1)?;
            let y = down.of(&self.swiglu(&gate_up.of(&x.index_select(&rows, 0)?)?)?)?;
            sum = sum.index_add(&rows, &y.broadcast_mul(&weights)?, 0)?;
        }
        Ok((sum, routes))
    }

    /// [T, 2I], gate and up by turns → (up + 1) · gate · σ(1.702 gate), both clipped.
    fn swiglu(&self, gate_up: &Tensor) -> Result<Tensor> {
        let pairs = gate_up.reshape((gate_up.dim(0)?, gate_up.dim(1)? / 2, 2))?;
        let limit = self.config.limit as f32;
        let gate = pairs.narrow(2, 0, 1)?.squeeze(2)?.contiguous()?.minimum(limit)?;
        let up = pairs.narrow(2, 1, 1)?.squeeze(2)?.contiguous()?.clamp(-limit, limit)?;
        let sigmoid = ((&gate * -1.702)?.exp()? + 1.0)?.recip()?;
        (up + 1.0)? * (gate * sigmoid)?
    }
}

impl Layer {
    fn load(json: &Value, tensors: &Tensors, layer: usize) -> Result<Layer> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let linear = |part: &str| -> Result<Linear> {
            let weight = tensors.dense(&name(&format!("{part}.weight")))?;
            Ok(Linear { weight, bias: tensors.dense(&name(&format!("{part}.bias")))? })
        };
        let experts = |part: &str| -> Result<Vec<Linear>> {
            let weights = tensors.mxfp4(&name(&format!("mlp.experts.{part}")))?;
            let biases = tensors.dense(&name(&format!("mlp.experts.{part}_bias")))?;
            let of = |(e, weight)| Ok(Linear { weight, bias: biases.get(e)? });
            weights.into_iter().enumerate().map(of).collect()
        };
        Ok(Layer {
            // Even layers slide where the config does not say.
            slides: json["layer_types"]
                .get(layer)
                .map_or(layer.is_multiple_of(2), |kind| kind == "sliding_attention"),
            norms: [
                tensors.dense(&name("input_layernorm.weight"))?,
                tensors.dense(&name("post_attention_layernorm.weight"))?,
            ],
            q: linear("self_attn.q_proj")?,
            k: linear("self_attn.k_proj")?,
            v: linear("self_attn.v_proj")?,
            o: linear("self_attn.o_proj")?,
            sinks: tensors.dense(&name("self_attn.sinks"))?.to_vec1()?,
            router: linear("mlp.router")?,
            gate_up: experts("gate_up_proj")?,
            down: experts("down_proj")?,
        })
    }
}

impl Linear {
    fn of(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)
    }
}

impl Config {
    fn read(json: &Value) -> Config {
        let size = |field: &str| json[field].as_u64().unwrap_or_else(|| panic!("{field}")) as usize;
        let head_dim = size("head_dim");
        let rope =
            [&json["rope_scaling"], &json["rope_parameters"]].into_iter().find(|rope| rope.is_object());
        let (inv_freq, concentration) = angles(json, rope, head_dim);
        Config {
            hidden: size("hidden_size"),
            q_heads: size("num_attention_heads"),
            kv_heads: size("num_key_value_heads"),
            head_dim,
            per_token: size("num_experts_per_tok"),
            window: size("sliding_window"),
            eps: json["rms_norm_eps"].as_f64().expect("a number"),
            limit: json["swiglu_limit"].as_f64().expect("a number"),
            inv_freq,
            concentration,
        }
    }
}

/// Angle per position of each pair, and the factor on cos and sin: YaRN, or plain rotary.
fn angles(json: &Value, rope: Option<&Value>, head_dim: usize) -> (Vec<f64>, f64) {
    let theta = json["rope_theta"].as_f64().or_else(|| rope?["rope_theta"].as_f64()).expect("rope_theta");
    let half = (head_dim / 2) as f64;
    let plain: Vec<f64> = (0..head_dim / 2).map(|j| theta.powf(-(j as f64) / half)).collect();
    let Some(rope) = rope.filter(|rope| rope["rope_type"] == "yarn" && rope["factor"] != 1.0) else {
        return (plain, 1.0);
    };
    let number = |field: &str| rope[field].as_f64().unwrap_or_else(|| panic!("{field}"));
    let (factor, length) = (number("factor"), number("original_max_position_embeddings"));
    let turns = |turns: f64| half * (length / (turns * std::f64::consts::TAU)).ln() / theta.ln();
    let (mut low, mut high) = (turns(number("beta_fast")), turns(number("beta_slow")));
    if rope["truncate"] != false {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
    let ramp = |j: usize| ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
    let blend = |(j, freq): (usize, &f64)| freq / factor * ramp(j) + freq * (1.0 - ramp(j));
    (plain.iter().enumerate().map(blend).collect(), 0.1 * factor.ln() + 1.0)
}

/// Over the last dimension of [T, N].
fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(1)?)
}

/// The largest logits, and the softmax over them alone.
fn route(logits: &[f32], per_token: usize) -> Route {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let last = logits[order[per_token - 1]];
    let gap = order.get(per_token).map_or(f32::INFINITY, |&next| last - logits[next]);
    order.truncate(per_token);
    let e: Vec<f32> = order.iter().map(|&expert| (logits[expert] - logits[order[0]]).exp()).collect();
    let sum: f32 = e.iter().sum();
    Route { experts: order, weights: e.iter().map(|e| e / sum).collect(), gap }
}
