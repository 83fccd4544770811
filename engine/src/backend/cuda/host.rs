//! Logits in the host's memory, of rows whose tokens the card does not choose by itself, and the threads that
//! look at them. A row is copied once a step, however often it is looked at, and rows that follow each other are
//! copied together. What is looked for is not known here.

use crate::cuda::CudaError;
use cudarc::driver::{CudaSlice, CudaStream};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// More would wait for memory, and a machine may have several cards.
const THREADS_MAX: usize = 8;

#[derive(Debug)]
pub struct HostLogits {
    /// f32 [rows that are here][V/R]
    values: Vec<f32>,
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
        HostLogits { values: Vec::new(), width, places: BTreeMap::new(), pool: pool.flatten() }
    }

    /// What is here is of a step that is over.
    pub fn forget(&mut self) {
        self.places.clear();
    }

    /// Begins to copy what is not here yet; `logits`: f32 [any, V/R].
    pub fn fetch(
        &mut self,
        rows: &[usize],
        logits: &CudaSlice<f32>,
        stream: &Arc<CudaStream>,
    ) -> Result<(), CudaError> {
        let missing: BTreeSet<usize> =
            rows.iter().copied().filter(|row| !self.places.contains_key(row)).collect();
        let first = self.places.len();
        self.values.resize(self.values.len().max((first + missing.len()) * self.width), 0.0);
        let mut values = &mut self.values[first * self.width..];
        for run in runs(&missing) {
            let copied;
            (copied, values) = values.split_at_mut(run.len() * self.width);
            if !copied.is_empty() {
                let from = logits.slice(run.start * self.width..run.end * self.width);
                stream.memcpy_dtoh(&from, copied).map_err(CudaError::doing("read logits"))?;
            }
        }
        self.places.extend(missing.into_iter().zip(first..));
        Ok(())
    }

    /// What `work` finds in each of some rows that are here, in their order.
    pub fn each<T: Send>(&self, rows: &[usize], work: impl Fn(usize, &[f32]) -> T + Sync) -> Vec<T> {
        let one = |at: usize| work(at, &self.values[self.places[&rows[at]] * self.width..][..self.width]);
        match &self.pool {
            Some(pool) if rows.len() > 1 => {
                pool.install(|| (0..rows.len()).into_par_iter().map(&one).collect())
            }
            _ => (0..rows.len()).map(one).collect(),
        }
    }
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
