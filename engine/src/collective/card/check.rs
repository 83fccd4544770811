//! Before a way of summing is used, it has to sum what tells right from wrong: values of very different
//! sizes, whose sums depend on the order of the terms, over lengths that are odd, usual, and the largest.
//! Then it is measured. What is measured decides nothing.

use super::SumPath;
use crate::cuda::CudaError;
use crate::cuda::DeviceSum;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Lengths that are checked, besides the longest of all.
const LENGTHS: [usize; 6] = [1, 3, 2880, 4099, 5760, 5760 * 3];
/// Lengths that are measured: the widths of gpt-oss for 1, 2, 4, … tokens.
const ROW: usize = 2880;
/// What a sum by NCCL may be off by, of the sum of all magnitudes: a rounding for each addition, in any
/// order. (Of sums in bf16: each term's own rounding, too.)
const F32_ROUNDING: f64 = 1.0 / (1u64 << 24) as f64;
const BF16_ROUNDING: f64 = 1.0 / 256.0;

/// How the sums of a group go, and what became of better ways.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StartReport {
    /// Possible ways that failed or did not pass, with the reason.
    pub passed_over: Vec<(SumPath, String)>,
    pub latencies: Vec<Latency>,
}

/// Of sums that follow each other in the stream, as seen by this rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    pub elements: usize,
    /// Of one sum; the median of several runs.
    pub time: Duration,
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values: {:.1} µs", self.elements, self.time.as_secs_f64() * 1e6)
    }
}

/// How close sums must be to those that the test makes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exactness {
    /// In rank order, so bit by bit.
    Bits,
    F32,
    Bf16,
}

/// What a rank found. All must have found the same, and no fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Finding {
    /// Over the bits of all sums.
    pub hash: String,
    pub fault: Option<String>,
}

/// The first thing that is wrong with the findings of a group, by rank.
pub(super) fn verdict(findings: &[Finding]) -> Result<(), String> {
    if let Some((rank, fault)) =
        findings.iter().enumerate().find_map(|(rank, finding)| Some((rank, finding.fault.as_ref()?)))
    {
        return Err(format!("rank {rank}: {fault}"));
    }
    match findings.iter().position(|finding| finding.hash != findings[0].hash) {
        Some(rank) => Err(format!("ranks 0 and {rank} hold different sums of the same values")),
        None => Ok(()),
    }
}

pub(super) fn lengths(elements_max: usize) -> Vec<usize> {
    let mut lengths: Vec<usize> = LENGTHS.into_iter().filter(|&n| n < elements_max).collect();
    lengths.push(elements_max);
    lengths
}

/// Each length is summed so often: what the first round left behind must not pass for the second.
pub(super) const ROUNDS: usize = 2;

pub(super) fn measured_lengths(elements_max: usize) -> Vec<usize> {
    let mut lengths: Vec<usize> = (0..5).map(|power| ROW << power).filter(|&n| n < elements_max).collect();
    lengths.push(elements_max);
    lengths
}

/// What rank `rank` has at place `i` in round `round`, so that what is left of another round is no sum: 24 bits of mantissa, magnitudes from 2^-12 to 2^12.
fn value(round: usize, rank: usize, i: usize) -> f32 {
    let mut bits = ((round as u64) << 40 | (i as u64 + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (rank as u64 + 1).wrapping_mul(0xd1b5_4a32_d192_ed03);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    let exponent = 127 - 12 + (bits >> 24) as u32 % 25;
    f32::from_bits(((bits >> 63) as u32) << 31 | exponent << 23 | (bits as u32 & 0x7f_ffff))
}

pub(super) fn values(round: usize, rank: usize, n: usize) -> Vec<f32> {
    (0..n).map(|i| value(round, rank, i)).collect()
}

/// Why `sums` are not those of `size` ranks' values of a round, if they are not.
pub(super) fn fault(round: usize, sums: &[f32], size: usize, exactness: Exactness) -> Option<String> {
    for (i, &sum) in sums.iter().enumerate() {
        let terms = (0..size).map(|rank| value(round, rank, i));
        if exactness == Exactness::Bits {
            let expected = terms.reduce(|sum, term| sum + term).unwrap_or(0.0);
            if sum.to_bits() != expected.to_bits() {
                return Some(format!("value {i} of {} is {sum:e}, expected {expected:e}", sums.len()));
            }
            continue;
        }
        let (mut expected, mut magnitude) = (0.0, 0.0);
        terms.for_each(|term| {
            (expected, magnitude) = (expected + f64::from(term), magnitude + f64::from(term.abs()))
        });
        let rounding = if exactness == Exactness::Bf16 { BF16_ROUNDING } else { F32_ROUNDING };
        let allowed = magnitude * rounding * (size + 1) as f64;
        let off = (f64::from(sum) - expected).abs();
        if off.is_nan() || off > allowed {
            return Some(format!(
                "value {i} of {} is {sum:e}, expected {expected:e} ± {allowed:e}",
                sums.len()
            ));
        }
    }
    None
}

/// New values in a buffer that sums have been made in.
pub(super) fn refill(card: &crate::cuda::Card, y: &mut DeviceSum, values: &[f32]) -> Result<(), CudaError> {
    let copied = y.stream.memcpy_htod(values, &mut y.values.slice_mut(..values.len()));
    copied.map_err(CudaError::doing("copy to the card"))?;
    y.len = values.len();
    card.synchronize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_tell_the_order_of_the_terms() {
        let n = 2880;
        let forward: Vec<f32> = (0..n).map(|i| (value(7, 0, i) + value(7, 1, i)) + value(7, 2, i)).collect();
        let backward: Vec<f32> = (0..n).map(|i| (value(7, 2, i) + value(7, 1, i)) + value(7, 0, i)).collect();
        let differ = forward.iter().zip(&backward).filter(|(a, b)| a != b).count();
        assert!(differ > n / 10, "{differ} of {n}");
        assert_eq!(fault(7, &forward, 3, Exactness::Bits), None);
        assert_eq!(fault(7, &backward, 3, Exactness::F32), None);
        assert!(fault(7, &backward, 3, Exactness::Bits).unwrap().contains("of 2880 is"));
    }

    #[test]
    fn a_lost_term_and_a_nan_are_faults() {
        for exactness in [Exactness::Bits, Exactness::F32, Exactness::Bf16] {
            let mut sums: Vec<f32> =
                (0..100).map(|i| (value(7, 0, i) + value(7, 1, i)) + value(7, 2, i)).collect();
            assert_eq!(fault(7, &sums, 3, exactness), None, "{exactness:?}");
            sums[99] = f32::NAN;
            assert!(fault(7, &sums, 3, exactness).unwrap().starts_with("value 99 of 100"), "{exactness:?}");
            let lost: Vec<f32> = (0..100).map(|i| value(7, 0, i) + value(7, 1, i)).collect();
            assert!(fault(7, &lost, 3, exactness).is_some(), "{exactness:?}");
        }
    }

    #[test]
    fn one_rank_that_differs_is_named() {
        let finding =
            |hash: &str, fault: Option<&str>| Finding { hash: hash.into(), fault: fault.map(Into::into) };
        assert_eq!(verdict(&[finding("a", None), finding("a", None)]), Ok(()));
        let different = verdict(&[finding("a", None), finding("a", None), finding("b", None)]);
        assert!(different.unwrap_err().contains("ranks 0 and 2 hold different sums"));
        let faulty = verdict(&[finding("a", None), finding("b", Some("value 3"))]);
        assert_eq!(faulty.unwrap_err(), "rank 1: value 3");
    }
}
