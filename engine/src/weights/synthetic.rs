//! Any slice of a model of any size from a seed, with no file: to load-test a cluster before 65 GB are
//! downloaded. An element's value depends on (seed, tensor name, element index) alone, so every cut of
//! every plan gives the same bytes, on every machine.
//!
//! Not a trained model: its tokens are noise. Its magnitudes are a real one's (rows of 1/√K, norms near
//! 1, small biases), so that activations stay finite, windows and sinks count, and all experts are
//! equally likely; nothing here could be cached or skipped by an engine that is fast on easy numbers.

use super::rectangle::ByteRuns;
use super::{WeightError, WeightSource, identity};
use flotilla_shared::sampling::mix;
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{ModelSpec, TensorSlice, WeightsId};
use half::bf16;

/// A model that exists only as its seed.
pub struct Synthetic {
    spec: ModelSpec,
    seed: u64,
    /// Per [`kind`] of tensor, how its elements are drawn.
    draws: Vec<Draw>,
}

/// How 8 bytes are made of 64 random bits.
pub(crate) enum Draw {
    /// MXFP4 elements: all 16 codes alike.
    Codes,
    /// MXFP4 exponents: `low`, or one more in `threshold` of 128 blocks.
    Scales { low: u8, threshold: u8 },
    /// bf16 by 12 bits each, from as many values of a normal distribution.
    Normal(Box<[u16; PALETTE]>),
}

pub(crate) const PALETTE: usize = 1 << 12;

/// All that a tensor's bytes come of, but for which of them are wanted.
pub(crate) struct Recipe {
    /// Where its random numbers begin.
    pub key: u64,
    /// Which of the model's draws.
    pub draw: usize,
}

impl Synthetic {
    pub fn new(spec: ModelSpec, seed: u64) -> Self {
        let unit = unit_normal();
        let first_layer = LayerTensor::ALL.map(|tensor| TensorId::Layer(0, tensor));
        let all = [TensorId::Embed, TensorId::FinalNorm, TensorId::Unembed].into_iter().chain(first_layer);
        let draws = all.map(|tensor| Draw::of(tensor, &spec, &unit)).collect();
        Synthetic { spec, seed, draws }
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn draws(&self) -> &[Draw] {
        &self.draws
    }

    pub(crate) fn recipe(&self, tensor: TensorId) -> Recipe {
        let hash = blake3::Hasher::new()
            .update(&self.seed.to_le_bytes())
            .update(tensor.to_string().as_bytes())
            .finalize();
        let key = u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("32 bytes"));
        Recipe { key, draw: kind(tensor) }
    }
}

impl WeightSource for Synthetic {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn read(&self, slice: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<(), WeightError> {
        let runs = ByteRuns::new(slice, &self.spec);
        let Recipe { key, draw } = self.recipe(slice.tensor);
        let draw = &self.draws[draw];
        runs.visit(offset, out.len(), |start, range| draw.fill(key, start, &mut out[range]));
        Ok(())
    }

    fn identity(&self) -> Result<WeightsId, WeightError> {
        Ok(identity::of_seed(&self.spec, self.seed))
    }
}

/// Tensors of one kind are drawn alike in every layer.
fn kind(tensor: TensorId) -> usize {
    match tensor {
        TensorId::Embed => 0,
        TensorId::FinalNorm => 1,
        TensorId::Unembed => 2,
        TensorId::Layer(_, tensor) => 3 + tensor as usize,
    }
}

impl Draw {
    fn of(tensor: TensorId, spec: &ModelSpec, unit: &[f32; PALETTE]) -> Draw {
        use LayerTensor::*;
        let normal = |mean: f64, std: f64| Draw::normal(unit, mean, std);
        let (h, i) = (spec.hidden as f64, spec.intermediate as f64);
        let attended = (spec.q_heads * spec.head_dim) as f64;
        let TensorId::Layer(_, part) = tensor else {
            return match tensor {
                TensorId::Embed => normal(0.0, 1.0),
                TensorId::FinalNorm => normal(1.0, 0.25),
                // Logits with a standard deviation of 3.5.
                _ => normal(0.0, 3.5 / h.sqrt()),
            };
        };
        match part {
            AttentionNorm | MlpNorm => normal(1.0, 0.25),
            // q·k/√D with a standard deviation of 0.7, before rotary's own factor.
            QWeight | KWeight => normal(0.0, (0.7 / h).sqrt()),
            QBias | KBias => normal(0.0, 0.1),
            VWeight => normal(0.0, 1.0 / h.sqrt()),
            OWeight => normal(0.0, 1.4 / attended.sqrt()),
            Sinks => normal(0.8, 1.2),
            RouterWeight => normal(0.0, 2.0 / h.sqrt()),
            GateUpBias => normal(0.0, 0.1),
            // These add up over layers into what all tokens have in common, and that would make some
            // experts everyone's choice.
            VBias | OBias | RouterBias | DownBias => normal(0.0, 0.02),
            GateUpBlocks | DownBlocks => Draw::Codes,
            GateUpScales => Draw::scales(1.0 / h),
            DownScales => Draw::scales(0.16 / i),
        }
    }

    fn normal(unit: &[f32; PALETTE], mean: f64, std: f64) -> Draw {
        let value = |z: f32| bf16::from_f64(mean + std * f64::from(z)).to_bits();
        Draw::Normal(Box::new(unit.map(value)))
    }

    /// Exponents that give uniform codes the mean square `variance`.
    fn scales(variance: f64) -> Draw {
        // Mean of 0, .5, 1, 1.5, 2, 3, 4, 6, squared.
        const CODE_MEAN_SQUARE: f64 = 68.5 / 8.0;
        let wanted = variance / CODE_MEAN_SQUARE;
        // 4^low ≤ wanted < 4^(low + 1)
        let (mut low, mut square) = (127u8, 1.0);
        while square > wanted {
            (low, square) = (low - 1, square / 4.0);
        }
        while square * 4.0 <= wanted {
            (low, square) = (low + 1, square * 4.0);
        }
        Draw::Scales { low, threshold: ((wanted / square - 1.0) / 3.0 * 128.0) as u8 }
    }

    /// Fills `out` with the tensor's bytes from byte `start` on.
    fn fill(&self, key: u64, start: usize, out: &mut [u8]) {
        match self {
            Draw::Codes => fill(key, start, out, |bits| bits),
            Draw::Scales { low, threshold } => {
                // All 8 bytes at once: 7 bits that reach the threshold carry into the eighth.
                const ONES: u64 = 0x0101_0101_0101_0101;
                let (higher, to_carry) = (u64::from(low + 1) * ONES, u64::from(128 - threshold) * ONES);
                fill(key, start, out, |bits| higher - ((((bits & (0x7f * ONES)) + to_carry) >> 7) & ONES));
            }
            Draw::Normal(palette) => fill(key, start, out, |bits| {
                let value = |at: u32| u64::from(palette[(bits >> at) as usize % PALETTE]) << at;
                value(0) | value(16) | value(32) | value(48)
            }),
        }
    }
}

/// Lane n of a tensor is its bytes 8n to 8n + 7, made of the bits that (key, n) gives.
#[inline(always)]
fn fill(key: u64, start: usize, out: &mut [u8], make: impl Fn(u64) -> u64) {
    let lane = |n: usize| make(mix(key.wrapping_add(n as u64))).to_le_bytes();
    let head = (start.next_multiple_of(8) - start).min(out.len());
    let (head, rest) = out.split_at_mut(head);
    let within = start % 8;
    head.copy_from_slice(&lane(start / 8)[within..][..head.len()]);
    let first = (start + head.len()) / 8;
    let mut lanes = rest.chunks_exact_mut(8);
    let full = lanes.len();
    for (n, out) in lanes.by_ref().enumerate() {
        out.copy_from_slice(&lane(first + n));
    }
    let tail = lanes.into_remainder();
    tail.copy_from_slice(&lane(first + full)[..tail.len()]);
}

/// A sample of the normal distribution, mirrored about 0, of variance 1: sums of 12 uniform numbers.
///
/// Only additions, divisions and a square root, which round alike on every machine; a logarithm need not.
fn unit_normal() -> [f32; PALETTE] {
    let uniform = |n: u64| (mix(n) >> 11) as f64 / (1u64 << 53) as f64;
    let sum = |i: usize| (0..12).map(|j| uniform(12 * i as u64 + j)).sum::<f64>() - 6.0;
    let half: Vec<f64> = (0..PALETTE / 2).map(sum).collect();
    let std = (half.iter().map(|z| z * z).sum::<f64>() / half.len() as f64).sqrt();
    std::array::from_fn(|i| {
        let z = half[i / 2] / std;
        (if i % 2 == 0 { z } else { -z }) as f32
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn synthetic() -> Synthetic {
        Synthetic::new(ModelSpec::published("gpt-oss-20b").unwrap(), 7)
    }

    /// Mean and standard deviation of 1 MiB of a tensor's elements.
    fn moments(tensor: TensorId) -> (f64, f64) {
        let model = synthetic();
        let slice = TensorSlice::whole(tensor, model.spec());
        let mut bytes = vec![0; slice.bytes().min(1 << 20)];
        model.read(&slice, 0, &mut bytes).unwrap();
        let values: Vec<f64> = match tensor.dtype() {
            flotilla_shared::Dtype::U8 => bytes.iter().map(|&e| f64::from(e) - 127.0).collect(),
            flotilla_shared::Dtype::Bf16 => {
                bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
            }
        };
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt())
    }

    #[test]
    fn dense_rows_have_the_wanted_deviation() {
        let (mean, std) = moments(TensorId::Embed);
        assert!(mean.abs() < 0.01 && (std - 1.0).abs() < 0.01, "{mean} {std}");
        let (mean, std) = moments(TensorId::Layer(5, LayerTensor::VWeight));
        let wanted = 1.0 / 2880f64.sqrt();
        assert!(mean.abs() < 0.01 * wanted && (std / wanted - 1.0).abs() < 0.01, "{mean} {std}");
        let (mean, std) = moments(TensorId::FinalNorm);
        assert!((mean - 1.0).abs() < 0.02 && (std - 0.25).abs() < 0.02, "{mean} {std}");
    }

    #[test]
    fn experts_have_the_wanted_deviation() {
        let model = synthetic();
        let spec = model.spec().clone();
        let read = |tensor, len| {
            let slice = TensorSlice::whole(TensorId::Layer(2, tensor), &spec);
            let mut bytes = vec![0; len];
            model.read(&slice, 0, &mut bytes).unwrap();
            bytes
        };
        const FP4: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for (blocks, scales, wanted) in [
            (LayerTensor::GateUpBlocks, LayerTensor::GateUpScales, 1.0 / 2880.0),
            (LayerTensor::DownBlocks, LayerTensor::DownScales, 0.16 / 2880.0),
        ] {
            let scales = read(scales, 90 * 200);
            let blocks = read(blocks, 90 * 200 * 16);
            let square = |code: u8| FP4[usize::from(code & 7)].powi(2);
            let mean_square = blocks
                .chunks(16)
                .zip(&scales)
                .map(|(block, &scale)| {
                    let codes: f64 = block.iter().map(|&b| square(b & 15) + square(b >> 4)).sum();
                    codes * 4f64.powi(i32::from(scale) - 127)
                })
                .sum::<f64>()
                / (blocks.len() * 2) as f64;
            assert!((mean_square / wanted - 1.0).abs() < 0.03, "{mean_square:e} for {wanted:e}");
        }
    }

    #[test]
    fn tensors_layers_and_seeds_differ() {
        let read = |seed, layer, tensor| {
            let model = Synthetic::new(ModelSpec::published("gpt-oss-20b").unwrap(), seed);
            let slice = TensorSlice::whole(TensorId::Layer(layer, tensor), model.spec());
            let mut bytes = vec![0; 512];
            model.read(&slice, 0, &mut bytes).unwrap();
            bytes
        };
        use LayerTensor::{KWeight, QWeight};
        let first = read(1, 0, QWeight);
        assert_eq!(first, read(1, 0, QWeight));
        for other in [read(2, 0, QWeight), read(1, 1, QWeight), read(1, 0, KWeight)] {
            assert_ne!(first, other);
        }
    }
}
