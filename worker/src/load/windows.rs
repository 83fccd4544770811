//! In which order a load asks for what it wants: everything at once, unless slices come in several parts. Those wait in memory
//! until the last has come, and who gives one may be slower than who gives another: so a bounded number of bytes is asked
//! for before the next.

use flotilla_shared::TensorSlice;
use std::ops::Range;

/// Of parts that may wait for others.
const WINDOW_BYTES: usize = 512 << 20;

/// Ranges of what is wanted, to be brought one after the other.
pub fn windows(wanted: &[TensorSlice]) -> Vec<Range<usize>> {
    let is_whole = wanted.windows(2).all(|pair| pair[0].tensor != pair[1].tensor);
    if is_whole {
        return vec![0..wanted.len()];
    }
    bounded(wanted, WINDOW_BYTES)
}

/// As many as are together at least so many bytes; all parts of a tensor are in one.
fn bounded(wanted: &[TensorSlice], bytes: usize) -> Vec<Range<usize>> {
    let (mut windows, mut start, mut sum) = (Vec::new(), 0, 0);
    for (at, part) in wanted.iter().enumerate() {
        sum += part.bytes();
        let is_last = wanted.get(at + 1).is_none_or(|next| next.tensor != part.tensor && sum >= bytes);
        if is_last {
            windows.push(start..at + 1);
            (start, sum) = (at + 1, 0);
        }
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::tensor::{LayerTensor, TensorId};

    #[test]
    fn parts_of_a_tensor_are_in_one_window() {
        let tensor = |layer, rows| TensorSlice {
            tensor: TensorId::Layer(layer, LayerTensor::QBias),
            ranges: vec![rows],
        };
        let whole = [tensor(0, 0..4), tensor(1, 0..9), tensor(2, 0..1)];
        assert_eq!(windows(&whole), [0..3]);
        let parts = [tensor(0, 0..4), tensor(0, 6..9), tensor(1, 0..9), tensor(2, 0..1)];
        assert_eq!(bounded(&parts, 1), [0..2, 2..3, 3..4]);
        assert_eq!(bounded(&parts, 15), [0..3, 3..4]);
        assert_eq!(bounded(&parts, 1 << 20), [0..4]);
        assert_eq!(bounded(&[], 1), []);
    }
}
