//! Waiting for a card, which may wait for others: never longer than is said, and with open eyes.

use crate::collective::SPIN;
use cudarc::driver::{CudaEvent, CudaStream, DriverError};
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at the card, after [`SPIN`]; a step takes milliseconds.
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

/// Returns when what the event marks is done. `progress` is looked at now and then: while what it gives
/// changes, the deadline starts anew. An error of it ends the waiting.
pub(super) fn until_done<E>(
    event: &CudaEvent,
    deadline: Duration,
    mut progress: impl FnMut() -> Result<u32, E>,
) -> Result<(), Ended<E>> {
    let start = Instant::now();
    let (mut moved, mut looked, mut last) = (start, start, None);
    loop {
        if event.try_is_complete().map_err(Ended::Driver)? {
            return Ok(());
        }
        let now = Instant::now();
        if now - start < SPIN {
            std::hint::spin_loop();
            continue;
        }
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
        thread::sleep(if now - start < LONG { SHORT_SLEEP } else { LONG_SLEEP });
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
    !matches!(until_done(&event, patience, never), Err(Ended::Late(_)))
}
