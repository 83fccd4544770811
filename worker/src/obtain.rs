//! A rank's weights: those that are kept if they are what is assigned, or else from wherever the assignment says.

use crate::device::Device;
use crate::engine_thread::NotBuilt;
use crate::error::WorkerError;
use crate::link::Client;
use crate::load::stream_weights;
use crate::stock::{OnDevice, Stock};
use flotilla_engine::backend::cuda::CudaWeights;
use flotilla_engine::collective::{CollectiveError, Stop};
use flotilla_engine::weights::{RankWeights, Synthetic, WeightError, WeightSink};
use flotilla_shared::{Assignment, Loading, TensorSlice, WeightOrigin};
use std::time::{Duration, Instant};
use tracing::info;

/// Between two looks whether to stop.
const STOP_TICK: Duration = Duration::from_millis(20);
/// Reports at most so often, and at the end.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// `tell` is told how far it is. When it is stopped or fails, what is as good as before comes back.
pub async fn obtain(
    mut client: Client,
    device: &Device,
    assignment: &Assignment,
    stock: Option<Stock>,
    stop: &Stop,
    tell: impl Fn(Loading) + Send + 'static,
) -> Result<OnDevice, NotBuilt<WorkerError>> {
    let slices = assignment.plan.slices(&assignment.spec, assignment.rank);
    let bytes_total = slices.iter().map(|slice| slice.bytes() as u64).sum();
    if let Some(stock) = stock.filter(|stock| stock.is_all_of(assignment)) {
        info!(bytes = bytes_total, "weights are here still");
        tell(Loading { bytes_done: bytes_total, bytes_total });
        return Ok(stock.on);
    }
    // What was kept and is not wanted is gone by now, so that there is room.
    let fetch = async {
        match device {
            Device::Cpu(_) => {
                let weights = RankWeights::for_slices(slices)?;
                load(&mut client, tell, assignment, weights).await.map(OnDevice::Loaded)
            }
            Device::Card(card) => {
                let weights = CudaWeights::new(&card.card, slices)?;
                load(&mut client, tell, assignment, weights).await.map(OnDevice::Card)
            }
        }
    };
    let fetched = tokio::select! {
        fetched = fetch => fetched,
        () = stopped(stop) => Err(CollectiveError::Aborted.into()),
    };
    fetched.map_err(|error| (error, None))
}

async fn stopped(stop: &Stop) {
    while !stop.is_asked() {
        tokio::time::sleep(STOP_TICK).await;
    }
}

async fn load<W: WeightSink + 'static>(
    client: &mut Client,
    tell: impl Fn(Loading) + Send + 'static,
    assignment: &Assignment,
    mut weights: W,
) -> Result<W, WorkerError> {
    let start = Instant::now();
    let mut last_report = start;
    let mut report = move |loading: Loading| {
        let done = loading.bytes_done == loading.bytes_total;
        if done || last_report.elapsed() >= REPORT_EVERY {
            last_report = Instant::now();
            tell(loading);
        }
    };
    match assignment.weights {
        WeightOrigin::Stream => {
            stream_weights(client, assignment, &mut weights, &mut report).await?;
        }
        WeightOrigin::Synthetic { seed } => {
            let source = Synthetic::new(assignment.spec.clone(), seed);
            let made = move || {
                weights.make_from(&source, &mut |bytes_done, bytes_total| {
                    report(Loading { bytes_done, bytes_total })
                })?;
                Ok::<_, WeightError>(weights)
            };
            weights = tokio::task::spawn_blocking(made).await.expect("making weights does not panic")?;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let bytes: usize = weights.slices().iter().map(TensorSlice::bytes).sum();
    info!(bytes, seconds, "weights are here");
    Ok(weights)
}
