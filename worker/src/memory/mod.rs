//! What a worker takes of memory, read now and then, so that use beyond the plan is seen; and what it could take.

mod available;

pub use available::memory_available;

use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(5);
/// Readings at the start of a group: its first step is one of its own, of which nobody reads.
const AT_ONCE: u32 = 2;

#[derive(Default)]
pub struct Meter {
    read: u32,
    last: Option<Instant>,
}

impl Meter {
    /// If it is time: what the device says that is taken of its memory, or else what this process takes.
    pub fn read(&mut self, now: Instant, of_device: impl FnOnce() -> Option<u64>) -> Option<u64> {
        let is_due = self.read < AT_ONCE || self.last.is_none_or(|last| now - last >= EVERY);
        if !is_due {
            return None;
        }
        (self.read, self.last) = (self.read.saturating_add(1), Some(now));
        of_device().or_else(of_process)
    }
}

/// Without pages of files, which the system takes back when it lacks memory.
fn of_process() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib << 10)
    };
    Some(of("RssAnon:")? + of("RssShmem:")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_at_the_start_and_then_now_and_then() {
        let (mut meter, start) = (Meter::default(), Instant::now());
        let after = [0, 1, 2, 4999, 5001, 5002, 9000, 10_001];
        let read = after.map(|ms| meter.read(start + Duration::from_millis(ms), || Some(ms)));
        assert_eq!(read, [Some(0), Some(1), None, None, Some(5001), None, None, Some(10_001)]);
    }

    #[test]
    fn what_a_process_takes_grows_with_what_it_takes() {
        // Other tests of this process take and give back some of their own meanwhile.
        let before = of_process().unwrap();
        let taken = std::hint::black_box(vec![1_u8; 256 << 20]);
        let grown = of_process().unwrap().saturating_sub(before);
        assert!((128 << 20..1024 << 20).contains(&grown), "{grown} bytes more for {}", taken.len());
    }
}
