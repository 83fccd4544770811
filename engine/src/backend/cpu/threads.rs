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

    fn own_scratch(&self) -> std::sync::MutexGuard<'_, Scratch> {
        let thread = rayon::current_thread_index().unwrap_or(0);
        self.scratch[thread].lock().expect("kernels do not panic")
    }
}
