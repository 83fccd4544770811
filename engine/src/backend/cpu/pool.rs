//! Threads that wait for work without sleeping for a little while, because an op of a step takes microseconds and
//! the next follows at once; then they sleep, so that an idle server uses no processor.
//!
//! A job is offered, not dealt: the caller works on it too, and it ends when nothing of it is left and all who
//! began are done. A thread that comes late, for somebody else has its core, finds the job closed and delays nobody.
//!
//! Not here: what a job is made of, and who does which part (`threads.rs`).

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread looks for the next job before it sleeps. A futex costs some 5 to 50 µs, and pure spinning, on cores
/// that are shared, tails of 10 to 30 ms.
const AWAKE: Duration = Duration::from_micros(50);
/// Looks between two readings of the clock.
const LOOKS: u32 = 16;

type Job = *const (dyn Fn(usize) + Sync);

/// `state`: the job's number in the upper half, then whether it is open, then how many threads are in it.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

fn number(state: u64) -> u64 {
    state >> 32
}

struct Shared {
    state: AtomicU64,
    /// Written while the state is closed and nobody is inside; read by those inside.
    job: UnsafeCell<Job>,
    asleep: Vec<AtomicBool>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `job` is written by the one caller only while no thread is inside, and the release of the open state orders
// that before the reads of those who enter. The job itself may be called from any thread.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is followed only within `Pool::run`, which outlives it.
unsafe impl Send for Shared {}

/// The threads beside the caller's.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// `count` threads that call `begin` with their number, from 1 on, when they start.
    pub fn new(count: usize, begin: impl Fn(usize) + Send + Sync + 'static) -> Pool {
        let nothing: &(dyn Fn(usize) + Sync) = &|_| {};
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(nothing),
            asleep: (0..count).map(|_| AtomicBool::new(false)).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let begin = Arc::new(begin);
        let thread = |index: usize| {
            let (shared, begin) = (shared.clone(), begin.clone());
            let body = move || {
                begin(index + 1);
                shared.serve(index);
            };
            let name = format!("engine-{}", index + 1);
            std::thread::Builder::new().name(name).spawn(body).expect("the system gives threads")
        };
        Pool { threads: (0..count).map(thread).collect(), shared }
    }

    /// Lets every thread that is there call `work` with its number; the caller is number 0. Returns when
    /// all who began have ended.
    ///
    /// # Panics
    /// If `work` did, on any thread.
    pub fn run(&mut self, work: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime is changed. Those who call it are inside, and `Closing` waits for them.
        let job = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(work) };
        // SAFETY: closed, and nobody is inside: so `Closing` left it, and `self` is borrowed mutably.
        unsafe { *shared.job.get() = job };
        let next = (number(shared.state.load(Ordering::Relaxed)) + 1) & u64::from(u32::MAX);
        shared.state.store(next << 32 | OPEN, Ordering::SeqCst);
        for (asleep, thread) in shared.asleep.iter().zip(&self.threads) {
            if asleep.swap(false, Ordering::SeqCst) {
                thread.thread().unpark();
            }
        }
        let closing = Closing(shared);
        work(0);
        drop(closing);
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a thread of an op panicked");
    }
}

/// Closes the job when it goes, and waits for who is inside, also when the caller panics.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0u32;
        while state & INSIDE != 0 {
            looks += 1;
            // Whoever is inside may wait for this core.
            if looks.is_multiple_of(1024) {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
            state = self.0.state.load(Ordering::Acquire);
        }
    }
}

impl Shared {
    fn serve(&self, index: usize) {
        let mut seen = 0;
        while let Some(job) = self.enter(index, seen) {
            seen = job;
            // SAFETY: this thread is inside, so the job is there until it leaves.
            let work = unsafe { &**self.job.get() };
            if catch_unwind(AssertUnwindSafe(|| work(index + 1))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an open job other than `seen` and enters it: its number. None when the pool goes.
    fn enter(&self, index: usize, seen: u64) -> Option<u64> {
        loop {
            let state = self.wait(index, seen)?;
            let inside = self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
            if inside.is_ok() {
                return Some(number(state));
            }
        }
    }

    fn wait(&self, index: usize, seen: u64) -> Option<u64> {
        let is_new = |state: u64| state & OPEN != 0 && number(state) != seen;
        let mut until = None;
        loop {
            for _ in 0..LOOKS {
                let state = self.state.load(Ordering::Relaxed);
                if is_new(state) {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if Instant::now() < *until.get_or_insert_with(|| Instant::now() + AWAKE) {
                continue;
            }
            // Said before it is looked at once more: who opens a job looks at this after it has.
            self.asleep[index].store(true, Ordering::SeqCst);
            if !is_new(self.state.load(Ordering::SeqCst)) && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.asleep[index].store(false, Ordering::Relaxed);
            until = None;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    /// Every unit of every job is done once, by whoever is there, with threads that sleep in between and without.
    #[test]
    fn all_of_a_job_is_done_when_it_returns() {
        let mut pool = Pool::new(3, |_| {});
        for job in 0..2000 {
            let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
            pool.run(&|_| {
                while next.fetch_add(1, Ordering::Relaxed) < 64 {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert_eq!(done.load(Ordering::Relaxed), 64, "job {job}");
            if job % 500 == 499 {
                std::thread::sleep(4 * AWAKE);
            }
        }
    }

    /// A thread that has nothing to do sleeps: that is what `asleep` says, and where it stays.
    #[test]
    fn who_waits_long_sleeps_and_is_woken() {
        let mut pool = Pool::new(2, |_| {});
        let sleep = |pool: &Pool| pool.shared.asleep.iter().all(|asleep| asleep.load(Ordering::SeqCst));
        for _ in 0..3 {
            while !sleep(&pool) {
                std::thread::yield_now();
            }
            // Both threads are needed: each waits for the other two.
            let here = AtomicUsize::new(0);
            pool.run(&|_| {
                here.fetch_add(1, Ordering::SeqCst);
                while here.load(Ordering::SeqCst) < 3 {
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = Pool::new(2, |_| {});
        for thread in [0, 1] {
            let here = AtomicUsize::new(0);
            let run = AssertUnwindSafe(|| {
                pool.run(&|me| {
                    here.fetch_add(1, Ordering::SeqCst);
                    while here.load(Ordering::SeqCst) < 3 {
                        std::thread::yield_now();
                    }
                    assert!(me != thread, "planted");
                })
            });
            assert!(catch_unwind(run).is_err());
        }
        let here = AtomicUsize::new(0);
        pool.run(&|_| {
            here.fetch_add(1, Ordering::SeqCst);
        });
        assert!(here.load(Ordering::SeqCst) >= 1);
    }
}
