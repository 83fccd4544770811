//! Spans of time as they are typed: `500ms`, `2.5s`, `3m`, `1h`; a year at most, so that what is added to the time of day
//! is a time.

use std::time::Duration;

const UNITS: [(&str, f64); 5] = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

const HOURS_MAX: u64 = 365 * 24;

pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no span of time\nhint: 500ms, 2.5s, 3m or 1h");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(wrong)?;
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let span = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
    match span > Duration::from_secs(HOURS_MAX * 3600) {
        true => Err(format!("{text:?} is more than a year\nhint: {HOURS_MAX}h is the longest")),
        false => Ok(span),
    }
}

/// In whole microseconds.
pub fn us(span: Duration) -> u64 {
    span.as_micros().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::parse;
    use std::time::Duration;

    #[test]
    fn spans_have_units() {
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("2.5s"), Ok(Duration::from_millis(2500)));
        assert_eq!(parse("3m"), Ok(Duration::from_secs(180)));
        for wrong in ["", "5", "s", "5 weeks", "-1s", "1e9h", "1.2.3s"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn none_is_longer_than_a_year() {
        assert_eq!(parse("8760h"), Ok(Duration::from_secs(365 * 86_400)));
        for long in ["9000h", "999999999999999h"] {
            assert!(parse(long).unwrap_err().contains("is more than a year\nhint: 8760h"), "{long}");
        }
    }
}
