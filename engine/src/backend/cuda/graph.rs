//! Decode steps as CUDA graphs: a step of so many rows is recorded once, and replayed for every other. What
//! differs between steps lies in the card's memory ([`super::batch`]), so that nothing is launched anew.

use super::CudaBackend;
use super::batch::DeviceBatch;
use super::dense::DenseKernels;
use crate::batch::Batch;
use crate::cuda::CudaError;
use cudarc::driver::{CudaGraph, sys};
use flotilla_shared::activations::LOGIT_ROWS;
use std::collections::{BTreeMap, BTreeSet};

/// Rows that a graph is recorded for: a step of fewer leaves the rest idle.
const BUCKETS: [usize; 10] = [1, 2, 4, 8, 12, 16, 24, 32, 48, LOGIT_ROWS];

/// Recorded steps, by their number of rows.
#[derive(Default)]
pub struct Graphs {
    recorded: BTreeMap<usize, CudaGraph>,
    /// Steps that were carried out as they are before they are recorded, because they load code.
    loaded: BTreeSet<usize>,
}

impl Graphs {
    /// Where an address has changed.
    pub fn forget(&mut self) {
        self.recorded.clear();
    }
}

// SAFETY: a graph may move between threads as long as one at a time uses it, and its owner is one.
unsafe impl Send for Graphs {}

/// The rows that a step of `rows` is launched with, if it can be a graph.
fn bucket(rows: usize, rows_max: usize) -> Option<usize> {
    BUCKETS.into_iter().map(|bucket| bucket.min(rows_max)).find(|&bucket| bucket >= rows)
}

impl CudaBackend {
    /// Runs the step's recording, or records it, or runs `forward` as it is.
    pub(super) fn run_recorded<E>(
        &mut self,
        batch: &Batch,
        forward: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        let can_record = self.graphs.is_some() && DeviceBatch::is_pure_decode(batch);
        let bucket = can_record.then(|| bucket(batch.rows(), self.rows_max)).flatten();
        let t = bucket.unwrap_or(batch.rows());
        self.attempt(|s| {
            if s.batch.make_room(batch, t)? {
                // Graphs know the old address.
                s.graphs.iter_mut().for_each(Graphs::forget);
            }
            s.batch.set(batch, t)
        });
        let (Some(bucket), None) = (bucket, &self.failed) else { return forward(self) };
        if !self.recorded(bucket) {
            if self.loads_now(bucket) {
                return forward(self);
            }
            self.record(bucket, forward)?;
        }
        self.attempt(|s| {
            let graph = s.graphs.as_ref().and_then(|graphs| graphs.recorded.get(&bucket));
            let graph = graph.expect("recorded just now, or before");
            graph.launch().map_err(CudaError::doing("replay a decode step"))
        });
        Ok(())
    }

    fn recorded(&self, bucket: usize) -> bool {
        self.graphs.as_ref().is_some_and(|graphs| graphs.recorded.contains_key(&bucket))
    }

    /// Whether the step loads code, and has not done so before.
    fn loads_now(&mut self, bucket: usize) -> bool {
        let late = DenseKernels::loads_late(bucket);
        late && self.graphs.as_mut().is_some_and(|graphs| graphs.loaded.insert(bucket))
    }

    fn record<E>(
        &mut self,
        bucket: usize,
        forward: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        const MODE: sys::CUstreamCaptureMode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let stream = self.card.stream().clone();
        self.attempt(|_| {
            stream.begin_capture(MODE).map_err(CudaError::doing("begin to record a decode step"))
        });
        let result = forward(self);
        // Ended even where an op failed: the stream would stay in this state.
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        self.attempt(|s| {
            let graph = graph.map_err(CudaError::doing("record a decode step"))?;
            let graph = graph.expect("a step starts at least one kernel");
            // Half a step is not kept: it would hold what the sums in it need to end.
            if result.is_err() {
                return Ok(());
            }
            s.graphs.get_or_insert_default().recorded.insert(bucket, graph);
            Ok(())
        });
        result
    }
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn a_step_takes_the_next_bucket_that_there_is_room_for() {
        assert_eq!(bucket(1, 512), Some(1));
        assert_eq!(bucket(3, 512), Some(4));
        assert_eq!(bucket(64, 512), Some(64));
        assert_eq!(bucket(65, 512), None);
        assert_eq!(bucket(3, 3), Some(3));
    }
}
