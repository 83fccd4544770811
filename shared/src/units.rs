//! Quantities as people read them.

use std::fmt;

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
}
