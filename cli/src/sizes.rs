//! Numbers with units, as people type them. Plain numbers are what they always were: bytes, tokens, bytes a second.

use flotilla_shared::units::Bytes;

/// `12GB`, `12GiB`, or bytes; not none.
pub fn memory(text: &str) -> Result<Bytes, String> {
    match text.parse() {
        Ok(Bytes(0)) => Err("expected more than nothing".into()),
        Err(_) => Err("expected bytes, such as 12GB, 12GiB or 12000000000".into()),
        parsed => parsed,
    }
}

/// `500MB/s`, or without `/s`.
pub fn rate(text: &str) -> Result<Bytes, String> {
    match text.strip_suffix("/s").unwrap_or(text).parse() {
        Ok(Bytes(0)) => Err("expected more than nothing".into()),
        Err(_) => Err("expected bytes a second, such as 500MB/s".into()),
        parsed => parsed,
    }
}

/// A rate, or a plain number that is relative to the other workers'.
pub fn bandwidth(text: &str) -> Result<f64, String> {
    let plain = text.parse().ok().or_else(|| rate(text).ok().map(|rate| rate.0 as f64));
    plain
        .filter(|number: &f64| number.is_finite() && *number > 0.0)
        .ok_or_else(|| "expected bytes a second, such as 30GB/s, or a number above zero".into())
}

/// Tokens: `16384`, `16K` (of 1024), or `16k` (of 1000), as vLLM reads them.
pub fn tokens(text: &str) -> Result<usize, String> {
    const UNITS: [(char, usize); 4] = [('k', 1000), ('K', 1024), ('m', 1_000_000), ('M', 1 << 20)];
    let with_unit = UNITS.iter().find_map(|&(unit, size)| Some((text.strip_suffix(unit)?, size)));
    let (number, size) = with_unit.unwrap_or((text, 1));
    let count = number.parse::<usize>().ok().and_then(|count| count.checked_mul(size));
    count.ok_or_else(|| "expected a number of tokens, such as 16384, 16K (of 1024) or 16k (of 1000)".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_units_and_without() {
        for (text, bytes) in [("12GB", 12_000_000_000), ("2GiB", 2 << 30), ("1234", 1234)] {
            assert_eq!(memory(text), Ok(Bytes(bytes)), "{text}");
        }
        for (text, found) in [("30GB/s", 30e9), ("30GB", 30e9), ("1.5", 1.5), ("36e9", 36e9), ("7", 7.0)] {
            assert_eq!(bandwidth(text), Ok(found), "{text}");
        }
        for (text, count) in [("16384", 16384), ("16K", 16384), ("16k", 16000), ("1M", 1 << 20), ("0", 0)] {
            assert_eq!(tokens(text), Ok(count), "{text}");
        }
    }

    #[test]
    fn other_words_are_answered_with_what_was_expected() {
        for text in ["", "0", "12gb", "12 XB", "-1", "much"] {
            assert!(memory(text).is_err(), "{text}");
        }
        for text in ["", "0", "-3", "inf", "NaN", "30 per second", "0GB/s"] {
            assert!(bandwidth(text).is_err(), "{text}");
        }
        for text in ["", "k", "-1", "1.5k", "16 tokens", "99999999999999999999", "99999999999999999M"] {
            assert!(tokens(text).unwrap_err().contains("such as 16384"), "{text}");
        }
    }
}
