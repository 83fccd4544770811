//! Attention of tokens over paged keys, against a softmax in f64 over all keys and the sink at once. What no row may read
//! is NaN, or not there: keys beyond the last token, blocks that a window has left.

use super::*;
use proptest::prelude::*;
use std::ops::Range;

#[derive(Clone)]
struct Case {
    group: usize,
    d: usize,
    tokens: usize,
    position: usize,
    window: usize,
    /// Sizes of scores: large ones drive the softmax into its corners.
    scale: f32,
    stride: usize,
    q: Vec<f32>,
    /// f32 [keys, D]
    k: Vec<f32>,
    v: Vec<f32>,
    sinks: Vec<f32>,
}

/// Mistakes that must be seen.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    NoSink,
    OneKeyLess,
    OneKeyMore,
    NextHead,
}

impl Case {
    fn new(group: usize, d: usize, tokens: usize, position: usize, seed: u64) -> Case {
        let dice = &mut Dice::new(seed);
        let stride = group * d + dice.below(3) * 4;
        let keys = position + tokens;
        let mut sinks = dice.values(group);
        if dice.below(3) == 0 {
            sinks[0] = f32::NEG_INFINITY;
        }
        let (q, k, v) = (dice.values(tokens * stride), dice.values(keys * d), dice.values(keys * d));
        Case { group, d, tokens, position, window: usize::MAX, scale: 0.3, stride, q, k, v, sinks }
    }

    fn within(self, window: usize) -> Case {
        Case { window, ..self }
    }

    fn scaled(self, scale: f32) -> Case {
        Case { scale, ..self }
    }

    fn queries(&self, tokens: Range<usize>) -> Queries<'_> {
        let q = &self.q[tokens.start * self.stride..];
        let Case { stride, group, d: head_dim, window, scale, .. } = *self;
        let position = self.position + tokens.start;
        Queries { q, stride, tokens: tokens.len(), group, head_dim, position, window, scale }
    }

    /// [blocks][keys, values], NaN where no position is.
    fn cache<E: KvElement>(&self) -> Vec<[Vec<E>; 2]> {
        let (keys, d) = (self.position + self.tokens, self.d);
        let blocks = keys.div_ceil(KV_BLOCK);
        let mut cache =
            vec![
                [vec![E::from_f32(f32::NAN); d * KV_BLOCK], vec![E::from_f32(f32::NAN); d * KV_BLOCK]];
                blocks
            ];
        for key in 0..keys {
            let (block, row) = (&mut cache[key / KV_BLOCK], key % KV_BLOCK);
            for i in 0..d {
                block[0][i * KV_BLOCK + row] = E::from_f32(self.k[key * d + i]);
                block[1][row * d + i] = E::from_f32(self.v[key * d + i]);
            }
        }
        cache
    }

    /// f32 [tokens, G, D]: `height` tokens at once, parts of the keys apart or together.
    fn run<E: KvElement>(&self, kernels: Kernels, height: usize, apart: bool) -> Vec<f32> {
        let (cache, mut scratch) = (self.cache::<E>(), Scratch::new());
        let seen_from = self.queries(0..1).keys().start / KV_BLOCK;
        let block = |block: usize| {
            assert!(block >= seen_from, "block {block} is gone");
            KvBlock { keys: &cache[block][0], values: &cache[block][1] }
        };
        let mut out = vec![7.0; self.tokens * self.group * self.d];
        for first in (0..self.tokens).step_by(height) {
            let queries = self.queries(first..self.tokens.min(first + height));
            let shape = PartShape::new(queries.rows(), self.d);
            let step = if apart { KEYS_SPLIT } else { usize::MAX };
            let parts: Vec<Vec<f32>> = (0..queries.keys().end.div_ceil(step))
                .map(|split| {
                    let mut part = vec![f32::NAN; shape.len()];
                    let keys = split * step..(split * step).saturating_add(step);
                    kernels.attend(&queries, keys, &block, &mut part, &mut scratch);
                    part
                })
                .collect();
            for token in 0..queries.tokens {
                let out = &mut out[(first + token) * self.group * self.d..][..self.group * self.d];
                kernels.attend_finish(
                    out,
                    &self.sinks,
                    shape,
                    token * self.group,
                    parts.iter().map(Vec::as_slice),
                );
            }
        }
        out
    }

    fn want<E: KvElement>(&self, fault: Fault) -> Vec<f64> {
        let (d, held) = (self.d, |x: f32| f64::from(E::from_f32(x).to_f32()));
        let mut out = vec![0.0; self.tokens * self.group * d];
        for (row, out) in out.chunks_exact_mut(d).enumerate() {
            let (token, g) = (row / self.group, row % self.group);
            let head = if fault == Fault::NextHead { (g + 1) % self.group } else { g };
            let q = &self.q[token * self.stride + head * d..][..d];
            let end = self.position + token + 1;
            let window = match fault {
                Fault::OneKeyLess => self.window.saturating_sub(1),
                Fault::OneKeyMore => self.window.saturating_add(1),
                _ => self.window,
            };
            let keys = end.saturating_sub(window)..end;
            let score = |key: usize| {
                let k = &self.k[key * d..][..d];
                q.iter().zip(k).map(|(q, k)| f64::from(*q) * held(*k)).sum::<f64>() * f64::from(self.scale)
            };
            let scores: Vec<f64> = keys.clone().map(score).collect();
            let sink = if fault == Fault::NoSink { f64::NEG_INFINITY } else { f64::from(self.sinks[g]) };
            let m = scores.iter().copied().fold(sink, f64::max);
            let total = (sink - m).exp() + scores.iter().map(|s| (s - m).exp()).sum::<f64>();
            for (key, score) in keys.zip(scores) {
                let v = &self.v[key * d..][..d];
                out.iter_mut().zip(v).for_each(|(out, v)| *out += (score - m).exp() / total * held(*v));
            }
        }
        out
    }

    /// What the sums of f32 may be off by: a score carries an error of a few units of itself or of its parts.
    fn bound(&self) -> f64 {
        2e-6 + 4e-7 * f64::from(self.scale) * self.d as f64
    }

    fn check_as<E: KvElement>(&self) {
        let want = self.want::<E>(Fault::None);
        every_isa(|kernels| {
            let got = self.run::<E>(kernels, 16, false);
            let far = distance(&got, &want);
            let Case { group, d, tokens, position, window, .. } = self;
            assert!(
                far <= self.bound(),
                "{:?}, {} bytes, G {group}, D {d}, {tokens} tokens at {position}, window {window}: off by {far:e}",
                kernels.isa(),
                size_of::<E>()
            );
        });
    }

    fn check(&self) {
        self.check_as::<f32>();
        self.check_as::<u16>();
    }
}

/// The largest; a NaN is as far as can be.
fn distance(got: &[f32], want: &[f64]) -> f64 {
    let apart = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - want).abs());
    apart.fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn attention_is_right(
        g in 1..17usize, d in 1..140usize, tokens in 1..40usize, position in 0..200usize, window in 1..250usize, seed: u64,
    ) {
        let window = if window < 200 { window } else { usize::MAX };
        Case::new(g, d, tokens, position, seed).within(window).check();
    }
}

#[test]
fn model_shapes() {
    // One row, a chunk that begins in a block, whole tiles of queries and more, at the edges of blocks and of tiles.
    for (tokens, position) in [(1, 0), (1, 15), (1, 64), (1, 1000), (7, 60), (16, 0), (33, 127), (40, 500)] {
        let seed = (tokens * 1000 + position) as u64;
        for window in [usize::MAX, 128] {
            Case::new(8, 64, tokens, position, seed).scaled(0.125).within(window).check();
        }
        // Scores so far apart that one key takes all.
        Case::new(8, 64, tokens, position, seed).scaled(40.0).check();
    }
    for (group, d) in [(1, 64), (2, 32), (4, 96), (16, 64), (3, 16), (128, 32)] {
        Case::new(group, d, 17, 50, 5).within(20).check();
    }
}

#[test]
fn windows_end_where_they_should_at_every_place_in_a_block() {
    for position in 120..150 {
        Case::new(2, 32, 1, position, position as u64).within(128).check();
        Case::new(2, 32, 20, position, position as u64).within(13).check();
    }
}

/// Whatever rows pass together, and whether parts are summed by one call or by several.
#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    for (tokens, position, window) in
        [(21, 0, usize::MAX), (5, 2500, usize::MAX), (40, 1010, 128), (3, 2047, 1500)]
    {
        let case = Case::new(8, 64, tokens, position, 9).within(window);
        let other_shape = Case::new(3, 24, tokens, position, 9).within(window);
        for case in [case, other_shape] {
            every_isa(|kernels| {
                let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                let one = bits(case.run::<u16>(kernels, 1, true));
                for (height, apart) in [(1, false), (2, true), (16, false), (16, true), (7, true)] {
                    let other = bits(case.run::<u16>(kernels, height, apart));
                    assert!(one == other, "{:?}, {height} tokens at once, apart: {apart}", kernels.isa());
                }
            });
            case.check();
        }
    }
}

/// A check that can fail.
#[test]
fn mistakes_are_seen() {
    let case = Case::new(8, 64, 20, 130, 3).scaled(0.125).within(100);
    every_isa(|kernels| {
        let got = case.run::<u16>(kernels, 16, false);
        assert!(distance(&got, &case.want::<u16>(Fault::None)) <= case.bound());
        for fault in [Fault::NoSink, Fault::OneKeyLess, Fault::OneKeyMore, Fault::NextHead] {
            assert!(distance(&got, &case.want::<u16>(fault)) > 50.0 * case.bound());
        }
        // The cache in f16 is not that in f32.
        assert!(distance(&got, &case.want::<f32>(Fault::None)) > 5.0 * case.bound());
    });
}

/// Of no keys at all, and of scores that are −∞, the sink is left.
#[test]
fn nothing_is_nan_that_need_not_be() {
    let mut case = Case::new(2, 16, 1, 70, 1);
    case.sinks = vec![0.5, 1.0];
    case.q.fill(1.0);
    case.k[..64 * 16].fill(f32::NEG_INFINITY);
    every_isa(|kernels| {
        let got = case.run::<f32>(kernels, 1, false);
        let mut seen = case.clone();
        (seen.k, seen.v) = (case.k[64 * 16..].to_vec(), case.v[64 * 16..].to_vec());
        seen.position = 6;
        assert!(distance(&got, &seen.want::<f32>(Fault::None)) <= case.bound(), "{:?}", kernels.isa());

        let (shape, mut out) = (PartShape::new(2, 16), vec![7.0; 32]);
        let mut part = vec![f32::NAN; shape.len()];
        let none = |_: usize| -> KvBlock<'_, f32> { panic!("there is no block") };
        kernels.attend(&case.queries(0..1), 5..5, &none, &mut part, &mut Scratch::new());
        kernels.attend_finish(&mut out, &case.sinks, shape, 0, [part.as_slice()].into_iter());
        assert_eq!(out, vec![0.0; 32]);
    });
}

#[test]
fn what_is_too_large_for_f16_is_its_largest_and_nan_stays() {
    let held = |x: f32| <u16 as KvElement>::from_f32(x).to_f32();
    for (x, expected) in
        [(1e6, 65504.0), (-1e6, -65504.0), (f32::INFINITY, 65504.0), (65519.0, 65504.0), (0.1, 0.099975586)]
    {
        assert_eq!(held(x), expected, "{x}");
    }
    assert!(held(f32::NAN).is_nan());
}

/// Every f16 there is, on every instruction set, at odd addresses too: scales lie there in a room of bytes.
#[test]
fn f16_is_widened_exactly() {
    struct Widen<'a>(&'a [u8], &'a mut Vec<f32>);
    impl Op for Widen<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for bits in self.0.chunks_exact(2 * S::LANES) {
                let mut values = [0.0; 16];
                // SAFETY: a chunk has LANES values, and there is room for 16.
                unsafe { s.store(values.as_mut_ptr(), s.load_f16(bits.as_ptr().cast())) };
                self.1.extend(&values[..S::LANES]);
            }
        }
    }
    let all: Vec<u16> = (0..=u16::MAX).collect();
    every_isa(|kernels| {
        // One of the two is odd.
        for shift in [0, 1] {
            let mut wide = Vec::new();
            let bytes = all.iter().flat_map(|bits| bits.to_ne_bytes());
            let room: Vec<u8> = vec![0; shift].into_iter().chain(bytes).collect();
            kernels.dispatch(Widen(&room[shift..], &mut wide));
            for (bits, wide) in all.iter().zip(wide) {
                let expected = half::f16::from_bits(*bits).to_f32();
                assert!(
                    wide == expected || wide.is_nan() && expected.is_nan(),
                    "{:?}, {bits:x}",
                    kernels.isa()
                );
            }
        }
    });
}
