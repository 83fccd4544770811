//! Activations as whole numbers: how far they are from the values, and what is not finite.

use super::*;
use proptest::prelude::*;

/// A tile of the identity times x is x again, as the products see it: the numbers read back through a product.
fn read_back(kernels: Kernels, precision: Precision, x: &[f32]) -> Vec<f32> {
    let columns = x.len();
    // Row r has 1 (code 2) at column r, under scale 1.
    let mut blocks = vec![0u8; columns * columns / 2];
    (0..columns).for_each(|k| blocks[(k * columns + k) / 2] |= if k % 2 == 0 { 0x02 } else { 0x20 });
    let mut scales = vec![127u8; columns * columns / 32];
    let plain = kernels.regroup(&mut blocks, &mut scales, (columns, columns), &mut Vec::new());
    let w = GroupedMxfp4::new(kernels, &blocks, &scales, (columns, columns), plain);
    let mut activations = Activations::with_room(precision, 1, columns);
    // SAFETY: there is one thread.
    unsafe { activations.shared().set(kernels, 0, 0, x) };
    kernels.mxfp4_product(w, &activations, &[0], 0..columns, &mut Scratch::new()).to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Half a step of the block's scale, and what f32 itself rounds.
    #[test]
    fn values_come_back_within_half_a_step(blocks in 1..3usize, exponent in -20..20i32, seed: u64) {
        let dice = &mut Dice::new(seed);
        let x: Vec<f32> = dice.values(32 * blocks).iter().map(|x| x * f32::powi(2.0, exponent)).collect();
        for isa in Isa::available() {
            for (precision, most) in [(Precision::OnePlane, 127.0), (Precision::TwoPlanes, 16319.0)] {
                let back = read_back(Kernels::new(isa), precision, &x);
                for (x, back) in x.chunks(32).zip(back.chunks(32)) {
                    let largest = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                    for (x, back) in x.iter().zip(back) {
                        prop_assert!((x - back).abs() <= largest * (0.5 / most + 1e-6), "{x} came back as {back}");
                    }
                }
            }
            prop_assert_eq!(read_back(Kernels::new(isa), Precision::F32, &x), x.clone());
        }
    }
}

/// What the head of `activations.rs` says of the error: relative, root mean square, normally distributed values.
#[test]
fn the_error_is_as_documented() {
    let mut dice = Dice::new(3);
    // The sum of twelve evenly distributed values is near enough.
    let x: Vec<f32> = (0..512).map(|_| (0..12).map(|_| dice.value()).sum::<f32>() / 2.0).collect();
    let error = |precision| {
        let back = x.chunks(32).flat_map(|x| read_back(Kernels::detect(), precision, x));
        let wrong: f64 = x.iter().zip(back).map(|(x, back)| f64::from(x - back).powi(2)).sum();
        (wrong / x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()).sqrt()
    };
    let (one, two) = (error(Precision::OnePlane), error(Precision::TwoPlanes));
    assert!((0.0045..0.0075).contains(&one), "{one}");
    assert!((0.000035..0.00006).contains(&two), "{two}");
}

#[test]
fn what_is_not_finite_stays_so_and_zeros_are_zeros() {
    every_isa(|kernels| {
        for precision in [Precision::OnePlane, Precision::TwoPlanes] {
            for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = vec![1.0; 64];
                x[5] = wrong;
                // Zeros of the weights times the block are NaN too, as they are in f32.
                let back = read_back(kernels, precision, &x);
                assert!(back.iter().all(|x| !x.is_finite()), "{wrong} came back as {back:?}");
            }
            assert_eq!(read_back(kernels, precision, &[0.0; 32]), [0.0; 32]);
            let tiny = read_back(kernels, precision, &[f32::MIN_POSITIVE; 32]);
            assert!(tiny.iter().all(|x| x.abs() <= f32::MIN_POSITIVE));
        }
    });
}
