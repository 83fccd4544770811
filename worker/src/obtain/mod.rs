//! A rank's weights: those that are kept if they are what is assigned; or what of them is of use, and the rest from
//! wherever the assignment says. What a load has brought that is broken off is kept as well.

mod card;

use crate::device::Device;
use crate::engine_thread::NotBuilt;
use crate::error::WorkerError;
use crate::handing::{Beside, Fills, Handing, Lent};
use crate::load::{Filled, Way, load};
use crate::patchwork::Patchwork;
use crate::settings::Settings;
use crate::stock::{OnDevice, Stock};
use flotilla_engine::collective::Stop;
use flotilla_engine::weights::{Kept, Need, RankWeights, Several, WeightSink};
use flotilla_shared::{Assignment, Loading, Place, TensorSlice, WeightOrigin};
use std::sync::Arc;
use tracing::info;

/// `tell` is told how far it is. When it is stopped or fails, what is as good as before comes back. Others may read what
/// comes as it comes.
pub async fn obtain(
    settings: &Settings,
    handing: &Handing,
    assignment: &Assignment,
    stock: Option<Stock>,
    stop: &Stop,
    tell: impl Fn(Loading) + Send + 'static,
) -> Result<OnDevice, NotBuilt> {
    let slices = assignment.plan.slices(&assignment.spec, assignment.rank);
    let bytes_total = slices.iter().map(|slice| slice.bytes() as u64).sum();
    let stock = match stock {
        Some(stock) if stock.is_all_of(assignment) => {
            info!(bytes = bytes_total, "weights are here still");
            tell(with_kept(bytes_total, Loading::default()));
            return Ok(stock.on);
        }
        stock => stock.filter(|stock| stock.is_of(assignment)),
    };
    let way = Way::open(settings, handing, assignment).await;
    match &settings.device {
        Device::Cpu(_) => {
            let kept = stock.and_then(|stock| stock.on.into_kept());
            let is_here = kept.as_ref().map_or_else(Vec::new, |kept| kept.kept());
            let needs = way.needs(assignment, &slices, &is_here);
            if kept.is_none() && needs.iter().all(Need::is_plain) {
                return load_all(&way, assignment, slices, stop, tell).await;
            }
            let kept = kept.unwrap_or_else(|| Box::new(Several(Vec::new())));
            complete(&way, assignment, (slices, needs, kept), stop, tell).await
        }
        Device::Card(device) => {
            // A card makes weights sooner than it would move them.
            let stock = stock.filter(|_| assignment.weights == WeightOrigin::Stream);
            let kept = stock.and_then(|stock| stock.on.into_card());
            card::obtain(&way, assignment, &device.card, kept, stop, tell).await
        }
    }
}

/// What lacks beside what is kept.
async fn complete(
    way: &Way<'_>,
    assignment: &Assignment,
    (slices, needs, kept): (Vec<TensorSlice>, Vec<Need>, Box<dyn Kept>),
    stop: &Stop,
    tell: impl Fn(Loading) + Send + 'static,
) -> Result<OnDevice, NotBuilt> {
    let all: u64 = slices.iter().map(|slice| slice.bytes() as u64).sum();
    let weights = RankWeights::for_slices(slices).map_err(|error| (error.into(), None))?;
    let weights = patch(way, weights, needs, kept, assignment.lends).await?;
    let kept = all - weights.lacking_bytes();
    say_kept(kept, all);
    let tell = move |loading| tell(with_kept(kept, loading));
    let (filled, result) = lend(way, assignment, weights, stop, tell).await;
    match result {
        Ok(()) => Ok(match filled.weights.into_whole() {
            (weights, Some(before)) => loaded_beside(way, weights, before),
            (weights, None) => loaded(way, weights),
        }),
        Err(error) => {
            way.handing.shelf.put_away();
            Err((error, Some(pieces(filled.weights.into_parts()).into())))
        }
    }
}

async fn load_all(
    way: &Way<'_>,
    assignment: &Assignment,
    slices: Vec<TensorSlice>,
    stop: &Stop,
    tell: impl Fn(Loading) + Send + 'static,
) -> Result<OnDevice, NotBuilt> {
    let weights = RankWeights::for_slices(slices).map_err(|error| (error.into(), None))?;
    let (filled, result) = lend(way, assignment, weights, stop, tell).await;
    match result {
        Ok(()) => Ok(loaded(way, filled.weights)),
        Err(error) => Err((error, Some(loaded(way, whole(filled)).into()))),
    }
}

/// Loads into memory that others may read meanwhile; at the end they do not any more.
async fn lend<W: Fills>(
    way: &Way<'_>,
    assignment: &Assignment,
    weights: W,
    stop: &Stop,
    tell: impl Fn(Loading) + Send + 'static,
) -> (Filled<W>, Result<(), WorkerError>) {
    let lent = Lent::new(weights);
    way.handing.shelf.lay(lent.reader());
    let (Filled { weights, whole }, result) = load(way, assignment, lent, stop, tell).await;
    way.handing.shelf.lift();
    (Filled { weights: weights.into_inner(), whole }, result)
}

/// This is here, and others may read it until the engine, or the next load, takes it.
fn loaded(way: &Way<'_>, weights: RankWeights) -> OnDevice {
    let weights = Arc::new(weights);
    way.handing.shelf.lay(weights.clone());
    OnDevice::Loaded(weights)
}

/// The same; and until they take it, others have what was here before too.
fn loaded_beside(way: &Way<'_>, weights: RankWeights, before: Box<dyn Kept>) -> OnDevice {
    let weights = Arc::new(weights);
    way.handing.shelf.lay(Arc::new(Beside { weights: weights.clone(), before }));
    OnDevice::Loaded(weights)
}

fn say_kept(bytes: u64, of: u64) {
    if bytes > 0 {
        info!(bytes, of, "some weights are here still");
    }
}

/// Progress with what was here before.
fn with_kept(bytes: u64, mut loading: Loading) -> Loading {
    loading.bytes_done += bytes;
    loading.bytes_total += bytes;
    loading.by_place.add(Place::Kept, bytes);
    loading
}

/// Copies what is kept: not for the threads that serve.
async fn patch(
    way: &Way<'_>,
    weights: RankWeights,
    needs: Vec<Need>,
    kept: Box<dyn Kept>,
    lends: bool,
) -> Result<Patchwork<RankWeights>, NotBuilt> {
    let digests = way.digests.clone();
    let patch = move || Patchwork::new(weights, needs, kept, digests, lends);
    let patch = tokio::task::spawn_blocking(patch).await;
    patch.expect("copying does not panic").map_err(|error| (error.into(), None))
}

/// Without the tensors that are not all there.
fn whole(filled: Filled<RankWeights>) -> RankWeights {
    let Filled { mut weights, whole } = filled;
    let slices = weights.slices().to_vec();
    for (slice, _) in slices.iter().zip(&whole).filter(|(_, whole)| !**whole) {
        drop(weights.take(slice.tensor));
    }
    weights
}

fn pieces((weights, kept): (RankWeights, Box<dyn Kept>)) -> OnDevice {
    OnDevice::Pieces(Several(vec![Box::new(weights), kept]))
}
