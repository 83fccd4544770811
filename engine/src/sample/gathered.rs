//! What ranks send each other about rows, as bytes, little-endian, rank after rank: written by one and read by
//! all, so a rank that sends something else is an error and not a panic.

use super::SampleError;

/// Values that are sent.
pub(super) trait Sent: Sized + Copy {
    fn put(self, out: &mut Vec<u8>);
    fn take(from: &mut &[u8]) -> Option<Self>;
}

macro_rules! sent {
    ($($number:ty),*) => {$(
        impl Sent for $number {
            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn take(from: &mut &[u8]) -> Option<Self> {
                let (bytes, rest) = from.split_first_chunk()?;
                *from = rest;
                Some(<$number>::from_le_bytes(*bytes))
            }
        }
    )*};
}

sent!(u8, u32, f32, f64, u128);

impl<A: Sent, B: Sent> Sent for (A, B) {
    fn put(self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        Some((A::take(from)?, B::take(from)?))
    }
}

/// As many as follow, and they.
pub(super) fn put_all<T: Sent>(values: impl ExactSizeIterator<Item = T>, out: &mut Vec<u8>) {
    (values.len() as u32).put(out);
    values.for_each(|value| value.put(out));
}

pub(super) fn take_all<T: Sent>(from: &mut &[u8]) -> Option<Vec<T>> {
    let count = u32::take(from)? as usize;
    // No more than there can be, before memory is taken for them.
    if count > from.len() {
        return None;
    }
    (0..count).map(|_| T::take(from)).collect()
}

/// What each rank has sent for each of some rows: `read` reads one rank's of one row. [rows][ranks]
pub(super) fn by_row<T>(
    mut gathered: &[u8],
    rows: usize,
    ranks: usize,
    read: impl Fn(usize, &mut &[u8]) -> Option<T>,
) -> Result<Vec<Vec<T>>, SampleError> {
    let mut found: Vec<Vec<T>> = (0..rows).map(|_| Vec::with_capacity(ranks)).collect();
    for rank in 0..ranks {
        for (row, found) in found.iter_mut().enumerate() {
            found.push(read(row, &mut gathered).ok_or(SampleError::Unreadable { rank })?);
        }
    }
    match gathered {
        [] => Ok(found),
        _ => Err(SampleError::Unreadable { rank: ranks - 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_taken_by_row_and_rank() {
        let mut bytes = Vec::new();
        for rank in 0..2u32 {
            for row in 0..3u32 {
                put_all((0..row).map(|i| (rank, f32::from(i as u8))), &mut bytes);
            }
        }
        let read = |_: usize, from: &mut &[u8]| take_all::<(u32, f32)>(from);
        let found = by_row(&bytes, 3, 2, read).unwrap();
        assert_eq!(found[2][1], [(1, 0.0), (1, 1.0)]);
        for spoilt in [&bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat()] {
            let error = by_row(spoilt, 3, 2, read).unwrap_err().to_string();
            assert!(error.starts_with("rank 1 sent"), "{error}");
        }
        assert_eq!(take_all::<u32>(&mut &u32::MAX.to_le_bytes()[..]), None);
    }
}
