//! The threads of one op: its output is cut into units, and whoever is free takes the next of them, many at first
//! and few at the end. What a unit holds does not depend on who takes it, nor on how many threads there are.

use super::kernels::{Scratch, TileMut};
use super::pool::Pool;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A pool with a scratch for each thread; with one thread everything runs on the caller's.
pub struct Threads {
    pool: Option<Mutex<Pool>>,
    /// One a thread; never contended.
    scratch: Vec<Mutex<Scratch>>,
}

/// Columns of an output that no two threads share: whole cache lines of f32, and whole panels of a product.
const COLUMNS_TOGETHER: usize = 96;

/// From so many tokens on, what is done row by row goes over the threads: a prompt's.
const TOKENS_SHARED: usize = 16;

impl Threads {
    pub fn new(threads: usize) -> Self {
        Threads::pinned(threads, &[])
    }

    /// Each thread on a core of its own, as far as there are `cores`; the caller's is the first.
    pub fn pinned(threads: usize, cores: &[usize]) -> Self {
        let (threads, cores) = (threads.max(1), cores.to_vec());
        let pin = move |thread: usize| cores.get(thread).copied().into_iter().for_each(pin_to);
        pin(0);
        let pool = (threads > 1).then(|| Mutex::new(Pool::new(threads - 1, pin)));
        Threads { pool, scratch: (0..threads).map(|_| Mutex::default()).collect() }
    }

    /// Runs `work` over 0..count, each number once, in ranges.
    pub fn ranges(&self, count: usize, work: impl Fn(Range<usize>, &mut Scratch) + Sync) {
        let next = Ranges { next: AtomicUsize::new(0), count, threads: self.scratch.len() };
        let take = |thread: usize| {
            let mut scratch = self.scratch[thread].lock().expect("kernels do not panic");
            while let Some(range) = next.take() {
                work(range, &mut scratch);
            }
        };
        match &self.pool {
            Some(pool) if count > 1 => pool.lock().expect("kernels do not panic").run(&take),
            _ => take(0),
        }
    }

    /// Runs `work` over the columns of `y`, cut in parts.
    pub fn columns(&self, y: TileMut<'_>, work: impl Fn(TileMut<'_>, &mut Scratch) + Sync) {
        let columns = y.columns();
        let y = y.shared();
        self.ranges(columns.len().div_ceil(COLUMNS_TOGETHER), |units, scratch| {
            let [start, end] =
                [units.start, units.end].map(|unit| columns.end.min(columns.start + unit * COLUMNS_TOGETHER));
            // SAFETY: no two ranges of units overlap, so no two ranges of columns do.
            work(unsafe { y.part(start..end) }, scratch);
        });
    }

    /// Runs `work` over 0..count, each number once, in ranges. In a step of few tokens all is the caller's: it is done
    /// before the others are awake.
    pub fn shared(&self, tokens: usize, count: usize, work: impl Fn(Range<usize>) + Sync) {
        match tokens < TOKENS_SHARED {
            true => work(0..count),
            false => self.ranges(count, |range, _| work(range)),
        }
    }

    /// The same over the rows of `out`, `width` values each: which rows, and their values.
    pub fn rows(
        &self,
        tokens: usize,
        out: &mut [f32],
        width: usize,
        work: impl Fn(Range<usize>, &mut [f32]) + Sync,
    ) {
        let count = out.len() / width;
        let out = TileMut::new(out, 1, count * width).shared();
        self.shared(tokens, count, |rows| {
            // SAFETY: no two ranges of rows overlap.
            let mut tile = unsafe { out.part(rows.start * width..rows.end * width) };
            work(rows, tile.token_mut(0));
        });
    }

    /// Runs `work` over the chunks of `out`, `len` values each, with their index.
    pub fn chunks(&self, out: &mut [f32], len: usize, work: impl Fn(usize, &mut [f32], &mut Scratch) + Sync) {
        let count = out.len() / len;
        let out = TileMut::new(out, 1, count * len).shared();
        self.ranges(count, |chunks, scratch| {
            for chunk in chunks {
                // SAFETY: each chunk is taken once.
                let mut tile = unsafe { out.part(chunk * len..(chunk + 1) * len) };
                work(chunk, tile.token_mut(0), scratch);
            }
        });
    }

    /// What `work` finds for each of so many, in their order.
    pub fn each<T: Send>(&self, count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let found: Vec<Mutex<Option<T>>> = (0..count).map(|_| Mutex::new(None)).collect();
        self.ranges(count, |range, _| {
            for at in range {
                *found[at].lock().expect("nobody else has it") = Some(work(at));
            }
        });
        let found = found.into_iter().map(|found| found.into_inner().expect("nobody panicked"));
        found.map(|found| found.expect("every one was found")).collect()
    }
}

/// Keeps the calling thread on one core.
fn pin_to(core: usize) {
    #[cfg(target_os = "linux")]
    if core < libc::CPU_SETSIZE as usize {
        // SAFETY: a set of cores is plain bits, of which zeros are none; the calls read and write nothing else.
        let failed = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(core, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) != 0
        };
        if !failed {
            return;
        }
    }
    tracing::warn!(core, "a thread cannot be kept on this core, and runs where it may");
}

/// Numbers below `count`, handed out in ranges that grow smaller.
struct Ranges {
    next: AtomicUsize,
    count: usize,
    threads: usize,
}

impl Ranges {
    /// Half of a fair share of what is left, at least one.
    fn take(&self) -> Option<Range<usize>> {
        let width = |from: usize| (self.count - from).div_ceil(2 * self.threads);
        let beyond = |from: usize| (from < self.count).then(|| from + width(from));
        let from = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, beyond).ok()?;
        Some(from..from + width(from))
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

    #[test]
    #[cfg(target_os = "linux")]
    fn pinned_threads_stay_on_their_core() {
        // On a thread of its own: the caller is pinned too.
        std::thread::spawn(|| {
            // SAFETY: the call has no arguments and reads a number.
            let here = || unsafe { libc::sched_getcpu() } as usize;
            let core = here();
            let threads = Threads::pinned(2, &[core, core]);
            for _ in 0..100 {
                assert_eq!(threads.each(4, |_| here()), [core; 4]);
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn ranges_are_everything_once_and_grow_smaller() {
        for (count, threads) in [(0, 2), (1, 1), (7, 2), (100, 3), (1000, 16)] {
            let ranges = Ranges { next: AtomicUsize::new(0), count, threads };
            let taken: Vec<_> = std::iter::from_fn(|| ranges.take()).collect();
            assert!(taken.is_sorted_by_key(|range| std::cmp::Reverse(range.len())), "{taken:?}");
            assert!(taken.into_iter().flatten().eq(0..count));
        }
    }

    #[test]
    fn columns_and_chunks_are_all_written() {
        for threads in [1, 3] {
            let threads = Threads::new(threads);
            let mut y = vec![0.0; 3 * 500];
            threads.columns(TileMut::new(&mut y, 3, 500), |mut tile, _| {
                let first = tile.columns().start;
                for token in 0..3 {
                    let row = tile.token_mut(token).iter_mut().enumerate();
                    row.for_each(|(i, y)| *y += (token * 500 + first + i) as f32);
                }
            });
            for (tokens, add) in [(1, 1000.0), (TOKENS_SHARED, -1000.0)] {
                threads.rows(tokens, &mut y, 125, |rows, values| {
                    assert_eq!(values.len(), rows.len() * 125);
                    values
                        .chunks_exact_mut(125)
                        .zip(rows)
                        .for_each(|(row, number)| row[0] += add * number as f32);
                });
            }
            threads.chunks(&mut y, 7, |index, chunk, _| chunk[0] += index as f32);
            for (i, y) in y.into_iter().enumerate() {
                let chunk = if i % 7 == 0 && i / 7 < 1500 / 7 { i / 7 } else { 0 };
                assert_eq!(y, (i + chunk) as f32);
            }
        }
    }
}
