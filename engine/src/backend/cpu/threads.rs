//! The threads of one op: an output is cut into as many column ranges as there are threads.

use super::kernels::{Scratch, TileMut};
use rayon::prelude::*;
use std::sync::Mutex;

/// A pool with a scratch for each thread; with one thread everything runs on the caller's.
#[derive(Debug)]
pub struct Threads {
    pool: Option<rayon::ThreadPool>,
    /// One a thread; never contended.
    scratch: Vec<Mutex<Scratch>>,
}

/// Columns of an output that no two threads share: two cache lines of f32.
const COLUMNS_TOGETHER: usize = 32;

impl Threads {
    pub fn new(threads: usize) -> Self {
        let threads = threads.max(1);
        let pool = (threads > 1).then(|| {
            let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
            builder
                .thread_name(|thread| format!("engine-{thread}"))
                .build()
                .expect("the system gives threads")
        });
        Threads { pool, scratch: (0..threads).map(|_| Mutex::default()).collect() }
    }

    /// Runs `work` over the columns of `y`, cut in equal parts.
    pub fn columns(&self, y: TileMut<'_>, work: impl Fn(TileMut<'_>, &mut Scratch) + Sync) {
        let width = y.columns().len().div_ceil(self.scratch.len()).next_multiple_of(COLUMNS_TOGETHER);
        match &self.pool {
            Some(pool) if width < y.columns().len() => pool.install(|| {
                let tiles: Vec<TileMut<'_>> = y.chunks(width).collect();
                tiles.into_par_iter().for_each(|tile| work(tile, &mut self.own_scratch()));
            }),
            _ => work(y, &mut self.own_scratch()),
        }
    }

    /// Runs `work` over the chunks of `out`, `len` values each, with their index.
    pub fn chunks(&self, out: &mut [f32], len: usize, work: impl Fn(usize, &mut [f32], &mut Scratch) + Sync) {
        match &self.pool {
            Some(pool) => pool.install(|| {
                let chunks = out.par_chunks_exact_mut(len).enumerate();
                chunks.for_each(|(index, chunk)| work(index, chunk, &mut self.own_scratch()));
            }),
            None => {
                let mut scratch = self.own_scratch();
                let chunks = out.chunks_exact_mut(len).enumerate();
                chunks.for_each(|(index, chunk)| work(index, chunk, &mut scratch));
            }
        }
    }

    /// What `work` finds for each of so many, in their order.
    pub fn each<T: Send>(&self, count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        match &self.pool {
            Some(pool) if count > 1 => pool.install(|| (0..count).into_par_iter().map(&work).collect()),
            _ => (0..count).map(work).collect(),
        }
    }

    fn own_scratch(&self) -> std::sync::MutexGuard<'_, Scratch> {
        let thread = rayon::current_thread_index().unwrap_or(0);
        self.scratch[thread].lock().expect("kernels do not panic")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_for_each_is_in_order_on_any_number_of_threads() {
        for threads in [1, 2, 5] {
            let threads = Threads::new(threads);
            // The first take longest, so a later one is done before them where there are threads.
            let slow = |at: usize| {
                (0..(100 - at as u64) * 1000).fold(at as u64, |sum, i| std::hint::black_box(sum ^ i))
            };
            for count in [0, 1, 100] {
                let expected: Vec<u64> = (0..count).map(slow).collect();
                assert_eq!(threads.each(count, slow), expected);
            }
        }
    }
}
