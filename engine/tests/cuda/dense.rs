//! Dense products against f64 sums of what the kernels are given.

use crate::support;
use flotilla_engine::backend::cuda::dense::{self, DenseKernels, Linear, Way};
use flotilla_engine::cuda::{Card, Source};
use flotilla_shared::sampling::mix;
use half::{bf16, f16};

/// One replace each in dense.cu that [`check`] must notice; the copies are those of cards from sm_80 on.
pub const PLANTED: [(&str, &str, &str); 6] = [
    ("few: the bias is dropped", "if (bias != nullptr) sum += to_float(bias[row_first + row]);", ""),
    (
        "few: one lane of a quad takes its columns in another order than x",
        "mma_act(sums[i], first, w_first);\n        mma_act(sums[i], second, w_second);",
        "mma_act(sums[i], threadIdx.x % 4 == 2 ? second : first, w_first);\n        mma_act(sums[i], threadIdx.x % 4 == 2 ? first : second, w_second);",
    ),
    ("few: one warp's part of K is lost", "other < FEW_WARPS; ++other", "other < FEW_WARPS - 1; ++other"),
    (
        "few: what is read again past the end of K counts",
        "multiply(sums, ring[d], chunk + d < stop);",
        "multiply(sums, ring[d], true);",
    ),
    ("many: a stage is read before it has arrived", "copy_async_wait<STAGES - 2>();", ""),
    (
        "many: rows of W swizzled like none",
        "const unsigned row = m_own + j * 8 + lane / 16 * 8 + lane % 8;",
        "const unsigned row = m_own + j * 8 + lane / 16 * 8 + (lane % 8 ^ 1);",
    ),
];

#[test]
fn products_are_those_of_f64_within_rounding() {
    for test in support::cards() {
        check(&test.card, &|source| source).unwrap();
    }
}

#[test]
fn the_way_follows_the_tokens_and_the_width() {
    assert_eq!(Way::choose(1, 201088, 132), Way::Few8x16);
    assert_eq!(Way::choose(8, 640, 132), Way::Few8x8);
    assert_eq!(Way::choose(9, 5120, 132), Way::Few16x16);
    assert_eq!(Way::choose(16, 640, 132), Way::Few16x8);
    assert_eq!(Way::choose(17, 5120, 132), Way::ManyMiddle);
    assert_eq!(Way::choose(128, 5120, 132), Way::ManyMiddle);
    assert_eq!(Way::choose(512, 5120, 132), Way::ManyLarge);
    for t in 1..300 {
        assert!(Way::choose(t, 2880, 40).tokens_max() >= t);
    }
}

/// Every way, by itself and as chosen, with a source that `edit` may have changed.
pub fn check(card: &Card, edit: &dyn Fn(Source) -> Source) -> Result<(), String> {
    let mut kernels = DenseKernels::compiled(card, &edit(dense::source())).unwrap();
    // T of the launch, rows that there are, M, K. 48 rows stand for the 5120 of the real width.
    let few = [
        (1, 1, 1, 64),
        (1, 1, 48, 2880),
        (2, 2, 20, 96),
        (3, 3, 7, 160),
        (8, 8, 33, 2880),
        (8, 5, 24, 72),
        (9, 9, 17, 64),
        (16, 16, 40, 160),
        (16, 11, 48, 4096),
    ];
    let many =
        [(17, 17, 1, 64), (64, 64, 150, 96), (64, 30, 33, 160), (100, 100, 40, 2880), (200, 131, 129, 72)];
    for (seed, (t, rows, m, k)) in few.into_iter().chain(many).enumerate() {
        let case = Case::new(card, t, rows, m, k, seed as u64);
        let with_bias = seed % 2 == 0;
        let mut results: Vec<(Way, Vec<u32>)> = Vec::new();
        for way in Way::KERNELS.into_iter().filter(|way| way.tokens_max() >= t) {
            let name = format!("{way:?}, {rows} of {t} tokens, M {m}, K {k}, seed {seed}");
            let bits =
                case.run(&mut kernels, Some(way), with_bias).map_err(|error| format!("{name}: {error}"))?;
            // Who else is in the batch decides between ways of a kind, and must not change a row.
            let is_few = |way: Way| way.tokens_max() <= 16;
            if let Some((other, _)) = results.iter().find(|(w, b)| is_few(*w) == is_few(way) && *b != bits) {
                return Err(format!("{name}: other bits than {other:?}"));
            }
            results.push((way, bits));
        }
        case.run(&mut kernels, None, with_bias)
            .map_err(|error| format!("as chosen, seed {seed}: {error}"))?;
    }
    Ok(())
}

struct Case<'a> {
    card: &'a Card,
    t: usize,
    rows: usize,
    m: usize,
    k: usize,
    x: Vec<u16>,
    weights: Vec<u16>,
    bias: Vec<u16>,
}

impl<'a> Case<'a> {
    fn new(card: &'a Card, t: usize, rows: usize, m: usize, k: usize, seed: u64) -> Case<'a> {
        let mut state = seed << 32;
        let mut random = || {
            state += 1;
            (mix(state) >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let is_f16 = card.facts().capability.0 < 8;
        let act = |v: f32| if is_f16 { f16::from_f32(v).to_bits() } else { bf16::from_f32(v).to_bits() };
        let mut x: Vec<u16> = (0..t * k).map(|_| act(random())).collect();
        // Rows past the batch must not matter.
        x[rows * k..].fill(0x7fff);
        let weights = (0..m * k).map(|_| bf16::from_f32(random()).to_bits()).collect();
        let bias = (0..m).map(|_| bf16::from_f32(random() * 8.0).to_bits()).collect();
        Case { card, t, rows, m, k, x, weights, bias }
    }

    /// The bits of y, which is right.
    fn run(&self, kernels: &mut DenseKernels, way: Option<Way>, with_bias: bool) -> Result<Vec<u32>, String> {
        let Case { card, t, rows, m, k, .. } = *self;
        let poison = f32::from_bits(0x7fa5_a5a5);
        let (x, weights) = (card.upload(&self.x).unwrap(), card.upload(&self.weights).unwrap());
        let (bias, count) = (card.upload(&self.bias).unwrap(), card.upload(&[rows as u32]).unwrap());
        let mut y = card.upload(&vec![poison; t * m]).unwrap();
        let linear = Linear::new(weights.as_view(), with_bias.then(|| bias.as_view()), m, k);
        let (count, x) = (count.as_view(), x.as_view());
        // The library knows nothing of rows.
        let writes_all = way.is_none() && kernels.choose(t, m) == Way::CublasLt;
        match way {
            Some(way) => kernels.product_by(way, t, &count, &x, &linear, &mut y.as_view_mut()),
            None => kernels.product(t, &count, &x, &linear, &mut y.as_view_mut()),
        }
        .unwrap();
        let y = card.download(&y).unwrap();
        for token in 0..rows {
            for row in 0..m {
                let (expected, bound) = self.expected(token, row, with_bias);
                let found = f64::from(y[token * m + row]);
                if (found - expected).abs() > bound || found.is_nan() {
                    return Err(format!("y[{token}, {row}] is {found}, expected {expected} ± {bound:e}"));
                }
            }
        }
        match y[rows * m..].iter().position(|v| v.to_bits() != poison.to_bits()) {
            Some(at) if !writes_all => Err(format!("a row past the batch was written, {at} elements past")),
            _ => Ok(y.into_iter().map(f32::to_bits).collect()),
        }
    }

    /// The exact value, and how far f32 sums may be from it: products are exact; each mma of 8 or 16 columns is
    /// one addition, a card may truncate there (2^-23 of what is summed), and the parts of K and the bias are
    /// some more. On cards without bf16 weights become f16, which loses what is below 2^-25.
    fn expected(&self, token: usize, row: usize, with_bias: bool) -> (f64, f64) {
        let is_f16 = self.card.facts().capability.0 < 8;
        let act = |bits| {
            f64::from(if is_f16 { f16::from_bits(bits).to_f32() } else { bf16::from_bits(bits).to_f32() })
        };
        let value = |bits| f64::from(bf16::from_bits(bits));
        let x = &self.x[token * self.k..][..self.k];
        let w = &self.weights[row * self.k..][..self.k];
        let bias = if with_bias { value(self.bias[row]) } else { 0.0 };
        let (mut sum, mut size, mut lost) = (bias, bias.abs(), 0.0);
        for (&x, &w) in x.iter().zip(w) {
            let product = act(x) * value(w);
            sum += product;
            size += product.abs();
            lost += if is_f16 { act(x).abs() * 2f64.powi(-25) } else { 0.0 };
        }
        (sum, size * (self.k as f64 / 8.0 + 32.0) * 2f64.powi(-23) + lost)
    }
}
