//! Products with MXFP4 in groups of rows, with every precision of activations: shapes, tails, few tokens and many,
//! the order of the weights, scales without an exponent.

use super::*;
use proptest::prelude::*;
use std::ops::Range;

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::TwoPlanes, Precision::OnePlane];

/// One element of an MXFP4 row, from the bits: sign, two bits of exponent, one of mantissa.
fn fp4(code: u8) -> f64 {
    let (exponent, mantissa) = (code >> 1 & 3, (code & 1) as f64);
    let size = match exponent {
        0 => mantissa / 2.0,
        _ => (1.0 + mantissa / 2.0) * f64::powi(2.0, exponent as i32 - 1),
    };
    if code & 8 == 0 { size } else { -size }
}

fn e8m0(scale: u8) -> f64 {
    if scale == 255 { f64::NAN } else { f64::powi(2.0, scale as i32 - 127) }
}

struct Case {
    /// As in a checkpoint: u8 [N, K/32, 16] and u8 [N, K/32].
    blocks: Vec<u8>,
    scales: Vec<u8>,
    rows: usize,
    columns: usize,
    /// f32 [T, K]
    x: Vec<f32>,
    /// Rows of x, in any order, some more than once.
    tokens: Vec<u32>,
    /// The first row of a second product, in groups.
    cut: usize,
}

impl Case {
    fn new(rows: usize, blocks: usize, tokens: usize, seed: u64) -> Case {
        let dice = &mut Dice::new(seed);
        let (count, rows_of_x) = (rows * blocks, tokens.max(1));
        Case {
            blocks: dice.bytes(count * 16),
            scales: (0..count).map(|_| 110 + dice.below(20) as u8).collect(),
            rows,
            columns: blocks * 32,
            x: dice.values(rows_of_x * blocks * 32),
            tokens: (0..tokens).map(|_| dice.below(rows_of_x) as u32).collect(),
            cut: dice.below(rows / 16 + 1) * 16,
        }
    }

    fn weight(&self, row: usize, k: usize) -> f64 {
        let block = row * (self.columns / 32) + k / 32;
        let byte = self.blocks[block * 16 + k % 32 / 2];
        fp4(if k.is_multiple_of(2) { byte & 15 } else { byte >> 4 }) * e8m0(self.scales[block])
    }

    /// y f32 [T, N]
    fn run(&self, kernels: Kernels, precision: Precision) -> Vec<f32> {
        let (mut blocks, mut scales) = (self.blocks.clone(), self.scales.clone());
        let shape = (self.rows, self.columns);
        let plain = kernels.regroup(&mut blocks, &mut scales, shape, &mut Vec::new());
        let w = GroupedMxfp4::new(kernels, &blocks, &scales, shape, plain);
        let rows_of_x = self.x.len().checked_div(self.columns).unwrap_or(self.tokens.len().max(1));
        let mut x = Activations::with_room(precision, rows_of_x, self.columns);
        for (token, row) in self.x.chunks_exact(self.columns.max(1)).enumerate() {
            // SAFETY: there is one thread.
            unsafe { x.shared().set(kernels, token, 0, row) };
        }
        let mut y = vec![f32::NAN; self.tokens.len() * self.rows];
        let mut scratch = Scratch::new();
        let cut = |rows: Range<usize>| {
            let end = rows.end;
            rows.step_by(96).map(move |row| row..end.min(row + 96))
        };
        for rows in cut(0..self.cut).chain(cut(self.cut..self.rows)) {
            for (i, tokens) in self.tokens.chunks(64).enumerate() {
                let out = kernels.mxfp4_product(w, &x, tokens, rows.clone(), &mut scratch);
                for (t, out) in out.chunks_exact(rows.len().max(1)).enumerate() {
                    y[(i * 64 + t) * self.rows..][rows.clone()].copy_from_slice(out);
                }
            }
        }
        y
    }

    /// The first element further from f64 than rounding explains: half a step of each block's activations, a few units
    /// of Σ |w·x|, and as many more as a random walk of the roundings of one chain makes.
    fn fault(&self, y: &[f32], precision: Precision) -> Option<String> {
        let most = match precision {
            Precision::F32 => f64::INFINITY,
            Precision::TwoPlanes => 16319.0,
            Precision::OnePlane => 127.0,
        };
        for (t, token) in self.tokens.iter().enumerate() {
            let x = &self.x[*token as usize * self.columns..][..self.columns];
            for n in 0..self.rows {
                let (mut want, mut size, mut steps) = (0.0, 0.0, 0.0);
                for (b, x) in x.chunks(32).enumerate() {
                    let largest = x.iter().fold(0.0f32, |max, x| max.max(x.abs())) as f64;
                    for (k, x) in x.iter().enumerate() {
                        let w = self.weight(n, b * 32 + k);
                        want += w * *x as f64;
                        size += (w * *x as f64).abs();
                        steps += w.abs() * largest / most / 2.0;
                    }
                }
                let bound = (4.0 + (self.columns as f64).sqrt()) * f32::EPSILON as f64 * size + 1.001 * steps;
                let got = y[t * self.rows + n];
                if (got as f64 - want).abs() > bound || got.is_nan() {
                    return Some(format!("y[{t}, {n}] is {got}, not {want} within {bound:e}"));
                }
            }
        }
        None
    }

    fn check(&self) {
        every_isa(|kernels| {
            for precision in PRECISIONS {
                if let Some(fault) = self.fault(&self.run(kernels, precision), precision) {
                    let (t, n, k) = (self.tokens.len(), self.rows, self.columns);
                    panic!("{:?}, {precision:?}, T {t}, N {n}, K {k}: {fault}", kernels.isa());
                }
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn products_are_right(n in 0..60usize, blocks in 0..10usize, t in 0..70usize, seed: u64) {
        Case::new(n, blocks, t, seed).check();
    }

    /// A token alone and the same token in a batch have the same bits.
    #[test]
    fn tokens_do_not_see_each_other(n in 1..40usize, blocks in 1..12usize, t in 1..40usize, seed: u64) {
        let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
        for isa in Isa::available() {
            for precision in PRECISIONS {
                let mut case = Case::new(n, blocks, t, seed);
                let (all, batch) = (case.tokens.clone(), case.run(Kernels::new(isa), precision));
                for (token, batch) in all.into_iter().zip(batch.chunks_exact(n)) {
                    case.tokens = vec![token];
                    prop_assert_eq!(bits(&case.run(Kernels::new(isa), precision)), bits(batch));
                }
            }
        }
    }

    /// Regrouping moves every element to where it is looked for, and loses none.
    #[test]
    fn regrouping_keeps_every_element(n in 0..40usize, blocks in 0..6usize, seed: u64) {
        let case = Case::new(n, blocks, 0, seed);
        for isa in Isa::available() {
            let kernels = Kernels::new(isa);
            let (mut to, mut scales) = (case.blocks.clone(), case.scales.clone());
            let plain = kernels.regroup(&mut to, &mut scales, (n, case.columns), &mut Vec::new());
            let w = GroupedMxfp4::new(kernels, &to, &scales, (n, case.columns), plain);
            for row in 0..n {
                for k in 0..case.columns {
                    prop_assert_eq!(w.element(row, k) as f64, case.weight(row, k));
                }
            }
            let mut back = Vec::new();
            kernels.ungroup(&to, n, Grouped::Blocks, &mut back);
            prop_assert_eq!(&back, &case.blocks);
            kernels.ungroup(&scales, n, Grouped::Scales, &mut back);
            prop_assert_eq!(&back, &case.scales);
        }
    }
}

#[test]
fn every_token_count_to_70() {
    for t in 0..=70 {
        Case::new(21, 5, t, t as u64).check();
    }
}

/// More tokens than pass a panel at once are made of several products; more columns than a panel has.
#[test]
fn many_panels() {
    Case::new(101, 25, 130, 2).check();
}

/// The model's own shape, long enough for rounding to pile up.
#[test]
fn model_shape() {
    for t in [1, 3, 8, 17] {
        Case::new(40, 90, t, 4).check();
    }
}

/// Each byte under each scale, read out one element at a time with a unit vector: exact.
#[test]
fn every_byte_under_every_scale() {
    every_isa(|kernels| {
        for scale in 0..=255 {
            let case = Case {
                blocks: (0..=255u8).flat_map(|byte| [byte; 16]).collect(),
                scales: vec![scale; 256],
                rows: 256,
                columns: 32,
                x: (0..32 * 32).map(|i| (i % 32 == i / 32) as u8 as f32).collect(),
                tokens: (0..32).collect(),
                cut: 48,
            };
            for precision in PRECISIONS {
                // Twice the largest FP4 under these is infinite in f32, and infinity times 0 is NaN.
                if (252..255).contains(&scale) {
                    continue;
                }
                for (i, got) in case.run(kernels, precision).into_iter().enumerate() {
                    let (k, byte) = (i / 256, (i % 256) as u8);
                    let code = if k.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
                    let want = (fp4(code) * e8m0(scale)) as f32;
                    // The scale of the activations is no power of two: one unit in the last place.
                    let near = (got - want).abs() <= want.abs() * f32::EPSILON || (got - want).abs() < 3e-45;
                    let same =
                        got == want || got.is_nan() && want.is_nan() || precision != Precision::F32 && near;
                    let isa = kernels.isa();
                    assert!(
                        same,
                        "{isa:?}, {precision:?}: byte {byte:#x}, element {k}, scale {scale}: {got}, not {want}"
                    );
                }
            }
        }
    });
}

/// Scale 255 spoils its own row, and no other.
#[test]
fn scale_255_is_nan() {
    for tokens in [1, 5, 20] {
        let mut case = Case::new(9, 3, tokens, 5);
        case.scales[4 * 3 + 1] = 255;
        every_isa(|kernels| {
            for precision in PRECISIONS {
                for (i, y) in case.run(kernels, precision).into_iter().enumerate() {
                    assert_eq!(y.is_nan(), i % 9 == 4, "{:?}, y[{}, {}]", kernels.isa(), i / 9, i % 9);
                }
            }
        });
    }
}

/// The checks above can fail: each of these mistakes in the weights is seen.
#[test]
fn planted_faults_are_seen() {
    type Fault = fn(&mut Case);
    let faults: [Fault; 5] = [
        |case| case.blocks.iter_mut().for_each(|byte| *byte = byte.rotate_left(4)),
        |case| case.blocks[64..80].iter_mut().for_each(|byte| *byte ^= 0x88),
        |case| case.blocks.swap(32, 47),
        |case| case.scales[3..6].iter_mut().for_each(|scale| *scale += 1),
        |case| case.scales.swap(2, 3),
    ];
    for tokens in [1, 4, 16] {
        for (i, plant) in faults.iter().enumerate() {
            let [case, mut spoiled] = [(); 2].map(|()| {
                let mut case = Case::new(11, 3, tokens, 6);
                // Alike enough that none is lost beside another.
                case.scales.iter_mut().enumerate().for_each(|(i, scale)| *scale = 120 + (i % 4) as u8);
                case
            });
            plant(&mut spoiled);
            every_isa(|kernels| {
                for precision in PRECISIONS {
                    let y = spoiled.run(kernels, precision);
                    assert!(case.fault(&y, precision).is_some(), "fault {i} passed, {precision:?}");
                }
            });
        }
    }
}

#[test]
#[should_panic(expected = "grouped for another instruction set")]
fn weights_for_others_are_refused() {
    let kernels = Kernels::new(Isa::Portable);
    let other = Isa::available().find(|isa| isa.lanes() != Isa::Portable.lanes());
    let other = Kernels::new(other.expect("grouped for another instruction set: this machine has none"));
    let w = GroupedMxfp4::new(kernels, &[0; 128], &[127; 8], (8, 32), true);
    other.mxfp4_product(w, &Activations::with_room(Precision::F32, 1, 32), &[0], 0..8, &mut Scratch::new());
}
