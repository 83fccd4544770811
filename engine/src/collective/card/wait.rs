//! Waiting for a card, which may wait for others: never longer than is said, and with open eyes.

use crate::collective::SPIN;
use cudarc::driver::{CudaStream, DriverError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a thread looks at the card before it sleeps between two looks: a step takes milliseconds.
pub(super) const AWAKE: Duration = SPIN;
/// From then on, between two looks.
const SHORT_SLEEP: Duration = Duration::from_micros(20);
const LONG_SLEEP: Duration = Duration::from_millis(1);
/// Who has waited for so long sleeps longer.
const LONG: Duration = Duration::from_millis(50);
/// Between two looks at anything else.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Why it was not waited for any longer.
pub(super) enum Ended<E> {
    Driver(DriverError),
    /// What was seen meanwhile.
    Seen(E),
    Late(Duration),
}

/// What is done between two looks.
#[derive(Debug, PartialEq)]
enum Pause {
    Spin,
    /// Others may have the core, if there are any.
    Yield,
    Sleep(Duration),
}

impl Pause {
    fn after(waited: Duration, awake: Duration) -> Pause {
        if waited < SPIN.min(awake) {
            Pause::Spin
        } else if waited < awake {
            Pause::Yield
        } else {
            Pause::Sleep(if waited < LONG { SHORT_SLEEP } else { LONG_SLEEP })
        }
    }
}

/// Returns when `is_done`, without sleeping for as long as `awake` says. `progress` is looked at now and then: while what it
/// gives changes, the deadline starts anew. An error of it ends the waiting.
pub(super) fn until_done<E>(
    mut is_done: impl FnMut() -> Result<bool, DriverError>,
    awake: Duration,
    deadline: Duration,
    mut progress: impl FnMut() -> Result<u32, E>,
) -> Result<(), Ended<E>> {
    let start = Instant::now();
    let (mut moved, mut looked, mut last) = (start, start, None);
    loop {
        if is_done().map_err(Ended::Driver)? {
            return Ok(());
        }
        let now = Instant::now();
        if now - looked >= LOOK_EVERY {
            looked = now;
            let seen = progress().map_err(Ended::Seen)?;
            if last.replace(seen) != Some(seen) {
                moved = now;
            }
            if now - moved > deadline {
                return Err(Ended::Late(now - moved));
            }
        }
        match Pause::after(now - start, awake) {
            Pause::Spin => std::hint::spin_loop(),
            Pause::Yield => thread::yield_now(),
            Pause::Sleep(time) => thread::sleep(time),
        }
    }
}

/// Whether all that was asked of the stream is done, or will be in this time. A stream that has failed
/// does nothing more.
pub(super) fn is_quiet_within(stream: &CudaStream, patience: Duration) -> bool {
    let Ok(event) = stream.context().new_event(None) else { return true };
    if event.record(stream).is_err() {
        return true;
    }
    let never = || Ok::<_, ()>(0);
    !matches!(until_done(|| event.try_is_complete(), AWAKE, patience, never), Err(Ended::Late(_)))
}

/// Lets this thread's sleeps end when they should. Linux allows itself 50 µs more otherwise, to wake several threads
/// together, which is twice what is slept here.
pub(super) fn wake_in_time() {
    let slack_ns: libc::c_ulong = 1;
    // SAFETY: it changes when the system wakes this thread, and nothing else. Where it is refused, sleeps are longer.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, slack_ns) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stays_awake_longer_yields_before_it_sleeps() {
        let us = Duration::from_micros;
        for (waited, awake, expected) in [
            (us(29), AWAKE, Pause::Spin),
            (us(31), AWAKE, Pause::Sleep(SHORT_SLEEP)),
            (us(29), us(300), Pause::Spin),
            (us(31), us(300), Pause::Yield),
            (us(299), us(300), Pause::Yield),
            (us(301), us(300), Pause::Sleep(SHORT_SLEEP)),
            (LONG + us(1), us(300), Pause::Sleep(LONG_SLEEP)),
        ] {
            assert_eq!(Pause::after(waited, awake), expected, "{waited:?} of {awake:?}");
        }
    }

    #[test]
    fn an_end_of_any_kind_ends_the_waiting() {
        let patience = Duration::from_secs(60);
        let mut looks = 0;
        let third = || {
            looks += 1;
            Ok(looks == 3)
        };
        assert!(until_done(third, AWAKE, patience, || Ok::<_, ()>(0)).is_ok());
        let seen = until_done(|| Ok(false), Duration::ZERO, patience, || Err("an abort"));
        assert!(matches!(seen, Err(Ended::Seen("an abort"))));
        let failed = DriverError(cudarc::driver::sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
        let ended = until_done(|| Err(failed), AWAKE, patience, || Ok::<_, ()>(0));
        assert!(matches!(ended, Err(Ended::Driver(error)) if error == failed));
    }

    /// What goes on is not late, however long it takes.
    #[test]
    fn the_deadline_begins_anew_with_each_progress() {
        let mut progress = 0;
        let deadline = LOOK_EVERY / 2;
        let ended = until_done(
            || Ok(false),
            Duration::ZERO,
            deadline,
            || {
                progress = 5.min(progress + 1);
                Ok::<_, ()>(progress)
            },
        );
        assert!(matches!(ended, Err(Ended::Late(_))));
        assert_eq!(progress, 5, "it was looked at until nothing moved");
    }
}
