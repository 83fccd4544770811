//! bf16 and MXFP4 products: shapes, strides, tails, biases, both writes, few tokens and many.

use super::*;
use proptest::prelude::*;

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

/// The weights of a test, as the kernels read them and as f64 [N, K].
enum Weights {
    Bf16 { bits: Vec<u16>, stride: usize },
    Mxfp4 { blocks: Vec<u8>, scales: Vec<u8> },
}

struct Case {
    weights: Weights,
    rows: usize,
    columns: usize,
    tokens: usize,
    x: Vec<f32>,
    x_stride: usize,
    bias: Option<Vec<u16>>,
    write: Write,
    /// Where y is cut into tiles.
    cut: usize,
}

impl Case {
    fn bf16(rows: usize, columns: usize, tokens: usize, seed: u64) -> Case {
        let dice = &mut Dice::new(seed);
        let stride = columns + dice.below(5);
        let bits = dice.bf16s(rows * stride);
        Case::around(Weights::Bf16 { bits, stride }, rows, columns, tokens, dice)
    }

    fn mxfp4(rows: usize, blocks: usize, tokens: usize, seed: u64) -> Case {
        let dice = &mut Dice::new(seed);
        let count = rows * blocks;
        let scales = (0..count).map(|_| 110 + dice.below(20) as u8).collect();
        let weights = Weights::Mxfp4 { blocks: dice.bytes(count * 16), scales };
        Case::around(weights, rows, blocks * 32, tokens, dice)
    }

    fn around(weights: Weights, rows: usize, columns: usize, tokens: usize, dice: &mut Dice) -> Case {
        let x_stride = columns + dice.below(5);
        Case {
            weights,
            rows,
            columns,
            tokens,
            x: dice.values(tokens * x_stride),
            x_stride,
            bias: (dice.below(2) == 0).then(|| dice.bf16s(rows)),
            write: if dice.below(2) == 0 { Write::Set } else { Write::Add },
            cut: dice.below(rows + 1),
        }
    }

    fn weight(&self, row: usize, k: usize) -> f64 {
        match &self.weights {
            Weights::Bf16 { bits, stride } => widened(bits[row * stride + k]),
            Weights::Mxfp4 { blocks, scales } => {
                let block = row * (self.columns / 32) + k / 32;
                let byte = blocks[block * 16 + k % 32 / 2];
                fp4(if k.is_multiple_of(2) { byte & 15 } else { byte >> 4 }) * e8m0(scales[block])
            }
        }
    }

    /// y f32 [T, N + 3], of which the last three columns belong to nobody.
    fn run(&self, kernels: Kernels) -> Vec<f32> {
        let stride = self.rows + 3;
        let mut y = vec![OLD; self.tokens * stride];
        let x = Matrix::with_stride(&self.x, self.tokens, self.columns, self.x_stride);
        let mut buffer = InputBuffer::default();
        let (mut scratch, bias) = (Scratch::new(), self.bias.as_deref());
        let (left, right) = TileMut::with_stride(&mut y, self.tokens, self.rows, stride).split_at(self.cut);
        for tile in [left, right] {
            match &self.weights {
                Weights::Bf16 { bits, stride } => {
                    let w = Matrix::with_stride(bits, self.rows, self.columns, *stride);
                    let x = kernels.bf16_input(x, &mut buffer);
                    kernels.bf16_product(w, &x, bias, tile, self.write, &mut scratch);
                }
                Weights::Mxfp4 { blocks, scales } => {
                    let w = Mxfp4Matrix::new(blocks, scales, self.rows, self.columns);
                    let x = kernels.mxfp4_input(x, &mut buffer);
                    kernels.mxfp4_product(w, &x, bias, tile, self.write, &mut scratch);
                }
            }
        }
        y
    }

    /// The first element further from f64 than rounding explains: a few units of Σ |w·x|, and for many tokens,
    /// where one chain runs through all of K, as many more as a random walk of K roundings makes.
    fn fault(&self, y: &[f32]) -> Option<String> {
        let w: Vec<f64> =
            (0..self.rows * self.columns).map(|i| self.weight(i / self.columns, i % self.columns)).collect();
        for t in 0..self.tokens {
            let x = &self.x[t * self.x_stride..][..self.columns];
            for n in 0..self.rows + 3 {
                let got = y[t * (self.rows + 3) + n];
                if n >= self.rows {
                    if got != OLD {
                        return Some(format!("y[{t}, {n}] is outside and was written"));
                    }
                    continue;
                }
                let products =
                    w[n * self.columns..][..self.columns].iter().zip(x).map(|(w, x)| w * *x as f64);
                let bias = self.bias.as_ref().map_or(0.0, |bias| widened(bias[n]));
                let old = if self.write == Write::Add { OLD as f64 } else { 0.0 };
                let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                let want = sum + bias + old;
                let chain = if self.tokens < GEMM_TOKENS { 0.0 } else { (self.columns as f64).sqrt() };
                let bound = (4.0 + chain) * f32::EPSILON as f64 * (size + bias.abs() + old.abs());
                if (got as f64 - want).abs() > bound {
                    return Some(format!("y[{t}, {n}] is {got}, not {want} within {bound:e}"));
                }
            }
        }
        None
    }

    fn check(&self) {
        every_isa(|kernels| {
            if let Some(fault) = self.fault(&self.run(kernels)) {
                let (t, n, k) = (self.tokens, self.rows, self.columns);
                panic!("{:?}, T {t}, N {n}, K {k}: {fault}", kernels.isa());
            }
        });
    }
}

/// What y holds before.
const OLD: f32 = 0.625;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn bf16_is_right(n in 0..60usize, k in 0..300usize, t in 0..70usize, seed: u64) {
        Case::bf16(n, k, t, seed).check();
    }

    #[test]
    fn bf16_is_right_for_few_tokens(n in 0..20usize, k in 0..150usize, t in 0..16usize, seed: u64) {
        Case::bf16(n, k, t, seed).check();
    }

    #[test]
    fn mxfp4_is_right(n in 0..60usize, blocks in 0..10usize, t in 0..70usize, seed: u64) {
        Case::mxfp4(n, blocks, t, seed).check();
    }

    #[test]
    fn mxfp4_is_right_for_few_tokens(n in 0..20usize, blocks in 0..7usize, t in 0..16usize, seed: u64) {
        Case::mxfp4(n, blocks, t, seed).check();
    }

    /// A token alone and the same token in a batch: what MXFP4 promises below GEMM_TOKENS.
    #[test]
    fn few_tokens_do_not_see_each_other(n in 1..20usize, blocks in 1..7usize, t in 1..GEMM_TOKENS, seed: u64) {
        let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
        for isa in Isa::available() {
            let mut case = Case::mxfp4(n, blocks, t, seed);
            let (all, batch) = (case.x.clone(), case.run(Kernels::new(isa)));
            case.tokens = 1;
            for token in 0..t {
                case.x = all[token * case.x_stride..].to_vec();
                let alone = case.run(Kernels::new(isa));
                prop_assert_eq!(bits(&alone), bits(&batch[token * (n + 3)..][..n + 3]));
            }
        }
    }
}

#[test]
fn every_token_count_to_70() {
    for t in 0..=70 {
        Case::bf16(13, 67, t, t as u64).check();
        Case::mxfp4(13, 5, t, t as u64).check();
    }
}

/// More tokens than pass a panel at once, more rows and columns than a panel has.
#[test]
fn many_panels() {
    Case::bf16(101, 777, 301, 1).check();
    Case::mxfp4(101, 25, 301, 2).check();
}

/// The model's own shape, long enough for rounding to pile up.
#[test]
fn model_shape() {
    for t in [1, 3, 8, 17] {
        Case::bf16(40, 2880, t, 3).check();
        Case::mxfp4(40, 90, t, 4).check();
    }
}

/// Each byte under each scale, read out one element at a time with a unit vector: exact.
#[test]
fn every_byte_under_every_scale() {
    let blocks: Vec<u8> = (0..=255u8).flat_map(|byte| [byte; 16]).collect();
    let unit: Vec<f32> = (0..32 * 32).map(|i| (i % 32 == i / 32) as u8 as f32).collect();
    every_isa(|kernels| {
        let (mut buffer, mut scratch) = (InputBuffer::default(), Scratch::new());
        let mut read = |scale: u8, tokens: usize| {
            let scales = [scale; 256];
            let w = Mxfp4Matrix::new(&blocks, &scales, 256, 32);
            let mut y = vec![0.0; 32 * 256];
            for (y, x) in y.chunks_mut(tokens * 256).zip(unit.chunks(tokens * 32)) {
                let x = kernels.mxfp4_input(Matrix::new(x, tokens, 32), &mut buffer);
                kernels.mxfp4_product(w, &x, None, TileMut::new(y, tokens, 256), Write::Set, &mut scratch);
            }
            y
        };
        for scale in 0..=255 {
            for tokens in [1, 2, 4, 8, 32] {
                // An element that overflows is infinite, and the zeros of the unit vector make it NaN.
                if (252..255).contains(&scale) && tokens >= GEMM_TOKENS {
                    continue;
                }
                for (i, got) in read(scale, tokens).into_iter().enumerate() {
                    let (k, byte) = (i / 256, (i % 256) as u8);
                    let code = if k.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
                    let want = (fp4(code) * e8m0(scale)) as f32;
                    let same = got == want || got.is_nan() && want.is_nan();
                    let isa = kernels.isa();
                    assert!(
                        same,
                        "{isa:?}, T {tokens}: byte {byte:#x}, element {k}, scale {scale}: {got}, not {want}"
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
        let mut case = Case::mxfp4(9, 3, tokens, 5);
        if let Weights::Mxfp4 { scales, .. } = &mut case.weights {
            scales[4 * 3 + 1] = 255;
        }
        every_isa(|kernels| {
            for (i, y) in case.run(kernels).into_iter().enumerate() {
                assert_eq!(y.is_nan(), i % 12 == 4, "{:?}, y[{}, {}]", kernels.isa(), i / 12, i % 12);
            }
        });
    }
}

/// The checks above can fail: each of these mistakes in the weights is seen.
#[test]
fn planted_faults_are_seen() {
    type Fault = fn(&mut Vec<u8>, &mut Vec<u8>);
    let faults: [Fault; 5] = [
        |blocks, _| blocks.iter_mut().for_each(|byte| *byte = byte.rotate_left(4)),
        |blocks, _| blocks[77] ^= 0x10,
        |blocks, _| blocks.swap(32, 47),
        |_, scales| scales[5] += 1,
        |_, scales| scales.swap(2, 3),
    ];
    for tokens in [1, 4, 16] {
        for (i, plant) in faults.iter().enumerate() {
            let case = Case::mxfp4(11, 3, tokens, 6);
            let mut spoiled = Case::mxfp4(11, 3, tokens, 6);
            if let Weights::Mxfp4 { blocks, scales } = &mut spoiled.weights {
                plant(blocks, scales);
            }
            every_isa(|kernels| assert!(case.fault(&spoiled.run(kernels)).is_some(), "fault {i} passed"));
        }
    }
    let mut spoiled = Case::bf16(11, 65, 3, 6);
    if let Weights::Bf16 { bits, .. } = &mut spoiled.weights {
        bits[64] ^= 0x40;
    }
    every_isa(|kernels| assert!(Case::bf16(11, 65, 3, 6).fault(&spoiled.run(kernels)).is_some()));
}

#[test]
#[should_panic(expected = "arranged for something else")]
fn input_for_other_weights_is_refused() {
    let (x, kernels) = ([0.0; 32], Kernels::detect());
    let (mut buffer, mut y) = (InputBuffer::default(), [0.0]);
    let x = kernels.bf16_input(Matrix::new(&x, 1, 32), &mut buffer);
    let w = Mxfp4Matrix::new(&[0; 16], &[0], 1, 32);
    kernels.mxfp4_product(w, &x, None, TileMut::new(&mut y, 1, 1), Write::Set, &mut Scratch::new());
}

/// Buffers taken at start do not move in a step.
#[test]
fn buffers_with_room_do_not_grow() {
    let x = vec![1.0; 33 * 64];
    every_isa(|kernels| {
        let mut buffer = InputBuffer::with_room(33, 64);
        let before = buffer.take(1).as_ptr();
        for tokens in [1, 15, 16, 33] {
            kernels.mxfp4_input(Matrix::new(&x, tokens, 64), &mut buffer);
            assert_eq!(buffer.take(1).as_ptr(), before);
        }
    });
}
