//! Lengths in tokens: one, a range, or log-normal, as lengths of real conversations roughly are.

use crate::chance::Chance;
use std::fmt;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lengths {
    Fixed(usize),
    /// Both ends are drawn.
    Uniform(usize, usize),
    /// `sigma` is the deviation of the logarithm; more than `max` becomes `max`.
    LogNormal {
        median: f64,
        sigma: f64,
        max: usize,
    },
}

/// Prompts of about the lengths of ShareGPT's. Their mean, 161 tokens, is vLLM's paper's; sigma is ours, and the median
/// is what gives that mean: 161 / exp(1.2² / 2).
pub const SHAREGPT_PROMPTS: Lengths = Lengths::LogNormal { median: 78.4, sigma: 1.2, max: 2048 };
/// Their answers: mean 338, sigma 1.
pub const SHAREGPT_ANSWERS: Lengths = Lengths::LogNormal { median: 205.0, sigma: 1.0, max: 2048 };

const HINT: &str = "hint: 128, 64..256, or lognormal:MEDIAN,SIGMA,MAX as in lognormal:80,1.2,2048";

impl Lengths {
    /// At least 1.
    pub fn draw(&self, chance: &mut Chance) -> usize {
        match *self {
            Lengths::Fixed(tokens) => tokens,
            Lengths::Uniform(from, to) => from + chance.below(to - from + 1),
            Lengths::LogNormal { median, sigma, max } => {
                let tokens = median * (sigma * chance.normal()).exp();
                (tokens.round() as usize).clamp(1, max)
            }
        }
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Lengths, String> {
        let lengths = match (text.split_once(".."), text.strip_prefix("lognormal:")) {
            (_, Some(numbers)) => log_normal(numbers),
            (Some((from, to)), None) => {
                from.parse().ok().zip(to.parse().ok()).map(|(from, to)| Lengths::Uniform(from, to))
            }
            (None, None) => text.parse().ok().map(Lengths::Fixed),
        };
        let can_be = |lengths: &Lengths| match *lengths {
            Lengths::Fixed(tokens) => tokens > 0,
            Lengths::Uniform(from, to) => from > 0 && from <= to,
            Lengths::LogNormal { median, sigma, max } => median >= 1.0 && sigma >= 0.0 && max > 0,
        };
        lengths.filter(can_be).ok_or_else(|| format!("{text:?} is no length in tokens\n{HINT}"))
    }
}

fn log_normal(numbers: &str) -> Option<Lengths> {
    let mut numbers = numbers.split(',');
    let (median, sigma) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    let max = numbers.next()?.parse().ok()?;
    numbers.next().is_none().then_some(Lengths::LogNormal { median, sigma, max })
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lengths::Fixed(tokens) => write!(f, "{tokens}"),
            Lengths::Uniform(from, to) => write!(f, "{from}..{to}"),
            Lengths::LogNormal { median, sigma, max } => write!(f, "lognormal:{median},{sigma},{max}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_read_and_said_again() {
        for text in ["128", "64..256", "lognormal:80,1.2,2048"] {
            assert_eq!(text.parse::<Lengths>().unwrap().to_string(), text);
        }
        for wrong in
            ["0", "", "9..3", "0..3", "lognormal:80,1.2", "lognormal:0,1,5", "lognormal:80,1,2,3", "x"]
        {
            assert!(wrong.parse::<Lengths>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_log_normal_has_its_median_and_its_mean() {
        let mut chance = Chance::new(7);
        let mut drawn: Vec<usize> = (0..40_000).map(|_| SHAREGPT_PROMPTS.draw(&mut chance)).collect();
        let mean = drawn.iter().sum::<usize>() as f64 / drawn.len() as f64;
        drawn.sort_unstable();
        let median = drawn[drawn.len() / 2] as f64;
        assert!((median - 78.4).abs() < 3.0, "seed 7: median {median}");
        // A little below 161: what is beyond 2048 is cut to it.
        assert!((mean - 158.0).abs() < 6.0, "seed 7: mean {mean}");
    }

    #[test]
    fn a_range_is_drawn_from_end_to_end() {
        let mut chance = Chance::new(7);
        let drawn: Vec<usize> = (0..1000).map(|_| Lengths::Uniform(3, 6).draw(&mut chance)).collect();
        assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&3), Some(&6)));
    }
}
