//! How likely tokens are beside the likeliest, as whole numbers: their sum is the same in any order, so it is
//! the same on any number of ranks and threads. Each step is one that every processor has for several numbers at
//! once and rounds alike, so a sum over a vocabulary is quick and no machine has other bits. What a sum is good
//! for is not known here.
//!
//! A step is never fused with the next, as the language promises, whatever the processor could do.

use crate::backend::cpu::kernels::{Kernels, Plain};
use std::f64::consts::{LN_2, LOG2_E};
use std::sync::LazyLock;

/// The weight of the likeliest token. What rounds to none of its parts is nothing: a vocabulary of such tokens
/// would be 2⁻³³ of the whole.
pub(super) const WEIGHT_MAX: f64 = (1u64 << 50) as f64;

/// So many halvings down, no part is left.
const OCTAVES: f64 = 52.0;

/// Logits that are passed over together, if none of them has a weight.
pub(super) const GROUP: usize = 32;
/// Logits whose weights cannot exceed 64 bits.
const FEW: usize = 64 * GROUP;

/// For what looks at a whole vocabulary. Which instructions it uses changes no bit.
pub(super) static KERNELS: LazyLock<Kernels> = LazyLock::new(Kernels::detect);

/// Weighs logits beside the highest of them.
#[derive(Clone, Copy, Debug)]
pub struct Weigher {
    max: f32,
    /// Factors of two of the weight, for each 1 of a logit.
    octaves: f64,
    /// Below this no logit has a weight.
    least: f32,
}

impl Weigher {
    pub fn new(max: f32, temperature: f32) -> Self {
        let octaves = LOG2_E / f64::from(temperature);
        // Finite, so that what passes it is.
        let least = ((f64::from(max) - OCTAVES / octaves) as f32).max(f32::MIN);
        Weigher { max, octaves, least }
    }

    /// The highest logit.
    pub fn max(&self) -> f32 {
        self.max
    }

    /// Factors of two of the weight, for each 1 of a logit.
    pub fn octaves(&self) -> f64 {
        self.octaves
    }

    /// Below this no logit has a weight, or counts.
    pub fn least(&self, floor: f32) -> f32 {
        floor.max(self.least)
    }

    /// exp((logit − max) / temperature), in parts of `WEIGHT_MAX`.
    pub fn weight(&self, logit: f32) -> u64 {
        if logit == self.max {
            return WEIGHT_MAX as u64;
        }
        // A NaN has no weight.
        if logit >= self.least { parts(self.power(logit)) } else { 0 }
    }

    /// Σ weights of those that are at least `floor`.
    pub fn sum(&self, logits: &[f32], floor: f32) -> u128 {
        if !self.max.is_finite() {
            let infinite = logits.iter().filter(|logit| **logit == self.max).count();
            return infinite as u128 * WEIGHT_MAX as u128;
        }
        KERNELS.plain(Sum { weigher: *self, logits, floor: self.least(floor) })
    }

    /// The weight of each.
    #[inline(always)]
    pub fn weights(&self, group: &[f32; GROUP]) -> [u64; GROUP] {
        if !self.max.is_finite() {
            return group.map(|logit| self.weight(logit));
        }
        let mut weights = [0; GROUP];
        for (weight, logit) in weights.iter_mut().zip(group) {
            let power = self.power(*logit);
            *weight = parts(if *logit >= self.least { power } else { 0.0 });
        }
        weights
    }

    /// Without a branch for each, for the sake of registers that hold several; and in loops, because a closure may
    /// be compiled by itself, for other registers.
    #[inline(always)]
    fn sum_of_group(&self, group: &[f32; GROUP], floor: f32) -> u64 {
        if which(group, |logit| logit >= floor) == 0 {
            return 0;
        }
        let mut weights = [0; GROUP];
        for (weight, logit) in weights.iter_mut().zip(group) {
            *weight = parts(self.power(*logit));
        }
        let mut sum = 0u64;
        for (weight, logit) in weights.iter().zip(group) {
            sum = sum.wrapping_add(if *logit >= floor { *weight } else { 0 });
        }
        sum
    }

    /// exp((logit − max) / temperature) with a relative error below 2⁻³³, where it is at least 2⁻⁶⁰; else anything.
    #[inline(always)]
    fn power(&self, logit: f32) -> f64 {
        // What is added to it has no room for halves, and its last bits are a whole number.
        const ROUND: f64 = 1.5 * (1u64 << 52) as f64;
        // Of (2^f − 1) / f for |f| ≤ 1/2, through seven points where a series errs least.
        const TERMS: [f64; 7] = [
            LN_2,
            0.240_226_509_222_887_57,
            0.055_504_108_839_096_254,
            0.009_618_056_678_524_637,
            0.001_333_350_238_615_697_6,
            0.000_154_614_446_985_691_3,
            1.529_732_376_202_571_3e-5,
        ];
        // In f64, where neither the difference nor the quotient loses what counts.
        let x = (f64::from(logit) - f64::from(self.max)) * self.octaves;
        // 2^x = 2^n 2^f
        let rounded = x + ROUND;
        let f = x - (rounded - ROUND);
        let mut series = 0.0;
        for term in TERMS.iter().rev() {
            series = series * f + term;
        }
        let series = series * f + 1.0;
        f64::from_bits(series.to_bits().wrapping_add(rounded.to_bits() << 52))
    }
}

/// Σ weights of those that are at least `floor`, which is itself at least `least`.
struct Sum<'a> {
    weigher: Weigher,
    logits: &'a [f32],
    floor: f32,
}

impl Plain for Sum<'_> {
    type Out = u128;

    #[inline(always)]
    fn run(self) -> u128 {
        let mut sum = 0;
        for few in self.logits.chunks(FEW) {
            let (groups, rest) = few.as_chunks::<GROUP>();
            let mut of_few = 0;
            for group in groups {
                of_few += self.weigher.sum_of_group(group, self.floor);
            }
            if !rest.is_empty() {
                of_few += self.weigher.sum_of_group(&filled(rest), self.floor);
            }
            sum += u128::from(of_few);
        }
        sum
    }
}

/// What is left behind whole groups, and behind it what is nothing.
#[inline(always)]
pub(super) fn filled(rest: &[f32]) -> [f32; GROUP] {
    let mut group = [f32::NAN; GROUP];
    group[..rest.len()].copy_from_slice(rest);
    group
}

/// Which of them are so, a bit for each. In lanes, because a processor compares several at once and stops at none.
#[inline(always)]
pub(super) fn which(group: &[f32; GROUP], is: impl Fn(f32) -> bool) -> u32 {
    let mut bits = 0;
    for (at, logit) in group.iter().enumerate() {
        bits |= u32::from(is(*logit)) << at;
    }
    bits
}

/// A number from 0 to 1 in parts of `WEIGHT_MAX`, rounded.
#[inline(always)]
fn parts(power: f64) -> u64 {
    // The last bit of what lies from 4 to 8 is 2⁻⁵⁰.
    (power + 4.0).to_bits().wrapping_sub(4.0f64.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::sampling::mix;

    fn random(seed: u64, count: u64, width: f32) -> Vec<f32> {
        let value = |i| match mix(seed << 20 | i) % 37 {
            0 => f32::NAN,
            1 => f32::NEG_INFINITY,
            n => 7.0 - width * (mix(i * 40 + n) >> 40) as f32 / (1 << 24) as f32,
        };
        (0..count).map(value).collect()
    }

    #[test]
    fn weights_are_those_of_the_platform_within_their_error() {
        for temperature in [0.05f32, 0.7, 1.0, 3.0, 40.0] {
            let weigher = Weigher::new(3.0, temperature);
            for i in 0..40_000 {
                let logit = 3.0 - i as f32 * 0.001 * temperature;
                let exact = ((f64::from(logit) - 3.0) / f64::from(temperature)).exp() * WEIGHT_MAX;
                let off = (weigher.weight(logit) as f64 - exact).abs();
                assert!(off <= 0.51 + exact / (1u64 << 33) as f64, "{logit} at {temperature}: {off} off");
            }
        }
    }

    /// Groups and what remains of them, what is passed over and what is not: the sum of each one's weight.
    #[test]
    fn a_sum_is_that_of_each_weight_wherever_it_is_cut() {
        for (seed, count, width, temperature) in
            [(1, 10_000, 20.0, 1.0), (2, 31, 5.0, 0.3), (3, 9001, 90.0, 0.8), (4, 4096, 90.0, 0.01)]
        {
            let mut logits = random(seed, count, width);
            logits[count as usize / 2] = 7.0;
            let weigher = Weigher::new(7.0, temperature);
            for floor in [f32::NEG_INFINITY, 5.0, 7.0] {
                let kept = logits.iter().filter(|logit| **logit >= floor);
                let expected: u128 = kept.map(|logit| u128::from(weigher.weight(*logit))).sum();
                assert_eq!(weigher.sum(&logits, floor), expected, "{seed}, {floor}");
                let (first, second) = logits.split_at(count as usize / 3);
                assert_eq!(weigher.sum(first, floor) + weigher.sum(second, floor), expected);
            }
        }
    }

    /// Bits that were written down once: a machine that has others would end a nucleus elsewhere.
    #[test]
    fn every_machine_has_the_same_bits() {
        let weigher = Weigher::new(10.0, 0.9);
        let digest = (0..20_000).fold(0, |digest, i| mix(digest ^ weigher.weight(10.0 - i as f32 * 0.0021)));
        assert_eq!(digest, 4_560_220_146_640_992_747);
    }

    #[test]
    fn infinite_logits_have_all_the_weight_or_none() {
        let inf = f32::INFINITY;
        let sum = |max: f32, logits: &[f32]| Weigher::new(max, 1.0).sum(logits, -inf) as f64 / WEIGHT_MAX;
        assert_eq!(sum(inf, &[inf, 1.0, -inf, f32::NAN, inf]), 2.0);
        assert_eq!(sum(-inf, &[-inf, f32::NAN, -inf]), 2.0);
        assert_eq!(sum(1.0, &[1.0, -inf, f32::NAN]), 1.0);
        // So hot that all are alike, so cold that none is like the likeliest.
        assert_eq!(Weigher::new(0.0, 1e30).sum(&[0.0, -5.0, -inf], -inf) as f64, 2.0 * WEIGHT_MAX);
        assert_eq!(Weigher::new(20.0, 1e-30).sum(&[20.0, 20f32.next_down()], -inf) as f64, WEIGHT_MAX);
    }
}
