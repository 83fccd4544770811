//! A slice as contiguous runs of its tensor's bytes, or of those of a larger slice, reachable from any byte of
//! the slice: what a source needs to copy or to make a chunk from the middle of a rectangle.

use super::lies_within;
use flotilla_shared::{ModelSpec, TensorSlice};
use std::ops::Range;

/// The same runs as [`TensorSlice::runs`], in bytes, without walking those before the wanted one.
pub struct ByteRuns {
    /// Each outer dimension: its range, and the bytes from one index to the next.
    outer: Vec<(Range<usize>, usize)>,
    /// First byte of the run within the innermost cut dimension.
    first: usize,
    run_bytes: usize,
    run_count: usize,
}

/// Runs at equal distances, all in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Comb {
    /// Where the first begins in the tensor.
    pub start: usize,
    pub run_bytes: usize,
    /// From where one begins to where the next does.
    pub stride: usize,
    pub run_count: usize,
}

impl ByteRuns {
    /// # Panics
    /// If the slice does not lie in its tensor.
    pub(crate) fn new(slice: &TensorSlice, spec: &ModelSpec) -> Self {
        assert!(lies_within(slice, spec), "{slice} does not lie in its tensor");
        Self::of(slice, &slice.tensor.shape(spec))
    }

    /// Of a part of a slice, in the bytes of that slice.
    ///
    /// # Panics
    /// If the part does not lie in it.
    pub fn within(part: &TensorSlice, slice: &TensorSlice) -> Self {
        assert!(slice.covers(part), "{part} does not lie in {slice}");
        let shifted = part.ranges.iter().zip(&slice.ranges);
        let ranges = shifted.map(|(part, whole)| part.start - whole.start..part.end - whole.start).collect();
        Self::of(&TensorSlice { tensor: part.tensor, ranges }, &slice.shape())
    }

    fn of(slice: &TensorSlice, shape: &[usize]) -> Self {
        let element = slice.tensor.dtype().bytes();
        // Whole trailing dimensions, and the first cut one before them, are one run.
        let mut inner = shape.len() - 1;
        while inner > 0 && slice.ranges[inner] == (0..shape[inner]) {
            inner -= 1;
        }
        let stride = |dimension: usize| shape[dimension + 1..].iter().product::<usize>() * element;
        let outer: Vec<_> = (0..inner).map(|d| (slice.ranges[d].clone(), stride(d))).collect();
        ByteRuns {
            first: slice.ranges[inner].start * stride(inner),
            run_bytes: slice.ranges[inner].len() * stride(inner),
            run_count: outer.iter().map(|(range, _)| range.len()).product(),
            outer,
        }
    }

    /// Where byte `offset` of the slice lies in the tensor.
    pub(crate) fn at(&self, offset: usize) -> usize {
        self.start(offset / self.run_bytes) + offset % self.run_bytes
    }

    /// Calls `visit(byte of the tensor, range of the chunk)` for each run, or part of one, of the
    /// chunk of `len` bytes that begins at byte `offset` of the slice, in order.
    ///
    /// # Panics
    /// If the chunk ends past the slice.
    pub fn visit(&self, offset: usize, len: usize, mut visit: impl FnMut(usize, Range<usize>)) {
        let slice_bytes = self.run_bytes * self.run_count;
        let end = offset.checked_add(len).filter(|&end| end <= slice_bytes);
        assert!(end.is_some(), "bytes {offset} + {len} of a slice of {slice_bytes}");
        let mut done = 0;
        while done < len {
            let (run, within) = ((offset + done) / self.run_bytes, (offset + done) % self.run_bytes);
            let take = (self.run_bytes - within).min(len - done);
            visit(self.start(run) + within, done..done + take);
            done += take;
        }
    }

    /// Calls `visit(byte of the part, range of the chunk)` for each run, or part of one, that lies in bytes `chunk` of
    /// the slice that the runs were made within, in order.
    pub(crate) fn meet(&self, chunk: Range<usize>, mut visit: impl FnMut(usize, Range<usize>)) {
        let (mut from, mut to) = (0, self.run_count);
        // The first run that ends behind the chunk's start.
        while from < to {
            let middle = (from + to) / 2;
            if self.start(middle) + self.run_bytes <= chunk.start { from = middle + 1 } else { to = middle }
        }
        for run in from..self.run_count {
            let start = self.start(run);
            let (begin, end) = (start.max(chunk.start), (start + self.run_bytes).min(chunk.end));
            if begin >= end {
                return;
            }
            visit(run * self.run_bytes + begin - start, begin - chunk.start..end - chunk.start);
        }
    }

    /// From the first to the last of these bytes of the slice that the runs were made within that lie in the part.
    pub(crate) fn span_in(&self, chunk: Range<usize>) -> Option<Range<usize>> {
        let mut span: Option<Range<usize>> = None;
        self.meet(chunk.clone(), |_, range| {
            let start = span.as_ref().map_or(range.start, |span| span.start);
            span = Some(start..range.end);
        });
        span.map(|span| chunk.start + span.start..chunk.start + span.end)
    }

    /// From the first to the last byte of the tensor that bytes `bytes` of the slice, at least one, lie at.
    pub(super) fn span(&self, bytes: Range<usize>) -> Range<usize> {
        self.at(bytes.start)..self.at(bytes.end - 1) + 1
    }

    /// All runs, those at equal distances together; of a plan's slice that is one comb.
    pub(crate) fn combs(&self) -> Vec<Comb> {
        let (mut run_count, mut stride) = (1, self.run_bytes);
        for (range, step) in self.outer.iter().rev() {
            if run_count == 1 {
                stride = *step;
            } else if *step != run_count * stride {
                break;
            }
            run_count *= range.len();
        }
        let comb = |run| Comb { start: self.start(run), run_bytes: self.run_bytes, stride, run_count };
        (0..self.run_count).step_by(run_count.max(1)).map(comb).collect()
    }

    /// First byte in the tensor of run number `run`.
    fn start(&self, mut run: usize) -> usize {
        let mut byte = self.first;
        for (range, stride) in self.outer.iter().rev() {
            byte += (range.start + run % range.len()) * stride;
            run /= range.len();
        }
        byte
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::tensor::{LayerTensor, TensorId};

    #[test]
    fn any_chunk_visits_the_runs_of_the_slice() {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let tensor = TensorId::Layer(3, LayerTensor::DownScales);
        let slice = TensorSlice { tensor, ranges: vec![1..3, 7..12, 23..46] };
        let expected: Vec<usize> = slice.runs(&tensor.shape(&spec)).flatten().collect();
        let runs = ByteRuns::new(&slice, &spec);
        for offset in [0, 1, 22, 23, 24, 100, expected.len()] {
            for len in [0, 1, 23, 50, expected.len()] {
                let len = len.min(expected.len() - offset);
                let mut bytes = vec![0; len];
                runs.visit(offset, len, |start, range| {
                    bytes[range].iter_mut().enumerate().for_each(|(i, byte)| *byte = start + i);
                });
                assert_eq!(bytes, expected[offset..offset + len], "{offset} + {len}");
                if len > 0 {
                    let span = runs.span(offset..offset + len);
                    assert_eq!(span, expected[offset]..expected[offset + len - 1] + 1);
                }
            }
        }
    }

    /// Parts that tile a slice are together each of its chunks.
    #[test]
    fn parts_meet_every_chunk_of_their_slice() {
        let tensor = TensorId::Layer(3, LayerTensor::DownScales);
        let slice = TensorSlice { tensor, ranges: vec![1..4, 7..12, 20..50] };
        let kept = TensorSlice { tensor, ranges: vec![2..9, 0..10, 30..40] };
        let mut parts = slice.without(&kept);
        parts.extend(slice.common(&kept));
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let bytes = |slice: &TensorSlice| slice.runs(&tensor.shape(&spec)).flatten().collect::<Vec<_>>();
        let whole = bytes(&slice);
        for chunk in [0..whole.len(), 0..1, 29..31, 100..333, 449..450] {
            let mut found = vec![usize::MAX; chunk.len()];
            for part in &parts {
                let own = bytes(part);
                ByteRuns::within(part, &slice).meet(chunk.clone(), |at, range| {
                    let len = range.len();
                    found[range].copy_from_slice(&own[at..at + len]);
                });
            }
            assert_eq!(found, whole[chunk]);
        }
    }

    #[test]
    fn combs_are_all_runs_in_order() {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let tensor = TensorId::Layer(3, LayerTensor::DownScales);
        for (ranges, count) in [
            // As a plan cuts.
            (vec![0..32, 0..2880, 23..46], 1),
            (vec![2..3, 0..2880, 23..46], 1),
            (vec![4..9, 0..2880, 0..90], 1),
            // As none does.
            (vec![4..7, 7..12, 0..90], 1),
            (vec![4..7, 7..12, 23..46], 3),
            (vec![4..7, 7..8, 23..46], 1),
            (vec![4..7, 7..7, 23..46], 0),
        ] {
            let slice = TensorSlice { tensor, ranges };
            let expected: Vec<usize> = slice.runs(&tensor.shape(&spec)).flatten().collect();
            let combs = ByteRuns::new(&slice, &spec).combs();
            assert_eq!(combs.len(), count, "{slice}");
            let bytes = combs.iter().flat_map(|comb| {
                let run = |n| comb.start + n * comb.stride..comb.start + n * comb.stride + comb.run_bytes;
                (0..comb.run_count).flat_map(run)
            });
            assert!(bytes.eq(expected.iter().copied()), "{slice}");
        }
    }
}
