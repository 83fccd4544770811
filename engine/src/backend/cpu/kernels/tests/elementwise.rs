//! The activation, the exponential, rotation and the small vector ops.

use super::*;
use crate::backend::cpu::kernels::simd::Simd;
use crate::backend::cpu::kernels::swiglu::exp;

struct Exp<'a>(&'a mut [f32]);

impl Op for Exp<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for chunk in self.0.chunks_mut(S::LANES) {
            // SAFETY: a chunk has its own length, at most LANES.
            unsafe {
                let e = exp(s, s.load_first(chunk.as_ptr(), chunk.len()));
                s.store_first(chunk.as_mut_ptr(), e, chunk.len());
            }
        }
    }
}

#[test]
fn exp_is_within_two_units() {
    let x: Vec<f32> =
        (0..1_000_003).map(|i| -87.3 + i as f32 * (176.0 / 1e6)).filter(|x| *x < 88.72).collect();
    every_isa(|kernels| {
        let mut y = x.clone();
        kernels.dispatch(Exp(&mut y));
        for (x, y) in x.iter().zip(y) {
            let want = (*x as f64).exp();
            assert!((y as f64 / want - 1.0).abs() <= 2.4e-7, "{:?}: exp({x}) is {y}", kernels.isa());
        }
    });
}

#[test]
fn exp_at_the_ends() {
    let inf = f32::INFINITY;
    let cases = [
        (0.0, 1.0),
        (-0.0, 1.0),
        (inf, inf),
        (-inf, 0.0),
        (88.73, inf),
        (1e30, inf),
        (-104.0, 0.0),
        (-1e30, 0.0),
    ];
    every_isa(|kernels| {
        for (x, want) in cases {
            let mut y = [x];
            kernels.dispatch(Exp(&mut y));
            assert_eq!(y[0], want, "{:?}: exp({x})", kernels.isa());
        }
        let mut y = [f32::NAN, -100.0];
        kernels.dispatch(Exp(&mut y));
        assert!(y[0].is_nan());
        assert!((y[1] as f64 - (-100.0f64).exp()).abs() <= 2.9e-45, "a subnormal: {}", y[1]);
    });
}

fn swiglu(gate: f32, up: f32) -> f64 {
    let (g, u) = ((gate as f64).min(7.0), (up as f64).clamp(-7.0, 7.0));
    (u + 1.0) * g / (1.0 + (-1.702f32 as f64 * g).exp())
}

#[test]
fn swiglu_is_right() {
    for (t, i) in [(0, 5), (1, 0), (1, 1), (2, 7), (3, 8), (2, 16), (2, 17), (1, 33), (1, 720), (3, 2880)] {
        let gate_up: Vec<f32> =
            Dice::new(i as u64).values(t * (2 * i + 3)).iter().map(|x| x * 12.0).collect();
        every_isa(|kernels| {
            let mut y = vec![9.0; t * i];
            for tile in TileMut::new(&mut y, t, i).chunks(21) {
                kernels.swiglu(Matrix::with_stride(&gate_up, t, 2 * i, 2 * i + 3), 7.0, tile);
            }
            for (at, y) in y.into_iter().enumerate() {
                let row = &gate_up[at / i * (2 * i + 3)..];
                let (gate, up) = (row[at % i * 2], row[at % i * 2 + 1]);
                let want = swiglu(gate, up);
                let isa = kernels.isa();
                // Roundings of one unit, and that of 1.702 g, which the exponential multiplies by its size.
                let bound = (8.0 + gate.abs() as f64) * f32::EPSILON as f64 * want.abs();
                assert!((y as f64 - want).abs() <= bound, "{isa:?}: {gate}, {up}: {y}, not {want}");
            }
        });
    }
}

#[test]
fn swiglu_of_extremes() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let gate_up = [inf, 0.0, 7.0, inf, 7.0, -inf, -500.0, 2.0, nan, 1.0, 1.0, nan];
    every_isa(|kernels| {
        let mut y = [0.0; 6];
        kernels.swiglu(Matrix::new(&gate_up, 1, 12), 7.0, TileMut::new(&mut y, 1, 6));
        let want = [swiglu(7.0, 0.0), swiglu(7.0, 7.0), swiglu(7.0, -7.0), 0.0];
        for (y, want) in y.iter().zip(want) {
            assert!((*y as f64 - want).abs() <= 1e-6 * want.abs(), "{:?}: {y}, not {want}", kernels.isa());
        }
        assert!(y[4].is_nan() && y[5].is_nan(), "NaN must not be clipped away");
    });
}

#[test]
fn rope_turns_by_half_split() {
    for (heads, d) in [(0, 64), (1, 2), (3, 16), (8, 64), (2, 40), (1, 128), (2, 6)] {
        let dice = &mut Dice::new(d as u64);
        let x = dice.values(heads * d);
        let (cos, sin) = (dice.values(d / 2), dice.values(d / 2));
        every_isa(|kernels| {
            let mut y = x.clone();
            kernels.rope(&mut y, &cos, &sin);
            for (i, y) in y.into_iter().enumerate() {
                let (head, j) = (&x[i / d * d..], i % (d / 2));
                let (a, b, c, s) = (head[j] as f64, head[j + d / 2] as f64, cos[j] as f64, sin[j] as f64);
                let want = if i % d < d / 2 { a * c - b * s } else { b * c + a * s };
                assert!((y as f64 - want).abs() < 3e-7, "{:?}, D {d}: {i}", kernels.isa());
            }
        });
    }
}

#[test]
fn dot_axpy_widen_and_softmax() {
    for n in (0..70).chain([2880]) {
        let dice = &mut Dice::new(n as u64);
        let (a, b, bits) = (dice.values(n), dice.values(n), dice.bf16s(n));
        every_isa(|kernels| {
            let isa = kernels.isa();
            let products = || a.iter().zip(&b).map(|(a, b)| *a as f64 * *b as f64);
            let bound = 4.0 * f32::EPSILON as f64 * products().map(f64::abs).sum::<f64>();
            assert!((kernels.dot(&a, &b) as f64 - products().sum::<f64>()).abs() <= bound, "{isa:?}, {n}");

            let mut y = b.clone();
            kernels.axpy(0.75, &a, &mut y);
            for i in 0..n {
                let want = b[i] as f64 + 0.75 * a[i] as f64;
                assert!((y[i] as f64 - want).abs() <= 2.4e-7, "{isa:?}, {n}");
            }

            kernels.bf16_widen(&bits, &mut y);
            assert!(y.iter().zip(&bits).all(|(y, bits)| *y as f64 == widened(*bits)), "{isa:?}, {n}");

            let mut e: Vec<f32> = a.iter().map(|a| a * 30.0).collect();
            let (m, sum) = kernels.exp_shifted(&mut e);
            let want_m = a.iter().map(|a| a * 30.0).fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(m, want_m, "{isa:?}, {n}");
            let want: Vec<f64> = a.iter().map(|a| ((a * 30.0 - m) as f64).exp()).collect();
            let want_sum = want.iter().sum::<f64>();
            assert!((sum as f64 - want_sum).abs() <= 1e-6 * want_sum, "{isa:?}, {n}: {sum}");
            assert!(
                e.iter().zip(want).all(|(e, want)| (*e as f64 - want).abs() <= 3e-7 * want),
                "{isa:?}, {n}"
            );
        });
    }
}
