//! Quantities as people read them.

use std::fmt;
use std::str::FromStr;

/// A count of bytes, printed in powers of 1000 as disks and links are sold: `13.76 GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] =
            [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
        for (unit, size) in UNITS {
            if self.0 >= size {
                return f.pad(&format!("{:.2} {unit}", self.0 as f64 / size as f64));
            }
        }
        f.pad(&format!("{} B", self.0))
    }
}

/// A number of bytes as people write it: `500MB`, `1.5 GB`, `64GiB`, or plain. With a unit the nearest whole byte is meant:
/// few decimals are whole bytes, and fewer still in an f64. A part of a byte alone is a mistake.
impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        const UNITS: [(&str, u64); 9] = [
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
            ("kB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
            ("B", 1),
        ];
        let with_unit = UNITS.iter().find_map(|&(unit, size)| Some((text.strip_suffix(unit)?, size)));
        let (number, size) = with_unit.unwrap_or((text, 1));
        let count: f64 = number.trim().parse().unwrap_or(f64::NAN);
        let bytes = (count * size as f64).round();
        // Beyond it an f64 does not count bytes any more.
        let possible = (0.0..9e15).contains(&bytes) && (size > 1 || bytes == count);
        possible
            .then_some(Bytes(bytes as u64))
            .ok_or_else(|| format!("expected bytes such as 500MB, found {text:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::Bytes;

    #[test]
    fn bytes_read_as_people_say_them() {
        assert_eq!(Bytes(0).to_string(), "0 B");
        assert_eq!(Bytes(999).to_string(), "999 B");
        assert_eq!(Bytes(13_761_264_768).to_string(), "13.76 GB");
        assert_eq!(format!("{:>10}", Bytes(5_800)), "   5.80 kB");
    }

    /// Whichever sums of tenths an f64 has.
    #[test]
    fn decimals_are_read_with_every_unit() {
        for hundredths in 1..=9999_u64 {
            let text = format!("{}.{:02}GB", hundredths / 100, hundredths % 100);
            assert_eq!(text.parse(), Ok(Bytes(hundredths * 10_000_000)), "{text}");
        }
    }

    #[test]
    fn bytes_are_read_as_they_are_written() {
        for (text, bytes) in [
            ("0", 0),
            ("1234", 1234),
            ("5B", 5),
            ("500MB", 500_000_000),
            ("1.5 GB", 1_500_000_000),
            ("64GiB", 64 << 30),
            ("2KiB", 2048),
            // Not whole in an f64.
            ("16.4GB", 16_400_000_000),
            ("4.1 MB", 4_100_000),
            // Not whole at all.
            ("1.1GiB", 1_181_116_006),
            ("0.3KiB", 307),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "GB", "-1", "-1GB", "1.5", "1.5B", "1e30", "5 XB", "500mb", "inf", "NaN"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
