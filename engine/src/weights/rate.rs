//! A limit of bytes a second over all who pass: a bucket that fills with time, and may be overdrawn by what is
//! in the hand of one. Whoever overdraws it waits until it is whole again.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What may pass at once after a pause, in time at the full rate.
const BURST: Duration = Duration::from_millis(20);

/// The arithmetic, without a clock.
#[derive(Debug)]
struct Bucket {
    bytes_per_second: f64,
    /// Since some beginning: when all that passed so far is paid for.
    paid_at: Duration,
}

impl Bucket {
    /// Lets `bytes` pass at `now`; says how long they must wait.
    fn take(&mut self, now: Duration, bytes: usize) -> Duration {
        let start = self.paid_at.max(now.saturating_sub(BURST));
        self.paid_at = start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        self.paid_at.saturating_sub(now)
    }
}

/// The bucket with a clock, for threads.
#[derive(Debug)]
pub struct Throttle {
    began: Instant,
    bucket: Mutex<Bucket>,
}

impl Throttle {
    pub fn new(bytes_per_second: u64) -> Throttle {
        let bucket = Bucket { bytes_per_second: bytes_per_second.max(1) as f64, paid_at: Duration::ZERO };
        Throttle { began: Instant::now(), bucket: Mutex::new(bucket) }
    }

    /// Returns when `bytes` may pass; blocks the thread until then.
    pub fn pass(&self, bytes: usize) {
        std::thread::sleep(self.wait(bytes));
    }

    /// How long whoever is to let `bytes` pass must wait before that, in its own way.
    pub fn wait(&self, bytes: usize) -> Duration {
        self.bucket.lock().expect("no holder panics").take(self.began.elapsed(), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: usize = 1_000_000;

    fn bucket(bytes_per_second: f64) -> Bucket {
        Bucket { bytes_per_second, paid_at: Duration::ZERO }
    }

    /// Bytes that several threads pass in `seconds`, each of which waits as it is told, in chunks of `chunk`.
    fn passed(rate: f64, threads: usize, chunk: usize, seconds: u64) -> usize {
        let (mut bucket, end) = (bucket(rate), Duration::from_secs(seconds));
        let mut free_at = vec![Duration::ZERO; threads];
        let mut bytes = 0;
        loop {
            let next = free_at.iter_mut().min().expect("there are threads");
            let now = *next;
            if now >= end {
                return bytes;
            }
            // A little work of its own, as reading is.
            *next = now + bucket.take(now, chunk) + Duration::from_micros(50);
            bytes += if *next <= end { chunk } else { 0 };
        }
    }

    #[test]
    fn the_rate_holds_over_all_threads() {
        for (rate, chunk) in [(500e6, 1 << 20), (20e6, 1 << 20), (5e9, 1 << 20), (500e6, 5760)] {
            for threads in [1, 4, 32] {
                let expected = rate * 10.0;
                let possible = threads as f64 * 10.0 / 50e-6 * chunk as f64;
                if possible < 2.0 * expected {
                    continue;
                }
                let share = passed(rate, threads, chunk, 10) as f64 / expected;
                assert!((0.9..1.1).contains(&share), "{rate} B/s, {threads} threads: {share}");
            }
        }
    }

    #[test]
    fn a_pause_does_not_save_up() {
        let mut bucket = bucket(100e6);
        assert_eq!(bucket.take(Duration::from_secs(60), MB), Duration::ZERO);
        let waits: Duration = bucket.take(Duration::from_secs(60), 10 * MB);
        assert_eq!(waits, Duration::from_millis(110) - BURST);
        assert_eq!(bucket.take(Duration::from_secs(61), 3 * MB), Duration::from_millis(30) - BURST);
    }
}
