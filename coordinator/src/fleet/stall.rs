//! A load that stands still: no link is broken and nobody says that anything is wrong, but no byte moves any more.

use flotilla_shared::Loading;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Without a byte of any rank. A cold disk or a slow link moves some.
const LOAD_STALL: Duration = Duration::from_secs(300);
/// Without a rank that gets ready, once all bytes are where they belong: weights are put in order, kernels compiled and
/// memory taken, of which nobody reports.
const READY_STALL: Duration = Duration::from_secs(900);

/// How far those are that load together: for as long as one moves, another may wait its turn.
pub(super) struct Pace(Mutex<Moved>);

struct Moved {
    at: Instant,
    ranks: Vec<Far>,
}

#[derive(Clone, Copy, Default)]
struct Far {
    bytes_done: u64,
    bytes_total: u64,
    is_loaded: bool,
    is_ready: bool,
}

impl Far {
    fn lacks_bytes(self) -> bool {
        !self.has_weights() && (self.bytes_total == 0 || self.bytes_done < self.bytes_total)
    }

    /// As it says, and not only as its bytes do. Who meets nobody says at once that it is ready.
    fn has_weights(self) -> bool {
        self.is_loaded || self.is_ready
    }
}

impl Pace {
    pub fn of(count: usize) -> Pace {
        Pace(Mutex::new(Moved { at: Instant::now(), ranks: vec![Far::default(); count] }))
    }

    pub fn hear(&self, rank: usize, loading: Loading) {
        let mut moved = self.moved();
        let far = &mut moved.ranks[rank];
        let Loading { bytes_done, bytes_total, .. } = loading;
        if bytes_done > far.bytes_done || bytes_total != far.bytes_total {
            *far = Far { bytes_done, bytes_total, ..*far };
            moved.at = Instant::now();
        }
    }

    pub fn loaded(&self, rank: usize) {
        let mut moved = self.moved();
        moved.ranks[rank].is_loaded = true;
        moved.at = Instant::now();
    }

    pub fn ready(&self, rank: usize) {
        let mut moved = self.moved();
        moved.ranks[rank].is_ready = true;
        moved.at = Instant::now();
    }

    /// Resolves when nothing has moved for too long; says which rank is the first that should, and what it does not do.
    pub async fn stall(&self) -> (usize, String) {
        loop {
            let (due, stall) = self.due();
            if due <= Instant::now() {
                return stall;
            }
            sleep_until(due).await;
        }
    }

    /// When it is too long, if nothing moves until then.
    fn due(&self) -> (Instant, (usize, String)) {
        let moved = self.moved();
        let lacks = moved.ranks.iter().position(|far| far.lacks_bytes());
        if let Some(rank) = lacks {
            let Far { bytes_done, bytes_total, .. } = moved.ranks[rank];
            let seconds = LOAD_STALL.as_secs();
            let reason = format!(
                "its load stands still at {bytes_done} of {bytes_total} bytes for {seconds} s\n\
                 hint: look at its log, its disk and its link to whoever has the weights"
            );
            return (moved.at + LOAD_STALL, (rank, reason));
        }
        // Whoever has its weights waits for those that have not.
        let rank = moved.ranks.iter().position(|far| !far.has_weights());
        let rank = rank.or_else(|| moved.ranks.iter().position(|far| !far.is_ready)).unwrap_or_default();
        let seconds = READY_STALL.as_secs();
        let reason = format!(
            "its weights are here, but it does not get ready in {seconds} s\nhint: look at its log, and at its device"
        );
        (moved.at + READY_STALL, (rank, reason))
    }

    fn moved(&self) -> MutexGuard<'_, Moved> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use tokio::time::advance;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(bytes_done: u64) -> Loading {
        Loading { bytes_done, bytes_total: 100, ..Loading::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_that_stands_still_is_named_and_one_that_moves_is_waited_for() {
        let pace = Pace::of(2);
        pace.hear(0, at(100));
        for byte in 1..10 {
            advance(LOAD_STALL - SECOND).await;
            assert!(pace.stall().now_or_never().is_none(), "at byte {byte}");
            pace.hear(1, at(byte));
        }
        pace.hear(1, at(9));
        advance(LOAD_STALL - SECOND).await;
        pace.hear(1, at(9));
        advance(SECOND).await;
        let (rank, reason) = pace.stall().now_or_never().expect("the same byte again is none");
        assert!(rank == 1 && reason.contains("at 9 of 100 bytes"), "{rank}: {reason}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_reports_of_has_more_time() {
        let pace = Pace::of(2);
        (0..2).for_each(|rank| pace.hear(rank, at(100)));
        pace.ready(0);
        advance(READY_STALL - SECOND).await;
        assert!(pace.stall().now_or_never().is_none());
        advance(SECOND).await;
        let (rank, reason) = pace.stall().now_or_never().expect("it is over");
        assert!(rank == 1 && reason.contains("does not get ready"), "{rank}: {reason}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_others_to_have_their_weights_is_not_blamed() {
        let pace = Pace::of(3);
        (0..3).for_each(|rank| pace.hear(rank, at(100)));
        for (loaded, blamed) in [(0, 1), (2, 1), (1, 0)] {
            pace.loaded(loaded);
            advance(READY_STALL).await;
            let (rank, reason) = pace.stall().now_or_never().expect("it is over");
            assert!(rank == blamed && reason.contains("does not get ready"), "{rank}: {reason}");
        }
    }
}
