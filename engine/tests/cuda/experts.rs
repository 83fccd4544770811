//! The experts' products against f64 sums of the exact MXFP4 values.

use crate::support::{self, TestCard};
use flotilla_engine::backend::cuda::experts::{
    self, ExpertBuffers, ExpertKernels, ExpertShape, ExpertWeights, Product, Way,
};
use flotilla_engine::backend::cuda::route::{Prompts, RouteKernels, RouteShape, Routes};
use flotilla_engine::cuda::{Card, Source};
use flotilla_shared::sampling::mix;
use half::{bf16, f16};

/// One replace each in experts.cu that [`check`] must notice, with few routes and with many.
pub const PLANTED: [(&str, &str, &str); 6] = [
    (
        "nibbles are swapped",
        "mxfp4_decode_8_unordered(lo, row_g);",
        "mxfp4_decode_8_unordered(lo, row_g >> 4 & 0x0F0F0F0Fu | (row_g & 0x0F0F0F0Fu) << 4);",
    ),
    (
        "gate and up are exchanged",
        "const float g = fminf(gate, limit), u = fmaxf(-limit, fminf(up, limit));",
        "const float g = fminf(up, limit), u = fmaxf(-limit, fminf(gate, limit));",
    ),
    ("the clamp of up is dropped", "u = fmaxf(-limit, fminf(up, limit))", "u = up"),
    ("the clamp of gate is dropped", "g = fminf(gate, limit)", "g = gate"),
    ("the weight of the router is dropped", "= router[route] * y;", "= y;"),
    ("an expert of another rank is added", "if (own >= EXPERT_END - EXPERT_FIRST) continue;", ""),
];

/// In experts_few.cu, for [`check_few`].
pub const PLANTED_FEW: [(&str, &str, &str); 6] = [
    (
        "few: the scale of another turn",
        "factor_of(scales[turn][r], top[r]",
        "factor_of(scales[turn ^ (turn + 1 < TURNS)][r], top[r]",
    ),
    (
        "few: the scale of row g is taken for row g + 8",
        "first[m][i] = mul_f16x2(first[m][i], factor[2 * m + i % 2]);",
        "first[m][i] = mul_f16x2(first[m][i], factor[2 * m]);",
    ),
    ("few: one warp's part of K is lost", "warp < WARPS; warp++) sum", "warp < WARPS - 1; warp++) sum"),
    (
        "few: what the last turn repeats is counted twice",
        "return turn < TURNS - 1 || block(turn) < BLOCKS;",
        "return true;",
    ),
    ("few: sums are added up before all are there", "__syncthreads();\n        last", "last"),
    (
        "few: the next tile begins with weights of this one",
        "next_rows.load(ring[turn % DEPTH]",
        "rows.load(ring[turn % DEPTH]",
    ),
];

/// In experts_many.cu, for [`check_many`].
pub const PLANTED_MANY: [(&str, &str, &str); 5] = [
    (
        "many: the scale of row g is taken for row g + 8",
        "sum[2] = fmaf(dot[2], scale_g_8, sum[2]);",
        "sum[2] = fmaf(dot[2], scale_g, sum[2]);",
    ),
    (
        "many: the scale of the neighbouring block",
        "scale_g[m] = __shfl_sync(ALL, scale, 2 * m + block, 4);",
        "scale_g[m] = __shfl_sync(ALL, scale, 2 * m + 1 - block, 4);",
    ),
    ("many: activations swizzled like none", "((block * 4 + t) ^ g % 2 * 4) * 16", "(block * 4 + t) * 16"),
    ("many: a stage is read before it has arrived", "copy_async_wait<STAGES - 2>();", ""),
    ("many: gates are given to the wrong column", "n * 8 + 2 * t + g % 2;", "n * 8 + 2 * t + 1 - g % 2;"),
];

/// In experts_wgmma.cu, for [`check_wgmma`].
pub const PLANTED_WGMMA: [(&str, &str, &str); 7] = [
    (
        "wgmma: the scale of the neighbouring block",
        "scales.of(at, step * STEP_BLOCKS + block)",
        "scales.of(at, step * STEP_BLOCKS + 1 - block)",
    ),
    ("wgmma: a scale too large for f16 is folded", "if (!scales.fold()) any_exact = 1;", ""),
    ("wgmma: nobody waits for the last products", "    wgmma_wait<0>();\n#pragma unroll", "#pragma unroll"),
    ("wgmma: what was copied is not shown to the products", "        fence_async_proxy();\n", ""),
    (
        "wgmma: a stage is filled while products read it",
        "return at == (STAGES - 1) * STAGE_BYTES",
        "return at == (STAGES - 3) * STAGE_BYTES",
    ),
    (
        "wgmma: gates are given to the wrong column",
        "ring + (2 * t + g % 2) * STRIDE",
        "ring + (2 * t + 1 - g % 2) * STRIDE",
    ),
    (
        "wgmma: the last columns are not multiplied",
        "case 3: return product<96>",
        "case 3: return product<64>",
    ),
];

#[test]
fn experts_are_those_of_f64_within_rounding() {
    for TestCard { card, .. } in support::cards() {
        check(&card, &|source| source).unwrap();
    }
}

#[test]
fn the_way_follows_the_rows() {
    for (prompts, many) in [(Prompts::Mma, Way::Many), (Prompts::Wgmma, Way::Wgmma)] {
        let ways = [1, 8, 9, 16, 17, 32, 33].map(|t| Way::of(t, prompts));
        let few = [Way::Few8, Way::Few8, Way::Few16, Way::Few16, Way::Few32, Way::Few32];
        assert_eq!((&ways[..6], ways[6]), (&few[..], many));
        assert_eq!(Way::up_to(16, prompts), [Way::Few8, Way::Few16]);
        assert_eq!(Way::up_to(4096, prompts), [Way::Few8, Way::Few16, Way::Few32, many]);
    }
}

/// A model's part, and launches of it: (T, rows that there are).
#[derive(Clone, Copy)]
struct Shape {
    hidden: usize,
    intermediate: usize,
    experts: usize,
    per_token: usize,
    /// The first and the one behind the last of the rank's own.
    own: (usize, usize),
    down_bias: bool,
    /// An expert that every row takes.
    favourite: Option<usize>,
    /// Scales from 0 to 254 rather than such as a model has.
    wild: bool,
    launches: &'static [(usize, usize)],
}

fn shapes() -> Vec<Shape> {
    let usual = Shape {
        hidden: 64,
        intermediate: 32,
        experts: 8,
        per_token: 2,
        own: (0, 8),
        down_bias: true,
        favourite: None,
        wild: false,
        launches: &[(1, 1), (3, 3), (8, 5), (16, 16), (40, 40)],
    };
    vec![
        Shape {
            hidden: 160,
            intermediate: 96,
            experts: 10,
            per_token: 4,
            own: (3, 8),
            launches: &[(2, 2), (17, 17), (40, 33)],
            ..usual
        },
        Shape {
            hidden: 96,
            intermediate: 64,
            experts: 32,
            per_token: 4,
            own: (0, 32),
            down_bias: false,
            launches: &[(1, 1), (40, 40)],
            ..usual
        },
        Shape { favourite: Some(3), launches: &[(8, 8), (16, 13), (32, 32), (100, 100)], ..usual },
        // Items of more than 64, 96 columns, and of less.
        Shape { favourite: Some(5), launches: &[(96, 90), (130, 130)], ..usual },
        Shape { intermediate: 160, favourite: Some(0), launches: &[(70, 70)], ..usual },
        Shape { wild: true, launches: &[(8, 8), (40, 40), (100, 100)], ..usual },
        Shape { hidden: 2880, launches: &[(1, 1), (3, 3), (40, 12)], ..usual },
        Shape { intermediate: 2880, launches: &[(2, 2), (40, 3)], ..usual },
        usual,
    ]
}

pub fn check(card: &Card, edit: &dyn Fn(Source) -> Source) -> Result<(), String> {
    check_ways(card, edit, &Way::ALL)
}

pub fn check_few(card: &Card, edit: &dyn Fn(Source) -> Source) -> Result<(), String> {
    check_ways(card, edit, &[Way::Few8, Way::Few16, Way::Few32])
}

pub fn check_many(card: &Card, edit: &dyn Fn(Source) -> Source) -> Result<(), String> {
    check_ways(card, edit, &[Way::Many])
}

pub fn check_wgmma(card: &Card, edit: &dyn Fn(Source) -> Source) -> Result<(), String> {
    if !prompts(card).contains(&Prompts::Wgmma) {
        return Err("this card has no warpgroup products".into());
    }
    check_ways(card, edit, &[Way::Wgmma])
}

/// By what the experts of many rows can be multiplied on a card: the emulated one can all that any has.
pub fn prompts(card: &Card) -> Vec<Prompts> {
    match Prompts::can(card) {
        false if support::is_real() => vec![Prompts::Mma],
        _ => vec![Prompts::Mma, Prompts::Wgmma],
    }
}

fn check_ways(card: &Card, edit: &dyn Fn(Source) -> Source, ways: &[Way]) -> Result<(), String> {
    for (seed, shape) in shapes().iter().enumerate() {
        let case = Case::new(card, shape, seed as u64);
        for (t, rows) in shape.launches {
            let mut done = None;
            for prompts in prompts(card) {
                let way = Way::of(*t, prompts);
                if !ways.contains(&way) || done.replace(way) == Some(way) {
                    continue;
                }
                let source = edit(experts::source(&case.shape, way));
                case.run((way, source), prompts, *t, *rows).map_err(|error| {
                    format!("{rows} of {t} rows, {way:?}, {:?}, seed {seed}: {error}", case.shape)
                })?;
            }
        }
    }
    Ok(())
}

/// f32 of the fraction that a number between −1 and 1 is.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 += 1;
        mix(self.0)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }
    fn signed(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
    fn bf16(&mut self, count: usize, size: f32) -> Vec<u16> {
        (0..count).map(|_| bf16::from_f32(self.signed() * size).to_bits()).collect()
    }
}

const LIMIT: f32 = 7.0;
const POISON: u32 = 0x7fa5_a5a5;

/// MXFP4 [E', rows, columns], and a bias.
struct Mxfp4 {
    blocks: Vec<u8>,
    scales: Vec<u8>,
    bias: Vec<u16>,
    columns: usize,
}

impl Mxfp4 {
    /// `edge_scale`: the scale of the largest values of `wild` tensors.
    fn new(random: &mut Random, rows: usize, columns: usize, wild: bool, edge_scale: u8) -> Mxfp4 {
        let per_row = columns / 32;
        let mut blocks: Vec<u8> = (0..rows * per_row * 16).map(|_| random.bits() as u8).collect();
        let mut scales = Vec::with_capacity(rows * per_row);
        for row in 0..rows {
            for block in 0..per_row {
                let edge = wild && row % 7 == 3;
                scales.push(match random.below(6) {
                    _ if edge && block == 0 => edge_scale,
                    _ if edge => 254,
                    kind if wild => [0, 1, 60, 127, 200, 235][kind as usize],
                    kind => 119 + kind as u8,
                });
                if edge {
                    // One ±0.5 in a row, and zeros, of the largest scale: more would not stay finite.
                    let bytes = &mut blocks[(row * per_row + block) * 16..][..16];
                    bytes.fill(0);
                    bytes[row % 16] = if block == 0 { [0x01, 0x90][row / 7 % 2] } else { 0 };
                }
            }
        }
        Mxfp4 { blocks, scales, bias: random.bf16(rows, 8.0), columns }
    }

    /// row · x + bias, and Σ |terms|.
    fn dot(&self, row: usize, x: &[f64], with_bias: bool) -> (f64, f64) {
        const VALUES: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let bias = if with_bias { f64::from(bf16::from_bits(self.bias[row])) } else { 0.0 };
        let (mut sum, mut size) = (bias, bias.abs());
        for (block, x) in x.chunks_exact(32).enumerate() {
            let at = row * (self.columns / 32) + block;
            let scale = 2f64.powi(i32::from(self.scales[at]) - 127);
            for (i, x) in x.iter().enumerate() {
                let nibble = self.blocks[at * 16 + i / 2] >> (i % 2 * 4) & 15;
                let sign = if nibble & 8 == 0 { scale } else { -scale };
                let term = VALUES[usize::from(nibble & 7)] * sign * x;
                sum += term;
                size += term.abs();
            }
        }
        (sum, size)
    }

    /// How far a sum of f32 may be from the exact one: products are exact; an mma of 8 or 16 columns is one addition,
    /// in which a card may truncate (2^-23 of what is summed), then there are the blocks, the parts of K and the
    /// bias. Where scales are tiny, f32 ends at 2^-149, before 2^14 is multiplied in.
    fn bound(&self, size: f64) -> f64 {
        size * (self.columns as f64 / 8.0 + 32.0) * 2f64.powi(-23) + self.columns as f64 * 2f64.powi(-135)
    }
}

struct Case<'a> {
    card: &'a Card,
    shape: ExpertShape,
    down_bias: bool,
    h: Vec<f32>,
    router: Vec<u16>,
    router_bias: Vec<u16>,
    gate_up: Mxfp4,
    down: Mxfp4,
}

impl<'a> Case<'a> {
    fn new(card: &'a Card, shape: &Shape, seed: u64) -> Case<'a> {
        let Shape { hidden, intermediate, experts, per_token, own, .. } = *shape;
        let own = own.0..own.1;
        let mut random = Random(seed << 32);
        let t_max = shape.launches.iter().map(|(t, _)| *t).max().unwrap();
        let mut router_bias = random.bf16(experts, 1.0);
        if let Some(favourite) = shape.favourite {
            router_bias[favourite] = bf16::from_f32(100.0).to_bits();
        }
        let down_size = own.len() * hidden;
        Case {
            card,
            down_bias: shape.down_bias,
            h: (0..t_max * hidden).map(|_| random.signed()).collect(),
            router: random.bf16(experts * hidden, 1.0),
            router_bias,
            gate_up: Mxfp4::new(&mut random, own.len() * 2 * intermediate, hidden, shape.wild, 254),
            // An activation may be 56.
            down: Mxfp4::new(&mut random, down_size, intermediate, shape.wild, 249),
            shape: ExpertShape { intermediate, route: RouteShape { hidden, experts, per_token, own } },
        }
    }

    fn run(&self, source: (Way, Source), prompts: Prompts, t: usize, rows: usize) -> Result<(), String> {
        let (card, route) = (self.card, &self.shape.route);
        let mut h = self.h[..t * route.hidden].to_vec();
        h[rows * route.hidden..].fill(f32::NAN);
        let (h, count) = (card.upload(&h).unwrap(), card.upload(&[rows as u32]).unwrap());
        let (router, bias) = (card.upload(&self.router).unwrap(), card.upload(&self.router_bias).unwrap());
        let mut chosen = card.zeros::<u16>(t * route.per_token).unwrap();
        let mut routes = Routes::new(card, route, t).unwrap();
        let count = count.as_view();
        RouteKernels::new(card, route)
            .unwrap()
            .with_prompts(prompts)
            .route(
                t,
                &count,
                &h.as_view(),
                &router.as_view(),
                &bias.as_view(),
                &mut chosen.as_view_mut(),
                &mut routes,
            )
            .unwrap();

        let kernels = ExpertKernels::compiled(card, &[source], &self.shape, LIMIT).unwrap();
        let upload = |tensor: &Mxfp4| {
            let (blocks, scales) =
                (card.upload(&tensor.blocks).unwrap(), card.upload(&tensor.scales).unwrap());
            (blocks, scales, card.upload(&tensor.bias).unwrap())
        };
        let (gate_up, down) = (upload(&self.gate_up), upload(&self.down));
        let weights = ExpertWeights {
            gate_up: Product {
                blocks: gate_up.0.as_view(),
                scales: gate_up.1.as_view(),
                bias: Some(gate_up.2.as_view()),
            },
            down: Product {
                blocks: down.0.as_view(),
                scales: down.1.as_view(),
                bias: self.down_bias.then(|| down.2.as_view()),
            },
        };
        let mut buffers = ExpertBuffers::new(card, &self.shape, t).unwrap();
        let mut y = card.upload(&vec![f32::from_bits(POISON); t * route.hidden]).unwrap();
        let view = chosen.as_view();
        kernels
            .run(t, &count, &routes, &view, &weights, &mut buffers, &mut y.as_view_mut())
            .map_err(|error| error.to_string())?;
        let first = card.download(&y).map_err(|error| error.to_string())?;
        kernels
            .run(t, &count, &routes, &view, &weights, &mut buffers, &mut y.as_view_mut())
            .map_err(|error| error.to_string())?;
        let second = card.download(&y).map_err(|error| error.to_string())?;
        if first.iter().zip(&second).any(|(first, second)| first.to_bits() != second.to_bits()) {
            return Err("a second run gave other bits".into());
        }

        let (chosen, weights) = (card.download(&chosen).unwrap(), card.download(routes.weights()).unwrap());
        let y = first;
        for row in 0..rows {
            let routes = row * route.per_token..(row + 1) * route.per_token;
            let expected = self.expected(row, &chosen[routes.clone()], &weights[routes]);
            for (at, (expected, bound)) in expected.into_iter().enumerate() {
                let found = f64::from(y[row * route.hidden + at]);
                if (found - expected).abs() > bound || !found.is_finite() {
                    return Err(format!("y[{row}, {at}] is {found}, expected {expected} ± {bound:e}"));
                }
            }
        }
        match y[rows * route.hidden..].iter().position(|v| v.to_bits() != POISON) {
            Some(at) => Err(format!("a row past the batch was written, {at} elements past")),
            None => Ok(()),
        }
    }

    /// y of one row, and how far from it a card may be.
    fn expected(&self, row: usize, chosen: &[u16], weights: &[f32]) -> Vec<(f64, f64)> {
        let ExpertShape { intermediate, ref route } = self.shape;
        let h = &self.h[row * route.hidden..][..route.hidden];
        let h: Vec<f64> = h.iter().map(|h| f64::from(f16::from_f32(*h))).collect();
        let mut y = vec![(0.0, 1e-30); route.hidden];
        for (expert, weight) in chosen.iter().zip(weights) {
            let Some(own) = usize::from(*expert).checked_sub(route.own.start) else { continue };
            if own >= route.own.len() {
                continue;
            }
            let acts: Vec<(f64, f64)> = (0..intermediate).map(|j| self.act(own, j, &h)).collect();
            let (act, off): (Vec<f64>, Vec<f64>) = acts.into_iter().unzip();
            for (at, (y, bound)) in y.iter_mut().enumerate() {
                let row = own * route.hidden + at;
                let (sum, size) = self.down.dot(row, &act, self.down_bias);
                let inherited = self.down.dot(row, &off, false).1;
                *y += f64::from(*weight) * sum;
                *bound += f64::from(*weight) * (inherited + self.down.bound(size + inherited));
            }
        }
        y
    }

    /// Element j of an expert's activation, and how far from it a card may be: what gate and up may be off, at the
    /// corners, and the rounding to f16.
    fn act(&self, own: usize, j: usize, h: &[f64]) -> (f64, f64) {
        let row = 2 * (own * self.shape.intermediate + j);
        let (gate, gate_size) = self.gate_up.dot(row, h, true);
        let (up, up_size) = self.gate_up.dot(row + 1, h, true);
        let (gate_off, up_off) = (self.gate_up.bound(gate_size), self.gate_up.bound(up_size));
        let exact = swiglu(gate, up);
        let corners = [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)];
        let off = corners.map(|(g, u)| (swiglu(gate + g * gate_off, up + u * up_off) - exact).abs());
        let off = off.into_iter().fold(0.0, f64::max) * 1.5;
        (exact, off + (exact.abs() + off) * 2f64.powi(-11) * 1.01 + 2f64.powi(-25))
    }
}

fn swiglu(gate: f64, up: f64) -> f64 {
    let limit = f64::from(LIMIT);
    let (g, u) = (gate.min(limit), up.clamp(-limit, limit));
    (u + 1.0) * g / (1.0 + (-1.702 * g).exp())
}
