//! Says when requests are due, from a thread of its own: the runtime's timers go by milliseconds, rounded up, and a
//! millisecond late with every request would be a millisecond in every latency.

use crate::client::Clock;
use std::time::Instant;
use tokio::sync::mpsc;

/// Rings once for each time, ascending. Who no longer listens ends it, at the next ring.
pub fn ring(
    times_us: impl Iterator<Item = u64> + Send + 'static,
    clock: Clock,
) -> mpsc::UnboundedReceiver<()> {
    let (bell, heard) = mpsc::unbounded_channel();
    let body = move || {
        for us in times_us {
            std::thread::sleep(clock.at(us).saturating_duration_since(Instant::now()));
            if bell.send(()).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("bell".into()).spawn(body).expect("a thread can be started");
    heard
}
