//! The same bits on every instruction set, and on every machine: the definition is written out here again.

use super::*;

const LENGTHS: [usize; 16] = [0, 1, 2, 7, 8, 9, 15, 16, 17, 24, 31, 33, 64, 100, 720, 2880];

/// Sixteen lanes of fused multiply-adds, then halves onto halves.
fn dot(a: impl Iterator<Item = f32>, b: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (i, (a, b)) in a.zip(b).enumerate() {
        lanes[i % 16] = a.mul_add(b, lanes[i % 16]);
    }
    let mut lanes = lanes.to_vec();
    while lanes.len() > 1 {
        let (low, high) = lanes.split_at(lanes.len() / 2);
        lanes = low.iter().zip(high).map(|(a, b)| a + b).collect();
    }
    lanes[0]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn norm(kernels: Kernels, n: usize) -> (Vec<f32>, Vec<f32>, Vec<u16>) {
    let dice = &mut Dice::new(n as u64);
    let (x, weight, mut y) = (dice.values(n), dice.bf16s(n), vec![0.0; n]);
    kernels.rms_norm(&x, &weight, 1e-5, &mut y);
    (y, x, weight)
}

#[test]
fn rms_norm_by_definition() {
    for n in LENGTHS.into_iter().chain(18..50) {
        every_isa(|kernels| {
            let (y, x, weight) = norm(kernels, n);
            let mean = dot(x.iter().copied(), x.iter().copied()) as f64 / n as f64;
            let factor = (1.0 / (mean + 1e-5f32 as f64).sqrt()) as f32;
            let want: Vec<f32> =
                x.iter().zip(&weight).map(|(x, w)| (x * factor) * widened(*w) as f32).collect();
            assert_eq!(bits(&y), bits(&want), "{:?}, {n}", kernels.isa());

            let mean = x.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / n as f64;
            for ((y, x), w) in y.iter().zip(&x).zip(&weight) {
                let want = *x as f64 / (mean + 1e-5).sqrt() * widened(*w);
                assert!((*y as f64 - want).abs() <= 1e-6 * want.abs(), "{y} is not {want}");
            }
        });
    }
}

fn router(kernels: Kernels, e: usize, t: usize, n: usize, bias: bool) -> Vec<f32> {
    let dice = &mut Dice::new((e * 1000 + n) as u64);
    let (w, x, b) = (dice.bf16s(e * n), dice.values(t * n), dice.bf16s(e));
    let mut y = vec![0.0; t * e];
    for tile in TileMut::new(&mut y, t, e).chunks(7) {
        let (w, x) = (Matrix::new(&w, e, n), Matrix::new(&x, t, n));
        kernels.fixed_order_product(w, x, bias.then_some(&b), tile);
    }
    y
}

#[test]
fn fixed_order_product_by_definition() {
    for (e, t, n) in LENGTHS.map(|n| (9, 3, n)).into_iter().chain([(32, 2, 2880), (1, 1, 77)]) {
        for bias in [false, true] {
            every_isa(|kernels| {
                let got = router(kernels, e, t, n, bias);
                let dice = &mut Dice::new((e * 1000 + n) as u64);
                let (w, x, b) = (dice.bf16s(e * n), dice.values(t * n), dice.bf16s(e));
                for (i, got) in got.into_iter().enumerate() {
                    let (x, w) = (&x[i / e * n..][..n], &w[i % e * n..][..n]);
                    let sum = dot(w.iter().map(|w| widened(*w) as f32), x.iter().copied());
                    let want = if bias { sum + widened(b[i % e]) as f32 } else { sum };
                    assert_eq!(got.to_bits(), want.to_bits(), "{:?}, {e} {t} {n} {i}", kernels.isa());
                }
            });
        }
    }
}

#[test]
fn add_assign_by_definition() {
    for n in LENGTHS {
        let dice = &mut Dice::new(n as u64);
        let (x, y) = (dice.values(n), dice.values(n));
        let want: Vec<f32> = y.iter().zip(&x).map(|(y, x)| y + x).collect();
        every_isa(|kernels| {
            let mut y = y.clone();
            kernels.add_assign(&mut y, &x);
            assert_eq!(bits(&y), bits(&want), "{:?}, {n}", kernels.isa());
        });
    }
}

/// What every machine must get, also one that has none of the instruction sets of this one.
#[test]
fn bits_known_from_elsewhere() {
    let digest = |values: &[f32]| {
        values
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |h, v| (h ^ v.to_bits() as u64).wrapping_mul(0x0100_0000_01b3))
    };
    every_isa(|kernels| {
        assert_eq!(digest(&norm(kernels, 2880).0), NORM, "rms_norm, {:?}", kernels.isa());
        assert_eq!(digest(&router(kernels, 32, 4, 2880, true)), ROUTER, "router, {:?}", kernels.isa());
    });
}

const NORM: u64 = 17391908319882699860;
const ROUTER: u64 = 12146270393207763360;
