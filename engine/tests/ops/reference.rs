//! gpt-oss in plain f64, op by op, from the bytes of the model: what every backend is compared with. Nothing here
//! is shared with the engine. Formulas: the model card and the published `gpt_oss/torch/model.py`.
//!
//! It can round where a card rounds, and it can be wrong on purpose: a check that a wrong reference passes sees
//! nothing.

use crate::batches::{Place, Step};
use crate::model::Model;
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{Dtype, LayerKind, ModelSpec};
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::f64::consts::{LOG2_E, PI};
use std::ops::Range;

/// What the subject rounds on purpose, beside f32 everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    None,
    /// Keys and values to f16.
    Cache,
    /// Inputs of dense products and of scores to this, keys and values to bf16, inputs of experts to f16.
    Card(Act),
}

/// Activations of dense products on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Bf16,
    /// Where matrix units know no bf16.
    F16,
}

impl Rounding {
    fn act(self, x: f64) -> f64 {
        match self {
            Rounding::None | Rounding::Cache => x,
            Rounding::Card(Act::Bf16) => bf16::from_f32(x as f32).to_f64(),
            Rounding::Card(Act::F16) => f16::from_f32(x as f32).to_f64(),
        }
    }

    fn cached(self, x: f64) -> f64 {
        match self {
            Rounding::None => x,
            Rounding::Cache => f16::from_f32(x as f32).to_f64(),
            Rounding::Card(_) => bf16::from_f32(x as f32).to_f64(),
        }
    }

    fn expert(self, x: f64) -> f64 {
        if matches!(self, Rounding::Card(_)) { f16::from_f32(x as f32).to_f64() } else { x }
    }
}

/// Mistakes that one makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    DroppedSink,
    WindowWithOneMore,
    WindowWithOneLess,
    /// Not this reference's mistake, but that of whoever gives out blocks.
    BlocksGivenTooEarly,
    RotatedInPairs,
    HeadsOfTheNextKeys,
    GateAndUpSwapped,
    NibblesSwapped,
    UnclampedUp,
    UnclampedGate,
    UnweightedDownBias,
    TiesToTheHigher,
    EpsilonLeftOut,
}

/// One row's choice of one expert.
pub struct Choice {
    pub expert: usize,
    pub weight: f64,
}

pub struct Reference {
    spec: ModelSpec,
    rounding: Rounding,
    fault: Option<Fault>,
    tensors: BTreeMap<TensorId, Vec<f64>>,
    /// Keys and values of every position so far, f64 [nk, D] each.
    memory: BTreeMap<(usize, Place), (Vec<f64>, Vec<f64>)>,
}

impl Reference {
    pub fn new(model: &Model, rounding: Rounding, fault: Option<Fault>) -> Self {
        let spec = model.spec().clone();
        let swapped = fault == Some(Fault::NibblesSwapped);
        let tensors =
            TensorId::all(&spec).filter_map(|tensor| Some((tensor, values(model, tensor, swapped)?)));
        Reference { tensors: tensors.collect(), rounding, fault, spec, memory: BTreeMap::new() }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn layer(&self, layer: usize, tensor: LayerTensor) -> &[f64] {
        &self.tensors[&TensorId::Layer(layer as u16, tensor)]
    }

    /// E[token], zero outside of `vocab`.
    pub fn embed(&self, step: &Step, vocab: Range<usize>) -> Vec<f64> {
        let row = |token: usize| match vocab.contains(&token) {
            true => self.tensors[&TensorId::Embed][token * self.spec.hidden..][..self.spec.hidden].to_vec(),
            false => vec![0.0; self.spec.hidden],
        };
        step.batch.tokens.iter().flat_map(|&token| row(token as usize)).collect()
    }

    /// n(x) = x / sqrt(mean(x²) + eps) · w
    fn norm(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let eps = if self.is(Fault::EpsilonLeftOut) { 0.0 } else { self.spec.norm_eps };
        x.iter().zip(weight).map(|(x, w)| x / (mean + eps).sqrt() * w).collect()
    }

    fn norm_act(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
        self.norm(x, weight).into_iter().map(|h| self.rounding.act(h)).collect()
    }

    /// attn(n(x)) of every row: f64 [T, H]; keys and values are remembered.
    pub fn attention(&mut self, layer: usize, step: &Step, x: &[f64]) -> Vec<f64> {
        use LayerTensor::*;
        let spec = self.spec.clone();
        let mut queries = Vec::new();
        for (x, &place) in x.chunks(spec.hidden).zip(&step.places) {
            let h = self.norm_act(x, self.layer(layer, AttentionNorm));
            let part = |weight, bias| product(self.layer(layer, weight), &h, self.layer(layer, bias));
            let (mut q, mut k, mut v) = (part(QWeight, QBias), part(KWeight, KBias), part(VWeight, VBias));
            self.rotate(&mut q, place.position);
            self.rotate(&mut k, place.position);
            // A card stores q as what exp2 needs.
            let scale = LOG2_E / (spec.head_dim as f64).sqrt();
            q.iter_mut().for_each(|q| *q = self.rounding.act(*q * scale) / LOG2_E);
            k.iter_mut().for_each(|k| *k = self.rounding.cached(*k));
            v.iter_mut().for_each(|v| *v = self.rounding.cached(*v));
            self.memory.insert((layer, place), (k, v));
            queries.push(q);
        }
        let rows = queries.iter().zip(&step.places);
        rows.flat_map(|(q, &place)| {
            let out: Vec<f64> = (0..spec.q_heads).flat_map(|head| self.head(layer, head, q, place)).collect();
            let out: Vec<f64> = out.into_iter().map(|a| self.rounding.act(a)).collect();
            product(self.layer(layer, OWeight), &out, self.layer(layer, OBias))
        })
        .collect()
    }

    /// One head's Σ p v: f64 [D]. `q`: f64 [nq, D], scaled.
    fn head(&self, layer: usize, head: usize, q: &[f64], place: Place) -> Vec<f64> {
        let (spec, d) = (&self.spec, self.spec.head_dim);
        let group = spec.q_heads / spec.kv_heads;
        let mut kv_head = head / group;
        if self.is(Fault::HeadsOfTheNextKeys) {
            kv_head = head % spec.kv_heads;
        }
        let window = match self.fault {
            Some(Fault::WindowWithOneMore) => spec.window + 1,
            Some(Fault::WindowWithOneLess) => spec.window - 1,
            _ => spec.window,
        };
        let first = match spec.layers[layer] {
            LayerKind::Full => 0,
            LayerKind::Window => (place.position + 1).saturating_sub(window),
        };
        let q = &q[head * d..][..d];
        let seen = |position| &self.memory[&(layer, Place { position, ..place })];
        let score = |position| dot(q, &seen(position).0[kv_head * d..][..d]);
        let weights: Vec<f64> = (first..=place.position).map(|position| score(position).exp()).collect();
        let mut total: f64 = weights.iter().sum();
        if !self.is(Fault::DroppedSink) {
            total += self.layer(layer, LayerTensor::Sinks)[head].exp();
        }
        let mut out = vec![0.0; d];
        for (position, weight) in (first..=place.position).zip(weights) {
            let v = &seen(position).1[kv_head * d..][..d];
            out.iter_mut().zip(v).for_each(|(out, v)| *out += weight / total * v);
        }
        out
    }

    /// Turns the pairs (j, j + D/2) of every head.
    fn rotate(&self, heads: &mut [f64], position: usize) {
        let (rope, d) = (&self.spec.rope, self.spec.head_dim);
        let half = d / 2;
        let end =
            |turns: f64| half as f64 * (rope.original_context / (turns * 2.0 * PI)).ln() / rope.theta.ln();
        let low = end(rope.beta_fast).max(0.0);
        let high = end(rope.beta_slow).min(d as f64 - 1.0);
        let concentration = 0.1 * rope.factor.ln() + 1.0;
        for head in heads.chunks_mut(d) {
            for j in 0..half {
                let theta = rope.theta.powf(-2.0 * j as f64 / d as f64);
                let ramp = ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
                let angle = position as f64 * (theta / rope.factor * ramp + theta * (1.0 - ramp));
                let (sin, cos) = (angle.sin() * concentration, angle.cos() * concentration);
                let (a, b) = if self.is(Fault::RotatedInPairs) { (2 * j, 2 * j + 1) } else { (j, j + half) };
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
            }
        }
    }

    /// The router's logits of every row, of what comes before the experts: f64 [T][E].
    pub fn router(&self, layer: usize, x: &[f64]) -> Vec<Vec<f64>> {
        use LayerTensor::{MlpNorm, RouterBias, RouterWeight};
        let logits = |x: &[f64]| {
            let h = self.norm(x, self.layer(layer, MlpNorm));
            product(self.layer(layer, RouterWeight), &h, self.layer(layer, RouterBias))
        };
        x.chunks(self.spec.hidden).map(logits).collect()
    }

    /// The K largest logits, of equal ones the lower expert.
    pub fn choose(&self, logits: &[f64]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        if self.is(Fault::TiesToTheHigher) {
            order.reverse();
        }
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order.truncate(self.spec.experts_per_token);
        order
    }

    /// Softmax over the chosen.
    pub fn weigh(logits: &[f64], chosen: impl IntoIterator<Item = usize>) -> Vec<Choice> {
        let choice = |expert: usize| Choice { expert, weight: logits[expert].exp() };
        let mut choices: Vec<Choice> = chosen.into_iter().map(choice).collect();
        let total: f64 = choices.iter().map(|choice| choice.weight).sum();
        choices.iter_mut().for_each(|choice| choice.weight /= total);
        choices
    }

    /// moe(n(x)) of every row, with the choices given: f64 [T, H].
    pub fn experts(&self, layer: usize, x: &[f64], choices: &[Vec<Choice>]) -> Vec<f64> {
        let rows = x.chunks(self.spec.hidden).zip(choices);
        rows.flat_map(|(x, choices)| {
            let h = self.norm(x, self.layer(layer, LayerTensor::MlpNorm));
            let h: Vec<f64> = h.into_iter().map(|h| self.rounding.expert(h)).collect();
            let mut y = vec![0.0; self.spec.hidden];
            for choice in choices {
                let out = self.expert(layer, choice, &h);
                y.iter_mut().zip(out).for_each(|(y, out)| *y += out);
            }
            y
        })
        .collect()
    }

    /// w (W_d a + b_d), a = (u + 1) · g · σ(1.702 g)
    fn expert(&self, layer: usize, choice: &Choice, h: &[f64]) -> Vec<f64> {
        use LayerTensor::*;
        let part = |tensor, len: usize| &self.layer(layer, tensor)[choice.expert * len..][..len];
        let (hidden, intermediate) = (self.spec.hidden, self.spec.intermediate);
        let gate_up =
            product(part(GateUpBlocks, 2 * intermediate * hidden), h, part(GateUpBias, 2 * intermediate));
        let limit = f64::from(self.spec.swiglu_limit);
        let a = gate_up.chunks(2).map(|pair| {
            let (gate, up) =
                if self.is(Fault::GateAndUpSwapped) { (pair[1], pair[0]) } else { (pair[0], pair[1]) };
            let g = if self.is(Fault::UnclampedGate) { gate } else { gate.min(limit) };
            let u = if self.is(Fault::UnclampedUp) { up } else { up.clamp(-limit, limit) };
            self.rounding.expert((u + 1.0) * g / (1.0 + (-1.702 * g).exp()))
        });
        let a: Vec<f64> = a.collect();
        let bias = part(DownBias, hidden);
        let none = vec![0.0; hidden];
        let out = product(part(DownBlocks, hidden * intermediate), &a, &none);
        let w = choice.weight;
        let bias_weight = if self.is(Fault::UnweightedDownBias) { 1.0 } else { w };
        out.iter().zip(bias).map(|(out, bias)| w * out + bias_weight * bias).collect()
    }

    /// lm_head · n(x) of one row: f64 [V].
    pub fn logits(&self, x: &[f64]) -> Vec<f64> {
        let h = self.norm_act(x, &self.tensors[&TensorId::FinalNorm]);
        product(&self.tensors[&TensorId::Unembed], &h, &vec![0.0; self.spec.vocab])
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// W x + b
fn product(weight: &[f64], x: &[f64], bias: &[f64]) -> Vec<f64> {
    assert_eq!(weight.len(), bias.len() * x.len());
    weight.chunks(x.len()).zip(bias).map(|(row, bias)| dot(row, x) + bias).collect()
}

/// The elements of a tensor; those of packed experts under the name of their blocks, and none under their scales'.
fn values(model: &Model, tensor: TensorId, nibbles_swapped: bool) -> Option<Vec<f64>> {
    use LayerTensor::{DownBlocks, DownScales, GateUpBlocks, GateUpScales};
    const FP4: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let bytes = model.bytes(tensor);
    if tensor.dtype() == Dtype::Bf16 {
        return Some(bytes.chunks(2).map(|two| bf16::from_le_bytes([two[0], two[1]]).to_f64()).collect());
    }
    let scales = match tensor {
        TensorId::Layer(layer, GateUpBlocks) => TensorId::Layer(layer, GateUpScales),
        TensorId::Layer(layer, DownBlocks) => TensorId::Layer(layer, DownScales),
        _ => return None,
    };
    let mut values = Vec::new();
    for (block, scale) in bytes.chunks(16).zip(model.bytes(scales)) {
        let scale = 2f64.powi(i32::from(*scale) - 127);
        for byte in block {
            let (first, second) = (byte & 15, byte >> 4);
            let codes = if nibbles_swapped { [second, first] } else { [first, second] };
            for code in codes {
                let sign = if code >= 8 { -1.0 } else { 1.0 };
                values.push(sign * FP4[usize::from(code % 8)] * scale);
            }
        }
    }
    Some(values)
}
