//! Dense weights made int8: how far a product is from that of the bf16 they were made of, with every precision of activations.

use super::*;
use proptest::prelude::*;
use std::ops::Range;

struct Case {
    /// bf16 [N, K]
    bits: Vec<u16>,
    rows: usize,
    columns: usize,
    /// f32 [T, K]
    x: Vec<f32>,
    tokens: usize,
}

impl Case {
    fn new(rows: usize, blocks: usize, tokens: usize, seed: u64) -> Case {
        let dice = &mut Dice::new(seed);
        let columns = blocks * 32;
        Case { bits: dice.bf16s(rows * columns), rows, columns, x: dice.values(tokens * columns), tokens }
    }

    /// y f32 [T, N], and what was lost of the weights.
    fn run(&self, kernels: Kernels, precision: Precision) -> (Vec<f32>, Loss) {
        let mut bytes: Vec<u8> = self.bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let loss = kernels.int8_from_bf16(&mut bytes, (self.rows, self.columns));
        let (numbers, scales) = GroupedInt8::bytes(self.rows, self.columns);
        bytes.truncate(numbers + scales);
        let w = GroupedInt8::new(kernels, &bytes, (self.rows, self.columns));
        let mut x = Activations::with_room(precision, self.tokens, self.columns);
        for (token, row) in self.x.chunks_exact(self.columns).enumerate() {
            // SAFETY: there is one thread.
            unsafe { x.shared().set(kernels, token, 0, row) };
        }
        let ids: Vec<u32> = (0..self.tokens as u32).collect();
        let (mut y, mut scratch) = (vec![f32::NAN; self.tokens * self.rows], Scratch::new());
        for row in (0..self.rows).step_by(96) {
            let rows: Range<usize> = row..self.rows.min(row + 96);
            let out = kernels.int8_product(w, &x, &ids, rows.clone(), &mut scratch);
            for (t, out) in out.chunks_exact(rows.len()).enumerate() {
                y[t * self.rows..][rows.clone()].copy_from_slice(out);
            }
        }
        (y, loss)
    }

    /// The first element further from f64 than half a step of each weight and of each activation explains.
    fn fault(&self, y: &[f32], precision: Precision) -> Option<String> {
        let most = match precision {
            Precision::F32 => f64::INFINITY,
            Precision::TwoPlanes => 16319.0,
            Precision::OnePlane => 127.0,
        };
        let largest = |x: &[f64]| x.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        for t in 0..self.tokens {
            let x: Vec<f64> =
                self.x[t * self.columns..][..self.columns].iter().map(|x| f64::from(*x)).collect();
            for n in 0..self.rows {
                let w: Vec<f64> =
                    self.bits[n * self.columns..][..self.columns].iter().map(|bits| widened(*bits)).collect();
                let (mut want, mut bound) = (0.0, 0.0);
                for (w, x) in w.chunks(32).zip(x.chunks(32)) {
                    // The scale is rounded to f16, so a step is a little longer or the largest is cut.
                    let w_step = largest(w) * (0.5 / 127.0 + f64::powi(2.0, -11));
                    let x_step = largest(x) / most / 2.0;
                    for (w, x) in w.iter().zip(x) {
                        want += w * x;
                        bound += w_step * x.abs() + (w.abs() + w_step) * x_step + 1e-6 * (w * x).abs();
                    }
                }
                let got = y[t * self.rows + n];
                if (f64::from(got) - want).abs() > bound || got.is_nan() {
                    return Some(format!("y[{t}, {n}] is {got}, not {want} within {bound:e}"));
                }
            }
        }
        None
    }
}

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::TwoPlanes, Precision::OnePlane];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn products_are_near_those_of_bf16(n in 1..60usize, blocks in 1..8usize, t in 1..20usize, seed: u64) {
        let case = Case::new(n, blocks, t, seed);
        for isa in Isa::available() {
            for precision in PRECISIONS {
                let (y, loss) = case.run(Kernels::new(isa), precision);
                prop_assert_eq!(case.fault(&y, precision), None, "{:?}, {:?}", isa, precision);
                prop_assert!((0.001..0.01).contains(&loss.relative()), "{loss:?}");
            }
        }
    }
}

/// Every number of −127..=127 against every ISA, exactly: weights that need no rounding, and unit vectors.
#[test]
fn what_needs_no_rounding_comes_back() {
    // One column of each row is ±127, so that the scale is 1.
    let weight = |row: usize, k: usize| if k == 31 { 127.0 } else { ((row * 31 + k) % 255) as f32 - 127.0 };
    let bits = (0..9 * 32).map(|i| (weight(i / 32, i % 32).to_bits() >> 16) as u16).collect();
    let x = (0..32 * 32).map(|i| (i % 32 == i / 32) as u8 as f32).collect();
    let case = Case { bits, rows: 9, columns: 32, x, tokens: 32 };
    every_isa(|kernels| {
        for precision in PRECISIONS {
            let (y, loss) = case.run(kernels, precision);
            assert_eq!(loss.error, 0.0);
            for (i, got) in y.iter().enumerate() {
                let want = weight(i % 9, i / 9);
                assert!((got - want).abs() <= want.abs() * 1e-6, "{precision:?}: {got}, not {want}");
            }
        }
    });
}

#[test]
fn planted_faults_are_seen() {
    let (case, mut spoiled) = (Case::new(20, 3, 4, 6), Case::new(20, 3, 4, 6));
    spoiled.bits[3 * 96 + 40..3 * 96 + 64].iter_mut().for_each(|bits| *bits ^= 0x8000);
    every_isa(|kernels| {
        for precision in PRECISIONS {
            assert!(case.fault(&spoiled.run(kernels, precision).0, precision).is_some(), "{precision:?}");
        }
    });
}
