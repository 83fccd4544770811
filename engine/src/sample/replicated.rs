//! exp and ln of f64, from additions, multiplications and divisions alone: every machine has the same bits.
//! What they decide, such as where a nucleus ends, every rank decides for itself and alike, and a platform's own
//! exp may differ in the last bit from one processor to the next. Not for the noise, whose scores are compared
//! by one rank for all, or by all from the same bits of logits.

/// 1 / n!: of Taylor's series, the first term that is left out is below 1e-16.
const FACTORIALS: [f64; 14] = [
    1.0,
    1.0,
    1.0 / 2.0,
    1.0 / 6.0,
    1.0 / 24.0,
    1.0 / 120.0,
    1.0 / 720.0,
    1.0 / 5040.0,
    1.0 / 40320.0,
    1.0 / 362_880.0,
    1.0 / 3_628_800.0,
    1.0 / 39_916_800.0,
    1.0 / 479_001_600.0,
    1.0 / 6_227_020_800.0,
];

/// exp x for x ≤ 0, with a relative error below 2e-15; 0 below −700.
pub(super) fn exp(x: f64) -> f64 {
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    if x < -700.0 {
        return 0.0;
    }
    // x = n ln 2 + r with |r| ≤ ln 2 / 2; ln 2 in two parts, so that n times the first is exact.
    let n = (x * std::f64::consts::LOG2_E).round_ties_even();
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let sum = FACTORIALS.iter().rev().fold(0.0, |sum, part| sum * r + part);
    sum * f64::from_bits(((n as i64 + 1023) as u64) << 52)
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
            assert!((found - expected).abs() <= expected * 2e-15, "exp {x}: {found}, not {expected}");
            let y = 1.0 + f64::from(i) * f64::from(i) * 0.731;
            let (found, expected) = (ln(y), y.ln());
            assert!((found - expected).abs() <= 4e-16 * (1.0 + expected), "ln {y}: {found}, not {expected}");
        }
        assert_eq!((exp(0.0), exp(-701.0), exp(f64::NEG_INFINITY), ln(1.0)), (1.0, 0.0, 0.0, 0.0));
    }
}
