//! A rank's weights: those that are kept if they are what is assigned; or what of them is of use, and the rest from
//! wherever the assignment says. What a load has brought that is broken off is kept as well.

use crate::device::Device;
use crate::engine_thread::NotBuilt;
use crate::error::WorkerError;
use crate::load::{Filled, load};
use crate::patchwork::Patchwork;
use crate::settings::Settings;
use crate::stock::{OnDevice, Stock};
use flotilla_engine::backend::cuda::CudaWeights;
use flotilla_engine::collective::Stop;
use flotilla_engine::weights::{Kept, RankWeights, Several};
use flotilla_shared::{Assignment, Loading, TensorSlice};
use tracing::info;

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
    let stock = match stock {
        Some(stock) if stock.is_all_of(assignment) => {
            info!(bytes = bytes_total, "weights are here still");
            tell(Loading { bytes_done: bytes_total, bytes_total });
            return Ok(stock.on);
        }
        stock => stock.filter(|stock| stock.is_of(assignment)),
    };
    match &settings.device {
        Device::Cpu(_) => match stock.and_then(|stock| stock.on.into_kept()) {
            Some(kept) => {
                let weights = patch(slices, kept).await?;
                info!(
                    bytes = bytes_total - weights.lacking_bytes(),
                    of = bytes_total,
                    "some weights are here still"
                );
                let (filled, result) = load(settings, assignment, weights, stop, tell).await;
                match result {
                    Ok(()) => Ok(OnDevice::Loaded(filled.weights.into_weights())),
                    Err(error) => Err((error, Some(pieces(filled.weights.into_parts()).into()))),
                }
            }
            None => {
                let weights = RankWeights::for_slices(slices).map_err(|error| (error.into(), None))?;
                let (filled, result) = load(settings, assignment, weights, stop, tell).await;
                match result {
                    Ok(()) => Ok(OnDevice::Loaded(filled.weights)),
                    Err(error) => Err((error, Some(OnDevice::Loaded(whole(filled)).into()))),
                }
            }
        },
        Device::Card(card) => {
            // There is no room for two shares.
            drop(stock);
            let weights = CudaWeights::new(&card.card, slices).map_err(|error| (error.into(), None))?;
            let (filled, result) = load(settings, assignment, weights, stop, tell).await;
            result.map(|()| OnDevice::Card(filled.weights)).map_err(|error| (error, None))
        }
    }
}

/// Copies what is kept: not for the threads that serve.
async fn patch(slices: Vec<TensorSlice>, kept: Box<dyn Kept>) -> Result<Patchwork, NotBuilt<WorkerError>> {
    let patch = tokio::task::spawn_blocking(move || Patchwork::new(slices, kept)).await;
    patch.expect("copying does not panic").map_err(|error| (error.into(), None))
}

/// Without the tensors that are not all there.
fn whole(filled: Filled<RankWeights>) -> RankWeights {
    let Filled { mut weights, whole } = filled;
    let slices = flotilla_engine::weights::WeightSink::slices(&weights).to_vec();
    for (slice, _) in slices.iter().zip(&whole).filter(|(_, whole)| !**whole) {
        drop(weights.take(slice.tensor));
    }
    weights
}

fn pieces((weights, kept): (RankWeights, Box<dyn Kept>)) -> OnDevice {
    OnDevice::Pieces(Several(vec![Box::new(weights), kept]))
}
