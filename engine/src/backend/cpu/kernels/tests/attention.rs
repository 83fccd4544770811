//! Attention of a row, against a softmax in f64 over all keys and the sink at once.

use super::*;
use proptest::prelude::*;

struct Case {
    group: usize,
    d: usize,
    keys: usize,
    stride: usize,
    /// Sizes of scores: large ones drive the softmax into its corners.
    scale: f32,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    sinks: Vec<f32>,
    /// Rows of each slab.
    slabs: Vec<usize>,
}

impl Case {
    fn new(group: usize, d: usize, keys: usize, scale: f32, seed: u64) -> Case {
        let dice = &mut Dice::new(seed);
        let stride = d + dice.below(3) * 4;
        let mut slabs = vec![];
        while slabs.iter().sum::<usize>() < keys {
            slabs.push(dice.below(100).min(keys - slabs.iter().sum::<usize>()));
        }
        let mut sinks = dice.values(group);
        if keys > 0 && dice.below(3) == 0 {
            sinks[0] = f32::NEG_INFINITY;
        }
        let (q, k, v) = (dice.values(group * d), dice.values(keys * stride), dice.values(keys * stride));
        Case { group, d, keys, stride, scale, q, k, v, sinks, slabs }
    }

    fn run(&self, kernels: Kernels) -> Vec<f32> {
        let mut from = 0;
        let slabs = self.slabs.iter().map(|&rows| {
            let at = from * self.stride;
            from += rows;
            KvSlab { keys: &self.k[at..], values: &self.v[at..], rows, stride: self.stride }
        });
        let mut out = vec![7.0; self.q.len()];
        kernels.attend_row(&self.q, &self.sinks, self.scale, slabs, &mut out, &mut Scratch::new());
        out
    }

    fn want(&self, sink: bool) -> Vec<f64> {
        let mut out = vec![0.0; self.q.len()];
        for g in 0..self.group {
            let q = &self.q[g * self.d..][..self.d];
            let score = |j: usize| {
                let k = &self.k[j * self.stride..];
                q.iter().zip(k).map(|(q, k)| *q as f64 * *k as f64).sum::<f64>() * self.scale as f64
            };
            let scores: Vec<f64> = (0..self.keys).map(score).collect();
            let sink = if sink { self.sinks[g] as f64 } else { f64::NEG_INFINITY };
            let m = scores.iter().copied().fold(sink, f64::max);
            let total = (sink - m).exp() + scores.iter().map(|s| (s - m).exp()).sum::<f64>();
            for (j, score) in scores.iter().enumerate() {
                for i in 0..self.d {
                    out[g * self.d + i] += (score - m).exp() / total * self.v[j * self.stride + i] as f64;
                }
            }
        }
        out
    }

    /// The largest distance. A score s carries an error of a few units of |s| or of its parts.
    fn distance(&self, got: &[f32], want: &[f64]) -> f64 {
        got.iter()
            .zip(want)
            .map(|(got, want)| (*got as f64 - want).abs())
            .fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) })
    }

    fn check(&self) {
        let bound = 2e-6 + 4e-7 * self.scale as f64 * self.d as f64;
        every_isa(|kernels| {
            let far = self.distance(&self.run(kernels), &self.want(true));
            let (g, d, keys) = (self.group, self.d, self.keys);
            assert!(far <= bound, "{:?}, G {g}, D {d}, {keys} keys: off by {far:e}", kernels.isa());
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn attention_is_right(g in 1..18usize, d in 1..140usize, keys in 0..300usize, seed: u64) {
        Case::new(g, d, keys, 0.3, seed).check();
    }
}

#[test]
fn model_shapes() {
    for keys in [0, 1, 2, 63, 64, 65, 128, 1000] {
        Case::new(8, 64, keys, 0.125, keys as u64).check();
        Case::new(8, 64, keys, 40.0, keys as u64).check();
        Case::new(4, 16, keys, 3.0, keys as u64).check();
        Case::new(128, 32, keys.min(70), 1.0, keys as u64).check();
    }
}

/// A check that can fail: without the sink the result is elsewhere, and so it is without one key.
#[test]
fn sink_and_every_key_are_seen() {
    let case = Case::new(8, 64, 130, 0.125, 3);
    every_isa(|kernels| {
        assert!(case.distance(&case.run(kernels), &case.want(false)) > 1e-4);
        let mut shorter = Case::new(8, 64, 130, 0.125, 3);
        *shorter.slabs.last_mut().unwrap() -= 1;
        assert!(case.distance(&shorter.run(kernels), &case.want(true)) > 1e-4);
    });
}

/// A score of −∞ (a masked key) counts for nothing, even as the first.
#[test]
fn nothing_is_nan_that_need_not_be() {
    let (q, sinks) = ([1.0, 0.0], [f32::NEG_INFINITY]);
    let keys = [f32::NEG_INFINITY, 0.0, 1.0, 0.0];
    every_isa(|kernels| {
        let slab = |at: usize| KvSlab { keys: &keys[at..], values: &[3.0, 4.0], rows: 1, stride: 2 };
        let mut out = [0.0; 2];
        kernels.attend_row(&q, &sinks, 1.0, [slab(2), slab(0)], &mut out, &mut Scratch::new());
        assert_eq!(out, [3.0, 4.0], "{:?}", kernels.isa());
    });
}
