//! Dense products by cuBLASLt: against f64, and beside our kernels. On the emulated card by the library's double; on
//! a card without the library, what comes instead.

use crate::support::{self, TestCard};
use cudarc::driver::{CudaSlice, sys};
use flotilla_engine::backend::cuda::dense::{DenseKernels, Linear, Way};
use flotilla_engine::cuda::{Card, CudaError, Library, found};
use flotilla_shared::sampling::mix;
use half::bf16;

/// M and K: qkv, o and unembed, which both models have alike, of one rank and of one of four.
const WIDTHS: [(usize, usize); 6] =
    [(5120, 2880), (2880, 4096), (201088, 2880), (1280, 2880), (2880, 1024), (50272, 2880)];
const TOKENS: [usize; 6] = [17, 33, 64, 100, 512, 2048];
/// The same for the emulated card.
const WIDTHS_EMULATED: [(usize, usize); 6] = [(48, 288), (28, 96), (64, 72), (20, 160), (32, 8), (512, 64)];
const TOKENS_EMULATED: [usize; 4] = [17, 33, 64, 100];
/// Of unembed.
const LOGIT_ROWS: usize = 64;
/// Elements that are compared with f64; with our kernels' all are.
const SAMPLES: usize = 200;
const POISON: u32 = 0x7fa5_a5a5;

/// The kernels, if products can go by the library.
fn with_library(test: &TestCard) -> Option<DenseKernels> {
    let kernels = DenseKernels::new(&test.card).unwrap();
    let can = test.card.facts().capability >= (8, 0) && found(Library::CublasLt).is_ok();
    assert_eq!(kernels.has_library(), can, "{}", test.name);
    if !can {
        println!("{}: no cuBLASLt, so only what comes instead is checked", test.name);
    }
    can.then_some(kernels)
}

fn is_real(test: &TestCard) -> bool {
    test.name == "cuda"
}

fn widths(test: &TestCard) -> [(usize, usize); 6] {
    if is_real(test) { WIDTHS } else { WIDTHS_EMULATED }
}

#[test]
fn products_by_the_library_are_those_of_f64_and_of_our_kernels() {
    for test in support::cards() {
        let Some(mut kernels) = with_library(&test) else { continue };
        let tokens = if is_real(&test) { &TOKENS[..] } else { &TOKENS_EMULATED };
        for (m, k) in widths(&test) {
            let most = if m > 10_000 { LOGIT_ROWS } else { usize::MAX };
            for &t in tokens.iter().filter(|t| **t <= most) {
                for with_bias in [false, true].into_iter().filter(|with| !with || m < 10_000) {
                    let case = Case::new(&test.card, (t, t), m, k, with_bias);
                    let library = case.run(&mut kernels, Way::CublasLt).unwrap();
                    case.check(&library);
                    let ours = case.run(&mut kernels, Way::choose(t, m, 132)).unwrap();
                    let most = case.apart_max();
                    let is_far = |(a, b): (&f32, &f32)| !(-most..=most).contains(&(a - b));
                    let far = library.iter().zip(&ours).position(is_far);
                    assert_eq!(far, None, "{case}: more than {most:e} apart");
                    println!("{case}: right");
                }
            }
        }
    }
}

#[test]
fn the_same_product_by_the_library_has_the_same_bits() {
    for test in support::cards() {
        let Some(mut kernels) = with_library(&test) else { continue };
        let Some(mut others) = with_library(&test) else { continue };
        let widths = widths(&test);
        for (t, (m, k)) in [(33, widths[1]), (64, widths[4]), (64, widths[0]), (512, widths[3])] {
            let case = Case::new(&test.card, (t, t), m, k, true);
            let first = bits(&case.run(&mut kernels, Way::CublasLt).unwrap());
            for _ in 0..20 {
                assert_eq!(bits(&case.run(&mut kernels, Way::CublasLt).unwrap()), first, "{case}");
            }
            assert_eq!(bits(&case.run(&mut others, Way::CublasLt).unwrap()), first, "{case}: chosen anew");
        }
    }
}

/// Where there is room for more tokens, T is rounded up: rows that hold anything change nothing, and what is past
/// them is not touched.
#[test]
fn rows_after_the_last_token_do_no_harm() {
    for test in support::cards() {
        let Some(mut kernels) = with_library(&test) else { continue };
        let (m, k) = widths(&test)[3];
        for (t, room, written) in [(33, 64, 48), (100, 300, 112), (130, 300, 192), (1030, 1500, 1280)] {
            for with_bias in [false, true] {
                let case = Case::new(&test.card, (t, room), m, k, with_bias);
                let y = case.run(&mut kernels, Way::CublasLt).unwrap();
                case.check(&y);
                let past = &y[written * case.m..];
                assert!(past.iter().all(|v| v.to_bits() == POISON), "{case}: {room} rows of room");
            }
        }
    }
}

/// As a decode step is: carried out once as it is, then recorded, then replayed.
#[test]
fn products_by_the_library_can_be_recorded() {
    const MODE: sys::CUstreamCaptureMode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    for test in support::cards() {
        let Some(mut kernels) = with_library(&test) else { continue };
        for (m, k) in [widths(&test)[0], widths(&test)[1]] {
            let case = Case::new(&test.card, (48, 48), m, k, true);
            let expected = bits(&case.run(&mut kernels, Way::CublasLt).unwrap());
            let (inputs, mut y) = (case.upload().unwrap(), test.card.zeros(48 * m).unwrap());
            let stream = test.card.stream();
            stream.begin_capture(MODE).unwrap();
            let recorded = case.launch(&inputs, &mut kernels, Way::CublasLt, &mut y);
            let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
            recorded.unwrap();
            let graph = graph.unwrap().expect("a product starts a kernel");
            for _ in 0..3 {
                stream.memset_zeros(&mut y).unwrap();
                graph.launch().unwrap();
                assert_eq!(bits(&test.card.download(&y).unwrap()), expected, "{case}");
            }
        }
    }
}

#[test]
fn few_tokens_and_ranks_in_company_go_by_our_kernels() {
    for test in support::cards() {
        // A second rank in this process.
        let _other = support::cards();
        let kernels = DenseKernels::new(&test.card).unwrap();
        for t in [1, 16, 17, 64, 2048] {
            assert_ne!(kernels.choose(t, 5120), Way::CublasLt, "{t} tokens");
            assert_eq!(DenseKernels::loads_late(t), t > 16, "as on ranks that go by it");
        }
    }
}

/// A bias that is too wide, and rows of y that do not begin at multiples of 16 bytes.
#[test]
fn what_the_library_does_not_take_goes_by_our_kernels() {
    for test in support::cards() {
        let mut kernels = DenseKernels::new(&test.card).unwrap();
        let case = Case::new(&test.card, (33, 40), 16 * 1024 + 4, 64, true);
        let refused = case.run(&mut kernels, Way::CublasLt).unwrap_err().to_string();
        assert!(refused.contains("cuBLASLt"), "{refused}");
        if test.card.facts().capability < (8, 0) {
            continue;
        }
        let odd = Case::new(&test.card, (33, 40), 27, 64, true);
        for case in [case, odd] {
            let mut y = test.card.upload(&vec![f32::from_bits(POISON); case.room * case.m]).unwrap();
            case.launch_as_chosen(&case.upload().unwrap(), &mut kernels, &mut y).unwrap();
            case.check(&test.card.download(&y).unwrap());
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

struct Case {
    card: Card,
    t: usize,
    /// Rows that x and y have.
    room: usize,
    m: usize,
    k: usize,
    x: Vec<u16>,
    weights: Vec<u16>,
    bias: Option<Vec<u16>>,
}

/// On the card.
struct Inputs {
    x: CudaSlice<u16>,
    weights: CudaSlice<u16>,
    bias: Option<CudaSlice<u16>>,
    rows: CudaSlice<u32>,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bias = if self.bias.is_some() { ", with bias" } else { "" };
        write!(f, "T {}, M {}, K {}{bias}", self.t, self.m, self.k)
    }
}

/// From −1 to 1, the same again after a prime number of them.
fn values(len: usize, seed: u64) -> Vec<u16> {
    const AGAIN: u64 = 1_000_003;
    let value = |i| bf16::from_f32((mix(seed << 32 | i) >> 40) as f32 / (1 << 23) as f32 - 1.0).to_bits();
    let once: Vec<u16> = (0..AGAIN.min(len as u64)).map(value).collect();
    let mut all = Vec::with_capacity(len + once.len());
    while all.len() < len {
        all.extend_from_slice(&once);
    }
    all.truncate(len);
    all
}

impl Case {
    fn new(card: &Card, (t, room): (usize, usize), m: usize, k: usize, with_bias: bool) -> Case {
        let mut x = values(room * k, 1);
        // NaN.
        x[t * k..].fill(0x7fff);
        let bias = with_bias.then(|| values(m, 3));
        Case { card: card.clone(), t, room, m, k, x, weights: values(m * k, 2), bias }
    }

    /// All of y, the room after the last token, too.
    fn run(&self, kernels: &mut DenseKernels, way: Way) -> Result<Vec<f32>, CudaError> {
        let mut y = self.card.upload(&vec![f32::from_bits(POISON); self.room * self.m])?;
        self.launch(&self.upload()?, kernels, way, &mut y)?;
        self.card.download(&y)
    }

    fn upload(&self) -> Result<Inputs, CudaError> {
        Ok(Inputs {
            x: self.card.upload(&self.x)?,
            weights: self.card.upload(&self.weights)?,
            bias: self.bias.as_ref().map(|bias| self.card.upload(bias)).transpose()?,
            rows: self.card.upload(&[self.t as u32])?,
        })
    }

    fn launch(
        &self,
        inputs: &Inputs,
        kernels: &mut DenseKernels,
        way: Way,
        y: &mut CudaSlice<f32>,
    ) -> Result<(), CudaError> {
        let Inputs { x, weights, bias, rows } = inputs;
        let bias = bias.as_ref().map(|bias| bias.as_view());
        let linear = Linear::new(weights.as_view(), bias, self.m, self.k);
        kernels.product_by(way, self.t, &rows.as_view(), &x.as_view(), &linear, &mut y.as_view_mut())
    }

    fn launch_as_chosen(
        &self,
        inputs: &Inputs,
        kernels: &mut DenseKernels,
        y: &mut CudaSlice<f32>,
    ) -> Result<(), CudaError> {
        let Inputs { x, weights, bias, rows } = inputs;
        let bias = bias.as_ref().map(|bias| bias.as_view());
        let linear = Linear::new(weights.as_view(), bias, self.m, self.k);
        kernels.product(self.t, &rows.as_view(), &x.as_view(), &linear, &mut y.as_view_mut())
    }

    /// Some elements of y, the corners among them.
    fn check(&self, y: &[f32]) {
        let (t, m) = (self.t as u64, self.m as u64);
        let corners = [(0, 0), (0, m - 1), (t - 1, 0), (t - 1, m - 1)];
        let some = (0..SAMPLES as u64).map(|i| (mix(i) % t, mix(i + (1 << 40)) % m));
        for (token, row) in corners.into_iter().chain(some) {
            let (token, row) = (token as usize, row as usize);
            let (expected, bound) = self.expected(token, row);
            let found = f64::from(y[token * self.m + row]);
            let is_near = (found - expected).abs() <= bound;
            assert!(is_near, "{self}: y[{token}, {row}] is {found}, expected {expected} ± {bound:e}");
        }
    }

    /// As in dense.rs: products are exact, and every sum of eight of them may lose 2^-23 of what is summed.
    fn expected(&self, token: usize, row: usize) -> (f64, f64) {
        let value = |bits| f64::from(bf16::from_bits(bits));
        let bias = self.bias.as_ref().map_or(0.0, |bias| value(bias[row]));
        let (x, w) = (&self.x[token * self.k..][..self.k], &self.weights[row * self.k..][..self.k]);
        let products = || x.iter().zip(w).map(|(&x, &w)| value(x) * value(w));
        let size = bias.abs() + products().map(f64::abs).sum::<f64>();
        (bias + products().sum::<f64>(), size * self.loss())
    }

    fn loss(&self) -> f64 {
        (self.k as f64 / 8.0 + 32.0) * 2f64.powi(-23)
    }

    /// Two results may be this far apart: the mean product is 1/4, and no sum of K is twice as large.
    fn apart_max(&self) -> f32 {
        (2.0 * self.loss() * (self.k as f64 / 2.0 + 1.0)) as f32
    }
}
