//! Rectangles of tensors, and where their bytes lie.

use super::TensorId;
use crate::spec::ModelSpec;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// A rectangle of a tensor: one range a dimension. Its bytes are in row-major order of the rectangle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSlice {
    pub tensor: TensorId,
    pub ranges: Vec<Range<usize>>,
}

impl TensorSlice {
    pub fn whole(tensor: TensorId, spec: &ModelSpec) -> Self {
        TensorSlice { tensor, ranges: tensor.shape(spec).into_iter().map(|n| 0..n).collect() }
    }

    /// The whole tensor but for one dimension.
    pub fn cut(tensor: TensorId, spec: &ModelSpec, dimension: usize, range: Range<usize>) -> Self {
        let mut slice = Self::whole(tensor, spec);
        slice.ranges[dimension] = range;
        slice
    }

    pub fn shape(&self) -> Vec<usize> {
        self.ranges.iter().map(ExactSizeIterator::len).collect()
    }

    pub fn bytes(&self) -> usize {
        self.shape().iter().product::<usize>() * self.tensor.dtype().bytes()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.iter().any(Range::is_empty)
    }

    /// Whether all of `part` lies in this slice.
    pub fn covers(&self, part: &TensorSlice) -> bool {
        let inside =
            |(own, part): (&Range<usize>, &Range<usize>)| own.start <= part.start && part.end <= own.end;
        self.tensor == part.tensor && (part.is_empty() || self.ranges.iter().zip(&part.ranges).all(inside))
    }

    /// What both have.
    pub fn common(&self, other: &TensorSlice) -> Option<TensorSlice> {
        let both = |(a, b): (&Range<usize>, &Range<usize>)| a.start.max(b.start)..a.end.min(b.end);
        let ranges = self.ranges.iter().zip(&other.ranges).map(both).collect();
        let common = TensorSlice { tensor: self.tensor, ranges };
        (self.tensor == other.tensor && !common.is_empty()).then_some(common)
    }

    /// Rectangles that tile what is in this slice and not in `other`.
    pub fn without(&self, other: &TensorSlice) -> Vec<TensorSlice> {
        let Some(common) = self.common(other) else { return vec![self.clone()] };
        let (mut rest, mut left) = (self.clone(), Vec::new());
        // What lies before and behind along one dimension, then the same of what is left along the next.
        for (dimension, both) in common.ranges.into_iter().enumerate() {
            let own = rest.ranges[dimension].clone();
            for beside in [own.start..both.start, both.end..own.end] {
                let mut part = rest.clone();
                part.ranges[dimension] = beside;
                left.push(part);
            }
            rest.ranges[dimension] = both;
        }
        left.retain(|part| !part.is_empty());
        left
    }

    /// The slice as contiguous runs of the tensor's elements, in the slice's own order.
    ///
    /// `shape` is the whole tensor's. A slice that spans its trailing dimensions has few, long runs.
    pub fn runs(&self, shape: &[usize]) -> Runs {
        Runs::new(self, shape)
    }
}

/// Prints as `name[0..32, 0..1472]`.
impl fmt::Display for TensorSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.ranges.iter().map(|r| format!("{}..{}", r.start, r.end)).collect();
        write!(f, "{}[{}]", self.tensor, ranges.join(", "))
    }
}

/// Iterator over element ranges; see [`TensorSlice::runs`].
#[derive(Debug)]
pub struct Runs {
    /// Start element of the next run along each outer dimension, as (range, stride).
    outer: Vec<(Range<usize>, usize)>,
    counter: Vec<usize>,
    run_start: usize,
    run_len: usize,
    left: usize,
}

impl Runs {
    fn new(slice: &TensorSlice, shape: &[usize]) -> Self {
        assert_eq!(slice.ranges.len(), shape.len(), "{slice}: a range for each of {shape:?}");
        // Trailing whole dimensions, and the first cut one before them, are one run.
        let mut inner = shape.len().saturating_sub(1);
        while inner > 0 && slice.ranges[inner] == (0..shape[inner]) {
            inner -= 1;
        }
        let stride = |dimension: usize| shape[dimension + 1..].iter().product::<usize>();
        let outer: Vec<_> = (0..inner).map(|d| (slice.ranges[d].clone(), stride(d))).collect();
        let (run_start, run_len) = match slice.ranges.get(inner) {
            Some(range) => (range.start * stride(inner), range.len() * stride(inner)),
            None => (0, 1),
        };
        let left = if run_len == 0 { 0 } else { outer.iter().map(|(r, _)| r.len()).product() };
        Runs { counter: outer.iter().map(|(r, _)| r.start).collect(), outer, run_start, run_len, left }
    }
}

impl Iterator for Runs {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        self.left = self.left.checked_sub(1)?;
        let base: usize = self.counter.iter().zip(&self.outer).map(|(at, (_, stride))| at * stride).sum();
        for (at, (range, _)) in self.counter.iter_mut().zip(&self.outer).rev() {
            *at += 1;
            if *at < range.end {
                break;
            }
            *at = range.start;
        }
        let start = base + self.run_start;
        Some(start..start + self.run_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_rectangle_in_its_own_order() {
        let shape = [3, 4, 5];
        let slice = TensorSlice { tensor: TensorId::Embed, ranges: vec![1..3, 0..4, 2..4] };
        let elements: Vec<usize> = slice.runs(&shape).flatten().collect();
        let expected: Vec<usize> =
            (1..3).flat_map(|a| (0..4).flat_map(move |b| (2..4).map(move |c| (a * 4 + b) * 5 + c))).collect();
        assert_eq!(elements, expected);
    }

    #[test]
    fn a_slice_without_another_is_what_is_left() {
        let slice =
            |ranges: [Range<usize>; 3]| TensorSlice { tensor: TensorId::Embed, ranges: ranges.to_vec() };
        let elements = |slice: &TensorSlice| {
            slice.runs(&[6, 6, 6]).flatten().collect::<std::collections::BTreeSet<usize>>()
        };
        let own = slice([1..5, 0..6, 2..5]);
        let others = [
            [2..4, 1..3, 3..4],
            [0..6, 0..6, 0..3],
            [0..1, 0..6, 0..6],
            [1..5, 0..6, 2..5],
            [0..3, 4..6, 0..6],
        ];
        for other in others.map(slice) {
            let parts = own.without(&other);
            let mut left = std::collections::BTreeSet::new();
            for element in parts.iter().flat_map(elements) {
                assert!(left.insert(element), "{other}: twice in {parts:?}");
            }
            let common = own.common(&other);
            assert_eq!(common.is_none(), elements(&own).is_disjoint(&elements(&other)));
            assert_eq!(
                common.as_ref().map_or(0, |common| elements(common).len()) + left.len(),
                elements(&own).len()
            );
            assert!(left.is_disjoint(&elements(&other)));
            assert_eq!(other.covers(&own), left.is_empty());
        }
    }

    #[test]
    fn whole_trailing_dimensions_are_one_run() {
        let shape = [3, 4, 5];
        let runs = |ranges| TensorSlice { tensor: TensorId::Embed, ranges }.runs(&shape).collect::<Vec<_>>();
        assert_eq!(runs(vec![0..3, 0..4, 0..5]), [0..60]);
        assert_eq!(runs(vec![1..2, 0..4, 0..5]), [20..40]);
        assert_eq!(runs(vec![0..2, 1..3, 0..5]), [5..15, 25..35]);
        assert!(runs(vec![0..2, 1..1, 0..5]).is_empty());
        assert!(runs(vec![2..2, 0..4, 0..5]).is_empty());
    }
}
