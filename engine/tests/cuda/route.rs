//! Routing against the CPU backend's own arithmetic: the same logits to the bit, the same experts, and the
//! order in which the experts' kernels will find them.

use crate::support::{self, TestCard};
use flotilla_engine::backend::cpu::kernels::{Kernels, Matrix, TileMut};
use flotilla_engine::backend::cuda::route::{self, Prompts, RouteKernels, RouteShape, Routes};
use flotilla_engine::cuda::{Card, Source};
use flotilla_shared::sampling::mix;
use half::{bf16, f16};

/// One replace each in route.cu that [`check`] must notice.
pub const PLANTED: [(&str, &str, &str); 7] = [
    (
        "one row: an expert of another rank is sorted in",
        "before += experts[k] - EXPERT_FIRST < own;",
        "before += experts[k] < own;",
    ),
    (
        "of equal logits the higher expert is taken",
        "id = warp_min(best == largest ? id : E);",
        "id = warp_max(best == largest ? id : 0);",
    ),
    ("the last expert has no logit", "if (lane == 0 && own < E", "if (lane == 0 && own + 1 < E"),
    (
        "lanes are folded in another order",
        "for (int half = LANES / 2; half > 0; half /= 2)",
        "for (int half = 1; half < LANES; half *= 2)",
    ),
    (
        "a product is rounded before it is added",
        "__fmaf_rn(we, x[t], sum[e][t])",
        "__fadd_rn(__fmul_rn(we, x[t]), sum[e][t])",
    ),
    (
        "the last stretch of a prompt's routes is lost",
        "i < begin + stretch && i < routes",
        "i < begin + stretch && i + 32 < routes",
    ),
    (
        "experts of other ranks are computed",
        "expert - EXPERT_FIRST < OWN ? expert - EXPERT_FIRST : OWN",
        "expert < E ? expert % OWN : OWN",
    ),
];

#[test]
fn routing_is_that_of_the_cpu() {
    for TestCard { card, .. } in support::cards() {
        check(&card, &|source| source).unwrap();
    }
}

#[test]
fn items_fit_into_what_is_taken_for_them() {
    for (experts, per_token, own) in [(8, 2, 0..8), (32, 4, 5..6), (128, 4, 0..128)] {
        let shape = RouteShape { hidden: 64, experts, per_token, own: own.clone() };
        for t in 1..300 {
            let tile = RouteShape::item_routes(t);
            // The worst spread: every expert one route, the rest in whole tiles with one left over each.
            let routes = t * per_token;
            let singles = routes.min(own.len());
            let worst = singles + if t > tile { (routes - singles) / tile } else { 0 };
            assert!(shape.items_max(t) >= worst, "{t} rows of {shape:?}");
        }
    }
}

/// (H, E, K, own experts, [(T of the launch, rows that there are)])
type Shape = (usize, usize, usize, std::ops::Range<usize>, &'static [(usize, usize)]);

pub fn check(card: &Card, edit: &dyn Fn(Source) -> Source) -> Result<(), String> {
    let shapes: [Shape; 5] = [
        (64, 8, 2, 0..8, &[(1, 1), (3, 3), (16, 11), (17, 17), (40, 33)]),
        (160, 10, 4, 3..8, &[(2, 2), (8, 7), (100, 100)]),
        (96, 32, 4, 0..32, &[(16, 16), (40, 40)]),
        (2880, 128, 4, 0..128, &[(1, 1), (2, 2)]),
        (64, 8, 4, 2..6, &[(1, 1), (8, 1)]),
    ];
    for (seed, (hidden, experts, per_token, own, launches)) in shapes.into_iter().enumerate() {
        let shape = RouteShape { hidden, experts, per_token, own };
        let source = edit(route::source(&shape));
        for prompts in [Prompts::Mma, Prompts::Wgmma] {
            let kernels = RouteKernels::compiled(card, &source, &shape).unwrap().with_prompts(prompts);
            for (t, rows) in launches {
                let case = Case::new(&shape, *t, *rows, prompts, seed as u64);
                case.run(card, &kernels).map_err(|error| {
                    format!("{rows} of {t} rows, {prompts:?}, {shape:?}, seed {seed}: {error}")
                })?;
            }
        }
    }
    Ok(())
}

struct Case<'a> {
    shape: &'a RouteShape,
    t: usize,
    rows: usize,
    prompts: Prompts,
    h: Vec<f32>,
    weight: Vec<u16>,
    bias: Vec<u16>,
}

impl<'a> Case<'a> {
    fn new(shape: &'a RouteShape, t: usize, rows: usize, prompts: Prompts, seed: u64) -> Case<'a> {
        let RouteShape { hidden, experts, .. } = *shape;
        let mut state = seed << 32 | (t as u64) << 16;
        let mut random = || {
            state += 1;
            (mix(state) >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut h: Vec<f32> = (0..t * hidden).map(|_| random()).collect();
        let mut weight: Vec<u16> =
            (0..experts * hidden).map(|_| bf16::from_f32(random()).to_bits()).collect();
        let mut bias: Vec<u16> = (0..experts).map(|_| bf16::from_f32(random()).to_bits()).collect();
        // Equal logits: in every row those of the first, the third and the last expert; in row 1 many.
        for twin in [2, experts - 1] {
            weight.copy_within(..hidden, twin * hidden);
            bias[twin] = bias[0];
        }
        if t > 1 {
            h[hidden..2 * hidden].fill(0.0);
            bias.iter_mut().for_each(|b| *b &= 0xffc0);
        }
        h[rows * hidden..].fill(f32::NAN);
        Case { shape, t, rows, prompts, h, weight, bias }
    }

    fn run(&self, card: &Card, kernels: &RouteKernels) -> Result<(), String> {
        let (weight, bias) = (card.upload(&self.weight).unwrap(), card.upload(&self.bias).unwrap());
        let (h, rows) = (card.upload(&self.h).unwrap(), card.upload(&[self.rows as u32]).unwrap());
        let mut chosen = card.upload(&vec![0xabcd_u16; self.t * self.shape.per_token]).unwrap();
        let mut routes = Routes::new(card, self.shape, self.t).unwrap();
        let (h, rows) = (h.as_view(), rows.as_view());
        let (weight, bias) = (weight.as_view(), bias.as_view());
        kernels.route(self.t, &rows, &h, &weight, &bias, &mut chosen.as_view_mut(), &mut routes).unwrap();

        let logits = card.download(routes.logits()).unwrap();
        let expected = self.logits();
        equal("logits", &bits(&logits[..expected.len()]), &bits(&expected))?;
        let arranged = card.download(routes.arranged()).unwrap();
        equal("arranged", &arranged[..self.rows * self.shape.hidden], &self.arranged())?;

        let chosen = card.download(&chosen).unwrap();
        let expected = self.chosen(&expected);
        equal("chosen", &chosen[..expected.len()], &expected)?;
        if chosen[expected.len()..].iter().any(|expert| *expert != 0xabcd) {
            return Err("a row past the batch was given experts".into());
        }
        self.weights(&logits, &expected, &card.download(routes.weights()).unwrap())?;
        let (sorted, items) = self.by_expert(&expected);
        let (found_sorted, found_items, count) = routes.by_expert();
        equal("sorted", &card.download(found_sorted).unwrap()[..sorted.len()], &sorted)?;
        equal("item_count", &card.download(count).unwrap(), &[items.len() as u32 / 4])?;
        equal("items", &card.download(found_items).unwrap()[..items.len()], &items)
    }

    fn logits(&self) -> Vec<f32> {
        let RouteShape { hidden, experts, .. } = *self.shape;
        let mut logits = vec![0.0; self.rows * experts];
        Kernels::detect().fixed_order_product(
            Matrix::new(&self.weight, experts, hidden),
            Matrix::new(&self.h[..self.rows * hidden], self.rows, hidden),
            Some(&self.bias),
            TileMut::new(&mut logits, self.rows, experts),
        );
        logits
    }

    fn arranged(&self) -> Vec<u16> {
        let h = self.h[..self.rows * self.shape.hidden].iter();
        let h: Vec<u16> = h.map(|h| f16::from_f32(*h).to_bits()).collect();
        if self.prompts == Prompts::Wgmma && self.t > 32 {
            let pairs = |x: &[u16], pair: usize| -> Vec<u16> {
                x.chunks_exact(8).flat_map(|x| [x[pair], x[pair + 4]]).collect()
            };
            return h.chunks_exact(32).flat_map(|x| (0..4).flat_map(move |pair| pairs(x, pair))).collect();
        }
        h.chunks_exact(8).flat_map(|x| [0, 4, 1, 5, 2, 6, 3, 7].map(|i| x[i])).collect()
    }

    /// A stable sort by falling logit: of equal ones the lower expert comes first.
    fn chosen(&self, logits: &[f32]) -> Vec<u16> {
        let of_row = |row: &[f32]| {
            let mut order: Vec<u16> = (0..row.len() as u16).collect();
            order.sort_by(|a, b| row[*b as usize].partial_cmp(&row[*a as usize]).unwrap());
            order.truncate(self.shape.per_token);
            order
        };
        logits.chunks_exact(self.shape.experts).flat_map(of_row).collect()
    }

    /// Each within a few roundings of f32, the exponential's among them.
    fn weights(&self, logits: &[f32], chosen: &[u16], found: &[f32]) -> Result<(), String> {
        let RouteShape { experts, per_token, .. } = *self.shape;
        for (row, chosen) in chosen.chunks_exact(per_token).enumerate() {
            let logit = |expert: &u16| f64::from(logits[row * experts + *expert as usize]);
            let powers: Vec<f64> = chosen.iter().map(|e| (logit(e) - logit(&chosen[0])).exp()).collect();
            for (k, power) in powers.iter().enumerate() {
                let (expected, found) = (power / powers.iter().sum::<f64>(), found[row * per_token + k]);
                let off = (f64::from(found) - expected).abs();
                if off > 16.0 * 2f64.powi(-24) * expected || found.is_nan() {
                    return Err(format!("weight [{row}, {k}] is {found}, expected {expected}"));
                }
            }
        }
        Ok(())
    }

    /// (sorted, items)
    fn by_expert(&self, chosen: &[u16]) -> (Vec<u32>, Vec<u32>) {
        let (mut sorted, mut items) = (Vec::new(), Vec::new());
        for expert in self.shape.own.clone() {
            let routes = (0..chosen.len()).filter(|route| usize::from(chosen[*route]) == expert);
            let routes: Vec<u32> = routes.map(|route| route as u32).collect();
            for part in routes.chunks(RouteShape::item_routes(self.t)) {
                let own = (expert - self.shape.own.start) as u32;
                items.extend([own, sorted.len() as u32, part.len() as u32, 0]);
                sorted.extend(part);
            }
        }
        (sorted, items)
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: &[T], expected: &[T]) -> Result<(), String> {
    assert_eq!(found.len(), expected.len(), "{what}");
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        None => Ok(()),
        Some(at) => Err(format!("{what}[{at}] is {:?}, expected {:?}", found[at], expected[at])),
    }
}
