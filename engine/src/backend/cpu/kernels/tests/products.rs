//! bf16 products: shapes, strides, tails, biases, both writes, few tokens and many.

use super::*;
use proptest::prelude::*;

struct Case {
    /// bf16 [N, stride]
    bits: Vec<u16>,
    stride: usize,
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
        let x_stride = columns + dice.below(5);
        Case {
            bits,
            stride,
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
        widened(self.bits[row * self.stride + k])
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
            let w = Matrix::with_stride(&self.bits, self.rows, self.columns, self.stride);
            let x = kernels.bf16_input(x, &mut buffer);
            kernels.bf16_product(w, &x, bias, tile, self.write, &mut scratch);
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
}

#[test]
fn every_token_count_to_70() {
    for t in 0..=70 {
        Case::bf16(13, 67, t, t as u64).check();
    }
}

/// More tokens than pass a panel at once, more rows and columns than a panel has.
#[test]
fn many_panels() {
    Case::bf16(101, 777, 301, 1).check();
}

/// The model's own shape, long enough for rounding to pile up.
#[test]
fn model_shape() {
    for t in [1, 3, 8, 17] {
        Case::bf16(40, 2880, t, 3).check();
    }
}

/// The checks above can fail: each of these mistakes in the weights is seen.
#[test]
fn planted_faults_are_seen() {
    let mut spoiled = Case::bf16(11, 65, 3, 6);
    spoiled.bits[64] ^= 0x40;
    every_isa(|kernels| assert!(Case::bf16(11, 65, 3, 6).fault(&spoiled.run(kernels)).is_some()));
}

#[test]
#[should_panic(expected = "arranged for another instruction set")]
fn input_for_others_is_refused() {
    let kernels = Kernels::new(Isa::Portable);
    let other = Isa::available().last().filter(|isa| *isa != Isa::Portable);
    let other = Kernels::new(other.expect("arranged for another instruction set: this machine has no other"));
    let (mut buffer, mut y) = (InputBuffer::default(), [0.0]);
    let x = kernels.bf16_input(Matrix::new(&[0.0; 32], 1, 32), &mut buffer);
    let w = Matrix::new(&[0; 32], 1, 32);
    other.bf16_product(w, &x, None, TileMut::new(&mut y, 1, 1), Write::Set, &mut Scratch::new());
}

/// Buffers taken at start do not move in a step.
#[test]
fn buffers_with_room_do_not_grow() {
    let x = vec![1.0; 33 * 64];
    every_isa(|kernels| {
        let mut buffer = InputBuffer::with_room(33, 64);
        let before = buffer.take(1).as_ptr();
        for tokens in [1, 15, 16, 33] {
            kernels.bf16_input(Matrix::new(&x, tokens, 64), &mut buffer);
            assert_eq!(buffer.take(1).as_ptr(), before);
        }
    });
}
