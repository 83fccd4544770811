//! Fills a rank's weights. Places that may have them are asked in turn, each for what those before it did not
//! have: what this worker keeps on disk, other workers, then the coordinator. Every chunk is checked against its digest before
//! it is copied.

mod coordinator;
mod filler;
mod intake;
mod kept;
mod peers;
mod wanted;
mod way;
mod windows;

use crate::error::WorkerError;
pub use filler::Filled;
use filler::{Checked, Filler};
use flotilla_engine::collective::{CollectiveError, Stop};
use flotilla_engine::weights::{Synthetic, WeightSink};
use flotilla_shared::{Assignment, Loading, Place, TensorSlice, WeightOrigin, units};
use intake::Intake;
use peers::Peers;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::info;
use wanted::Wanted;
pub use way::Way;
use windows::windows;

/// What is asked for at once, and kept as one file: so many bytes of a slice, from a multiple of it on.
pub const PART_BYTES: usize = 16 << 20;

/// Between two looks whether to stop.
const STOP_TICK: Duration = Duration::from_millis(20);

/// Reports at most so often, and at the end.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// Fills `weights` with what the assignment says, unless it is stopped; `tell` is told how far it is. Also of a load
/// that failed it says what is whole.
pub async fn load<W: WeightSink + 'static>(
    way: &Way<'_>,
    assignment: &Assignment,
    weights: W,
    stop: &Stop,
    tell: impl Fn(Loading) + Send + 'static,
) -> (Filled<W>, Result<(), WorkerError>) {
    let start = Instant::now();
    let report = every(REPORT_EVERY, tell);
    let (filled, result) = match assignment.weights {
        WeightOrigin::Stream => bring(way, assignment, weights, stop, report).await,
        WeightOrigin::Synthetic { seed } => {
            make(Synthetic::new(assignment.spec.clone(), seed), weights, report).await
        }
    };
    if result.is_ok() {
        let seconds = start.elapsed().as_secs_f64();
        let bytes: usize = filled.weights.slices().iter().map(TensorSlice::bytes).sum();
        info!(bytes, seconds, "weights are here");
    }
    (filled, result)
}

/// Asks one place after the other, window by window.
async fn bring<W: WeightSink + 'static>(
    way: &Way<'_>,
    assignment: &Assignment,
    weights: W,
    stop: &Stop,
    report: impl FnMut(Loading) + Send + 'static,
) -> (Filled<W>, Result<(), WorkerError>) {
    let slices = Arc::new(weights.slices().to_vec());
    let filler = Filler::start(weights, way.digests.clone(), report);
    // Gone when this is: the filler waits for the last of its senders.
    let bring = bring_to(way, assignment, slices, filler.chunks(), stop);
    let brought = tokio::select! {
        brought = bring => brought,
        () = stopped(stop) => Err(CollectiveError::Aborted.into()),
    };
    filler.finish(brought).await
}

async fn bring_to(
    way: &Way<'_>,
    assignment: &Assignment,
    slices: Arc<Vec<TensorSlice>>,
    chunks: mpsc::Sender<Checked>,
    stop: &Stop,
) -> Result<(), WorkerError> {
    let Way { settings, handing, cache, on_disk, .. } = way;
    let keeper = cache.as_ref().and_then(|cache| cache.keeper()).map(Arc::new);
    let (mut from_disk, mut peers) = (0, None);
    for window in windows(&slices) {
        let wanted = Arc::new(Mutex::new(Wanted::of(&slices, window)));
        if let Some(on_disk) = on_disk {
            from_disk += kept::read(on_disk, &slices, &wanted, chunks.clone(), keeper.as_ref(), stop).await;
        }
        let from = |place| {
            let (wanted, slices, chunks) = (wanted.clone(), slices.clone(), chunks.clone());
            Intake { wanted, slices, chunks, keeper: keeper.clone(), place }
        };
        if !wanted.lock().expect("no holder panics").is_empty() && peers.is_none() {
            peers = Some(Peers::reach(handing, assignment, &slices).await);
        }
        if let Some(peers) = &peers {
            peers.give(&from(Place::Peer), settings.collective_timeout).await;
        }
        coordinator::fetch(settings, assignment, from(Place::Coordinator)).await?;
    }
    if from_disk > 0 {
        let all: u64 = slices.iter().map(|slice| slice.bytes() as u64).sum();
        info!(bytes = %units::Bytes(from_disk), of = %units::Bytes(all), "read from the weight cache");
    }
    Ok(())
}

async fn stopped(stop: &Stop) {
    while !stop.is_asked() {
        tokio::time::sleep(STOP_TICK).await;
    }
}

/// Goes on to its end, which is not far: nothing comes over a link.
async fn make<W: WeightSink + 'static>(
    source: Synthetic,
    mut weights: W,
    mut report: impl FnMut(Loading) + Send + 'static,
) -> (Filled<W>, Result<(), WorkerError>) {
    let made = move || {
        let mut report =
            |bytes_done, bytes_total| report(Loading { bytes_done, bytes_total, ..Loading::default() });
        let made = weights.make_from(&source, &mut report);
        let whole = vec![made.is_ok(); weights.slices().len()];
        (Filled { weights, whole }, made.map_err(WorkerError::from))
    };
    tokio::task::spawn_blocking(made).await.expect("making weights does not panic")
}

/// Passes on a report every `pause`, and the last.
fn every(pause: Duration, tell: impl Fn(Loading) + Send + 'static) -> impl FnMut(Loading) + Send + 'static {
    let mut last = Instant::now();
    move |loading: Loading| {
        let done = loading.bytes_done == loading.bytes_total;
        if done || last.elapsed() >= pause {
            last = Instant::now();
            tell(loading);
        }
    }
}
