//! exp and ln of f64, from additions, multiplications and divisions alone: every machine has the same bits.
//! What they give, the logprobs of a token, every rank finds for itself and alike, and a platform's own
//! exp may differ in the last bit from one processor to the next. Not for the noise, whose scores are compared
//! by one rank for all, or by all from the same bits of logits.

/// Steps of a factor of two.
const STEPS: usize = 32;

/// 2 to the j / 32.
#[rustfmt::skip]
const POWERS: [f64; STEPS] = [
    1.0, 1.021_897_148_654_116_6, 1.044_273_782_427_413_8, 1.067_140_400_676_823_7,
    1.090_507_732_665_257_7, 1.114_386_742_595_892_4, 1.138_788_634_756_691_6, 1.163_724_858_777_577_5,
    1.189_207_115_002_721, 1.215_247_359_980_469, 1.241_857_812_073_484, 1.269_050_957_191_733_2,
    1.296_839_554_651_009_6, 1.325_236_643_159_741_3, 1.354_255_546_936_892_7, 1.383_909_881_963_832,
    std::f64::consts::SQRT_2, 1.445_180_806_977_046_7, 1.476_826_145_939_499_3, 1.509_164_427_593_422_8,
    1.542_210_825_407_940_7, 1.575_980_845_107_886_5, 1.610_490_331_949_254_3, 1.645_755_478_153_965,
    1.681_792_830_507_429, 1.718_619_298_122_478, 1.756_252_160_373_299_5, 1.794_709_075_003_107_2,
    1.834_008_086_409_342_4, 1.874_167_634_110_3, 1.915_206_561_397_147_4, 1.957_144_124_175_400_2,
];

/// exp x for x ≤ 0, with a relative error below 4e-15; 0 below −700.
#[inline]
pub(super) fn exp(x: f64) -> f64 {
    // ln 2 / 32 in two parts, so that n times the first is exact.
    const STEP_HIGH: f64 = 0.021_660_849_335_603_416;
    const STEP_LOW: f64 = 5.689_487_495_325_457e-11;
    // What is added to it has no room for halves, and its last bits are a whole number.
    const ROUND: f64 = 1.5 * (1u64 << 52) as f64;
    if x < -700.0 {
        return 0.0;
    }
    // x = n ln 2 / 32 + r with |r| ≤ ln 2 / 64, so that few terms of Taylor's series are enough
    let rounded = x * (std::f64::consts::LOG2_E * STEPS as f64) + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * STEP_HIGH) - n * STEP_LOW;
    let series = 1.0 + r * (1.0 + r * (1.0 / 2.0 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0)))));
    // exp x = 2^(n / 32) exp r
    let n = rounded.to_bits();
    let two_to_whole = f64::from_bits((n / STEPS as u64 + 1023) << 52);
    series * POWERS[n as usize % STEPS] * two_to_whole
}

/// ln x for a finite x ≥ 1, with an error below 4e-16 and 4e-16 of itself.
pub(super) fn ln(x: f64) -> f64 {
    // x = 2ⁿ m with m in √½..√2
    let mut n = (x.to_bits() >> 52) as i64 - 1023;
    let mut m = f64::from_bits(x.to_bits() & !(0x7ff << 52) | 1023 << 52);
    if m > std::f64::consts::SQRT_2 {
        (m, n) = (m / 2.0, n + 1);
    }
    // ln m = 2 artanh s = 2 (s + s³/3 + s⁵/5 + …) with |s| ≤ 0.1716
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for odd in (1..=21).rev().step_by(2) {
        sum = sum * square + 1.0 / f64::from(odd);
    }
    n as f64 * std::f64::consts::LN_2 + 2.0 * s * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_those_of_the_platform_within_their_errors() {
        for i in 0..20_000 {
            let x = -f64::from(i) * 0.0347;
            let (found, expected) = (exp(x), x.exp());
            assert!((found - expected).abs() <= expected * 4e-15, "exp {x}: {found}, not {expected}");
            let y = 1.0 + f64::from(i) * f64::from(i) * 0.731;
            let (found, expected) = (ln(y), y.ln());
            assert!((found - expected).abs() <= 4e-16 * (1.0 + expected), "ln {y}: {found}, not {expected}");
        }
        assert_eq!((exp(0.0), exp(-701.0), exp(f64::NEG_INFINITY), ln(1.0)), (1.0, 0.0, 0.0, 0.0));
    }
}
