//! In which order a load asks for what it wants. First comes what all ranks of a stage have, for they take it from one of them.
//! Then everything at once, unless slices come in several parts. Those wait in memory until the last has come, and who gives one
//! may be slower than who gives another: so a bounded number of bytes is asked for before the next.

use flotilla_shared::TensorSlice;

/// Of parts that may wait for others.
const WINDOW_BYTES: usize = 512 << 20;

/// Numbers of what is wanted, to be brought one after the other.
pub fn windows(wanted: &[TensorSlice]) -> Vec<Vec<usize>> {
    let (first, rest): (Vec<usize>, Vec<usize>) =
        (0..wanted.len()).partition(|&at| wanted[at].tensor.replicated());
    let is_whole = rest.windows(2).all(|pair| wanted[pair[0]].tensor != wanted[pair[1]].tensor);
    let rest = match is_whole {
        true => vec![rest],
        false => bounded(wanted, &rest, WINDOW_BYTES),
    };
    std::iter::once(first).chain(rest).filter(|window| !window.is_empty()).collect()
}

/// As many as are together at least so many bytes; all parts of a tensor are in one.
fn bounded(wanted: &[TensorSlice], numbers: &[usize], bytes: usize) -> Vec<Vec<usize>> {
    let (mut windows, mut window, mut sum) = (Vec::new(), Vec::new(), 0);
    for (at, &number) in numbers.iter().enumerate() {
        let part = &wanted[number];
        window.push(number);
        sum += part.bytes();
        let next = numbers.get(at + 1);
        if next.is_none_or(|&next| wanted[next].tensor != part.tensor && sum >= bytes) {
            windows.push(std::mem::take(&mut window));
            sum = 0;
        }
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::tensor::{LayerTensor, TensorId};
    use std::ops::Range;

    fn of_layer(layer: u16, tensor: LayerTensor, rows: Range<usize>) -> TensorSlice {
        TensorSlice { tensor: TensorId::Layer(layer, tensor), ranges: vec![rows] }
    }

    #[test]
    fn parts_of_a_tensor_are_in_one_window() {
        let tensor = |layer, rows| of_layer(layer, LayerTensor::QBias, rows);
        let whole = [tensor(0, 0..4), tensor(1, 0..9), tensor(2, 0..1)];
        assert_eq!(windows(&whole), [[0, 1, 2]]);
        let parts = [tensor(0, 0..4), tensor(0, 6..9), tensor(1, 0..9), tensor(2, 0..1)];
        let bounded = |bytes| bounded(&parts, &[0, 1, 2, 3], bytes);
        assert_eq!(bounded(1), [vec![0, 1], vec![2], vec![3]]);
        assert_eq!(bounded(15), [vec![0, 1, 2], vec![3]]);
        assert_eq!(bounded(1 << 20), [[0, 1, 2, 3]]);
        assert!(super::bounded(&[], &[], 1).is_empty() && windows(&[]).is_empty());
    }

    #[test]
    fn what_all_ranks_have_comes_first() {
        let norm = |layer| of_layer(layer, LayerTensor::MlpNorm, 0..4);
        let bias = |layer, rows| of_layer(layer, LayerTensor::QBias, rows);
        let wanted = [bias(0, 0..4), norm(0), bias(1, 0..4), bias(1, 6..9), norm(1)];
        assert_eq!(windows(&wanted), [vec![1, 4], vec![0, 2, 3]]);
        assert_eq!(windows(&wanted[4..]), [[0]]);
    }
}
