//! Embedding, residual and norm: the bits of the CPU backend, for ranks on different machines must route alike.

use crate::support;
use flotilla_engine::backend::cpu::kernels::Kernels;
use flotilla_engine::backend::cuda::norm::{self, Added, NormKernels};
use flotilla_engine::cuda::{Card, Source};
use flotilla_shared::sampling::mix;
use half::{bf16, f16};

const EPS: f32 = 1e-5;
/// What outputs hold before: a NaN that no kernel makes.
const POISON: u32 = 0x7fa5_a5a5;
const POISON_16: u16 = 0x7fa5;

/// (H, T of the launch, rows that there are). H / 16 steps are taken by 10, 4, 2, 2 and 12.
const SHAPES: [(usize, usize, usize); 5] = [(160, 8, 3), (128, 5, 5), (32, 2, 2), (1056, 3, 2), (2880, 4, 4)];

/// One replace each in norm.cu that [`check`] must notice.
pub const PLANTED: [(&str, &str, &str); 4] = [
    (
        "lanes are folded 1, 2, 4, 8",
        "half = LANES / 2; half > 0; half /= 2",
        "half = 1; half < LANES; half *= 2",
    ),
    (
        "the factor is f32",
        "1.0 / sqrt(mean + static_cast<double>(eps))",
        "rsqrtf(static_cast<float>(mean) + eps)",
    ),
    (
        "rows past the batch are written",
        "if (t >= *rows) return;\n    const unsigned own",
        "const unsigned own",
    ),
    ("a logit row is normed in place of its number", "(logit_rows[i]) * HIDDEN", "(i) * HIDDEN"),
];

#[test]
fn x_and_the_normed_row_have_the_bits_of_the_cpu() {
    for test in support::cards() {
        check(&test.card, &|source| source).unwrap();
    }
}

/// Every kernel of norm.cu against the CPU's, with a source that `edit` may have changed.
pub fn check(card: &Card, edit: &dyn Fn(Source) -> Source) -> Result<(), String> {
    for (seed, (hidden, t, rows)) in SHAPES.into_iter().enumerate() {
        let kernels = NormKernels::compiled(card, &edit(norm::source(hidden)), hidden, EPS).unwrap();
        let case = Case::new(card, hidden, t, rows, seed as u64 + 1);
        let name = format!("H {hidden}, {rows} of {t} rows, seed {}", seed + 1);
        case.attention(&kernels).map_err(|error| format!("attention, {name}: {error}"))?;
        case.mlp(&kernels).map_err(|error| format!("mlp, {name}: {error}"))?;
        case.last(&kernels).map_err(|error| format!("final, {name}: {error}"))?;
        case.embed(&kernels).map_err(|error| format!("embed, {name}: {error}"))?;
    }
    Ok(())
}

struct Case<'a> {
    card: &'a Card,
    hidden: usize,
    t: usize,
    rows: usize,
    x: Vec<f32>,
    y: Vec<f32>,
    weight: Vec<u16>,
    /// x + y, f32 [rows, H]
    sum: Vec<f32>,
    /// f32 [rows, H]
    normed: Vec<f32>,
}

impl<'a> Case<'a> {
    fn new(card: &'a Card, hidden: usize, t: usize, rows: usize, seed: u64) -> Case<'a> {
        let mut random = Random(seed);
        // Magnitudes over some powers of two, and a large element now and then, as the model's residual has.
        let mut residual = |n: usize| -> Vec<f32> {
            (0..n).map(|i| random.next() * if i % 97 == 5 { 900.0 } else { 3.0 }).collect()
        };
        let (x, y) = (residual(t * hidden), residual(t * hidden));
        let weight: Vec<u16> = (0..hidden).map(|_| bf16::from_f32(random.next() * 4.0).to_bits()).collect();
        let kernels = Kernels::detect();
        let mut sum = x[..rows * hidden].to_vec();
        kernels.add_assign(&mut sum, &y[..rows * hidden]);
        let mut normed = vec![0.0; rows * hidden];
        for (sum, normed) in sum.chunks(hidden).zip(normed.chunks_mut(hidden)) {
            kernels.rms_norm(sum, &weight, EPS, normed);
        }
        Case { card, hidden, t, rows, x, y, weight, sum, normed }
    }

    fn act(&self, value: f32) -> u16 {
        match self.card.facts().capability {
            (..8, _) => saturated(value),
            _ => bf16::from_f32(value).to_bits(),
        }
    }

    fn attention(&self, kernels: &NormKernels) -> Result<(), String> {
        let (card, n) = (self.card, self.t * self.hidden);
        let (mut x, y) = (card.upload(&self.x).unwrap(), card.upload(&self.y).unwrap());
        let (weight, rows) = (card.upload(&self.weight).unwrap(), card.upload(&[self.rows as u32]).unwrap());
        let mut h = card.upload(&vec![POISON_16; n]).unwrap();
        let added = Added { x: &mut x.as_view_mut(), y: &y.as_view(), weight: &weight.as_view() };
        kernels.add_norm_attention(self.t, &rows.as_view(), added, &mut h.as_view_mut()).unwrap();
        self.same_x(&card.download(&x).unwrap())?;
        let expected = self.normed.iter().map(|&v| self.act(v)).chain(std::iter::repeat(POISON_16));
        same("h", card.download(&h).unwrap(), expected)
    }

    fn mlp(&self, kernels: &NormKernels) -> Result<(), String> {
        let (card, n) = (self.card, self.t * self.hidden);
        let (mut x, y) = (card.upload(&self.x).unwrap(), card.upload(&self.y).unwrap());
        let (weight, rows) = (card.upload(&self.weight).unwrap(), card.upload(&[self.rows as u32]).unwrap());
        let mut h = card.upload(&vec![f32::from_bits(POISON); n]).unwrap();
        let added = Added { x: &mut x.as_view_mut(), y: &y.as_view(), weight: &weight.as_view() };
        kernels.add_norm_mlp(self.t, &rows.as_view(), added, &mut h.as_view_mut()).unwrap();
        self.same_x(&card.download(&x).unwrap())?;
        let bits = card.download(&h).unwrap().into_iter().map(f32::to_bits).collect();
        same("h", bits, self.normed.iter().map(|v| v.to_bits()).chain(std::iter::repeat(POISON)))
    }

    /// The last row, and the first one where there are more; the launch has room for one more.
    fn last(&self, kernels: &NormKernels) -> Result<(), String> {
        let (card, hidden) = (self.card, self.hidden);
        let chosen: Vec<usize> = if self.rows > 2 { vec![0, self.rows - 1] } else { vec![self.rows - 1] };
        let n = chosen.len() + 1;
        let mut numbers: Vec<u32> = chosen.iter().map(|&row| row as u32).collect();
        numbers.push(u32::MAX);
        let (mut x, y) = (card.upload(&self.x).unwrap(), card.upload(&self.y).unwrap());
        let (weight, count) = (card.upload(&self.weight).unwrap(), card.upload(&[n as u32 - 1]).unwrap());
        let numbers = card.upload(&numbers).unwrap();
        let mut h = card.upload(&vec![POISON_16; n * hidden]).unwrap();
        let added = Added { x: &mut x.as_view_mut(), y: &y.as_view(), weight: &weight.as_view() };
        kernels.norm_final(n, &count.as_view(), &numbers.as_view(), added, &mut h.as_view_mut()).unwrap();
        let expected = chosen.iter().flat_map(|&row| &self.normed[row * hidden..][..hidden]);
        let expected = expected.map(|&v| self.act(v)).chain(std::iter::repeat(POISON_16));
        same("h", card.download(&h).unwrap(), expected)?;
        let x = card.download(&x).unwrap();
        for &row in &chosen {
            let at = row * hidden..(row + 1) * hidden;
            let bits = x[at.clone()].iter().map(|v| v.to_bits()).collect();
            same("x", bits, self.sum[at].iter().map(|v| v.to_bits()))?;
        }
        Ok(())
    }

    /// Tokens below, inside of and past the rank's part, and both of its ends.
    fn embed(&self, kernels: &NormKernels) -> Result<(), String> {
        let (card, hidden) = (self.card, self.hidden);
        let vocab = 40..47usize;
        let mut random = Random(99);
        let table: Vec<u16> =
            (0..vocab.len() * hidden).map(|_| bf16::from_f32(random.next()).to_bits()).collect();
        let tokens: Vec<u32> = [46, 39, 40, 47, 43, 0].into_iter().cycle().take(self.t).collect();
        let poison = vec![f32::from_bits(POISON); self.t * hidden];
        let (mut x, mut y) = (card.upload(&poison).unwrap(), card.upload(&poison).unwrap());
        let rows = card.upload(&[self.rows as u32]).unwrap();
        let (device_tokens, device_table) = (card.upload(&tokens).unwrap(), card.upload(&table).unwrap());
        kernels
            .embed(
                self.t,
                &rows.as_view(),
                &device_tokens.as_view(),
                &device_table.as_view(),
                vocab.clone(),
                &mut x.as_view_mut(),
                &mut y.as_view_mut(),
            )
            .unwrap();
        let own = |token: u32| (token as usize).checked_sub(vocab.start).filter(|&row| row < vocab.len());
        let element =
            |row: Option<usize>, i: usize| row.map_or(0, |row| u32::from(table[row * hidden + i]) << 16);
        let expected =
            tokens[..self.rows].iter().flat_map(|&token| (0..hidden).map(move |i| element(own(token), i)));
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        let rest = std::iter::repeat(POISON);
        same("y", bits(card.download(&y).unwrap()), expected.chain(rest.clone()))?;
        let zeros = std::iter::repeat_n(0, self.rows * hidden);
        same("x", bits(card.download(&x).unwrap()), zeros.chain(rest))
    }

    fn same_x(&self, x: &[f32]) -> Result<(), String> {
        let untouched = self.x[self.rows * self.hidden..].iter();
        let expected = self.sum.iter().chain(untouched).map(|v| v.to_bits());
        same("x", x.iter().map(|v| v.to_bits()).collect(), expected)
    }
}

/// f16, ±65504 for what is larger.
fn saturated(value: f32) -> u16 {
    f16::from_f32(value.clamp(-65504.0, 65504.0)).to_bits()
}

fn same<T: PartialEq + std::fmt::LowerHex>(
    what: &str,
    found: Vec<T>,
    expected: impl Iterator<Item = T>,
) -> Result<(), String> {
    for (i, (found, expected)) in found.into_iter().zip(expected).enumerate() {
        if found != expected {
            return Err(format!("{what}[{i}] is {found:x}, expected {expected:x}"));
        }
    }
    Ok(())
}

/// Uniform in (-1, 1).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 += 1;
        (mix(self.0 << 20) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
