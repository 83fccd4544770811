//! A rank's weights: those that are kept if they are what is assigned, or else from wherever the assignment says.

use crate::device::Device;
use crate::engine_thread::NotBuilt;
use crate::error::WorkerError;
use crate::load::load;
use crate::settings::Settings;
use crate::stock::{OnDevice, Stock};
use flotilla_engine::backend::cuda::CudaWeights;
use flotilla_engine::collective::{CollectiveError, Stop};
use flotilla_engine::weights::RankWeights;
use flotilla_shared::{Assignment, Loading};
use std::time::Duration;
use tracing::info;

/// Between two looks whether to stop.
const STOP_TICK: Duration = Duration::from_millis(20);

/// `tell` is told how far it is. When it is stopped or fails, what is as good as before comes back.
pub async fn obtain(
    settings: &Settings,
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
        match &settings.device {
            Device::Cpu(_) => {
                let weights = RankWeights::for_slices(slices)?;
                load(settings, assignment, weights, tell).await.map(OnDevice::Loaded)
            }
            Device::Card(card) => {
                let weights = CudaWeights::new(&card.card, slices)?;
                load(settings, assignment, weights, tell).await.map(OnDevice::Card)
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
