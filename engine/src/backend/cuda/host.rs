//! Logits in the host's memory, of rows whose tokens the card does not choose by itself, and the threads that
//! look at them. A row is copied once a step, however often it is looked at, and rows that follow each other are
//! copied together. What is looked for is not known here.

use crate::cuda::CudaError;
use cudarc::driver::{CudaSlice, CudaStream, DriverError, PinnedHostSlice, sys};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// More would wait for memory, and a machine may have several cards.
const THREADS_MAX: usize = 8;

pub struct HostLogits {
    /// f32 [rows that there is room for][V/R], of which those that are here come first; none before any was.
    values: Option<PinnedHostSlice<f32>>,
    /// What became too small: to give it back would wait for whatever else the card does, such as a rank of this process
    /// that waits for this one. Together they are not larger than what is in use.
    outgrown: Vec<PinnedHostSlice<f32>>,
    width: usize,
    /// By logit row.
    places: BTreeMap<usize, usize>,
    /// None: the caller's thread does everything.
    pool: Option<rayon::ThreadPool>,
}

impl HostLogits {
    pub fn new(width: usize) -> HostLogits {
        let threads =
            std::thread::available_parallelism().map_or(1, |threads| threads.get().min(THREADS_MAX));
        let pool = (threads > 1).then(|| {
            let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
            // Without threads it goes on, slower.
            builder.thread_name(|thread| format!("logits-{thread}")).build().ok()
        });
        let (values, outgrown, places) = (None, Vec::new(), BTreeMap::new());
        HostLogits { values, outgrown, width, places, pool: pool.flatten() }
    }

    /// What is here is of a step that is over.
    pub fn forget(&mut self) {
        self.places.clear();
    }

    /// Begins to copy what is not here yet; what was begun before must be done, and so must the step's sums: to take pinned
    /// memory may wait for other ranks' kernels. `logits`: f32 [any, V/R].
    pub fn fetch(
        &mut self,
        rows: &[usize],
        logits: &CudaSlice<f32>,
        stream: &Arc<CudaStream>,
    ) -> Result<(), CudaError> {
        let missing: BTreeSet<usize> =
            rows.iter().copied().filter(|row| !self.places.contains_key(row)).collect();
        let first = self.places.len();
        let width = self.width;
        if width > 0 && !missing.is_empty() {
            let room = self.room(first + missing.len(), stream)?;
            let mut room = &mut room.as_mut_slice().map_err(reading())?[first * width..];
            for run in runs(&missing) {
                let copied;
                (copied, room) = room.split_at_mut(run.len() * width);
                let from = logits.slice(run.start * width..run.end * width);
                stream.memcpy_dtoh(&from, copied).map_err(reading())?;
            }
        }
        self.places.extend(missing.into_iter().zip(first..));
        Ok(())
    }

    /// Where so many rows have room, with those that are here.
    fn room(
        &mut self,
        rows: usize,
        stream: &Arc<CudaStream>,
    ) -> Result<&mut PinnedHostSlice<f32>, CudaError> {
        let values = match self.values.take() {
            Some(values) if values.len() >= rows * self.width => values,
            old => {
                let mut values = pinned(stream, rows.next_power_of_two() * self.width)?;
                if let Some(old) = old {
                    let here = &old.as_slice().map_err(reading())?[..self.places.len() * self.width];
                    values.as_mut_slice().map_err(reading())?[..here.len()].copy_from_slice(here);
                    self.outgrown.push(old);
                }
                values
            }
        };
        Ok(self.values.insert(values))
    }

    /// What `work` finds in each of some rows that are here, in their order.
    pub fn each<T: Send>(
        &self,
        rows: &[usize],
        work: impl Fn(usize, &[f32]) -> T + Sync,
    ) -> Result<Vec<T>, CudaError> {
        let values = match &self.values {
            Some(values) => values.as_slice().map_err(reading())?,
            None => &[],
        };
        let one = |at: usize| work(at, &values[self.places[&rows[at]] * self.width..][..self.width]);
        Ok(match &self.pool {
            Some(pool) if rows.len() > 1 => {
                pool.install(|| (0..rows.len()).into_par_iter().map(&one).collect())
            }
            _ => (0..rows.len()).map(one).collect(),
        })
    }
}

fn reading() -> impl FnOnce(DriverError) -> CudaError {
    CudaError::doing("read logits")
}

/// Memory of the machine that logits are copied to without a copy of the driver's own between.
pub(super) fn pinned(stream: &CudaStream, values: usize) -> Result<PinnedHostSlice<f32>, CudaError> {
    // SAFETY: what is read of it has been copied from the card before. Not write-combined, which is slow to read.
    let memory = unsafe { stream.context().alloc_pinned_with_flags(values, sys::CU_MEMHOSTALLOC_PORTABLE) };
    memory.map_err(CudaError::doing("take pinned memory for logits"))
}

/// Numbers that follow each other, together.
fn runs(rows: &BTreeSet<usize>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for &row in rows {
        match runs.last_mut() {
            Some(run) if run.end == row => run.end += 1,
            _ => runs.push(row..row + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_follow_each_other_are_one_copy() {
        let of = |rows: &[usize]| runs(&rows.iter().copied().collect());
        assert_eq!(of(&[5, 0, 1, 2, 7, 6]), [0..3, 5..8]);
        assert_eq!(of(&[3, 3]), [3..4]);
        assert_eq!(of(&[]), []);
    }
}
