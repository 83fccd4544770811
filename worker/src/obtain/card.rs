//! The same on a card, which has no room for two shares: what is kept of the new one lies in its place, and what others ask for
//! meanwhile lies aside, in the host's memory.

use super::{say_kept, with_kept};
use crate::engine_thread::NotBuilt;
use crate::error::WorkerError;
use crate::handing::Copied;
use crate::load::{Filled, Way, load};
use crate::memory::memory_available;
use crate::patchwork::Patchwork;
use crate::stock::OnDevice;
use flotilla_engine::backend::cuda::CudaWeights;
use flotilla_engine::collective::Stop;
use flotilla_engine::cuda::Card;
use flotilla_engine::weights::{Need, RankWeights, WeightSink};
use flotilla_shared::units::Bytes;
use flotilla_shared::{Assignment, Loading, TensorSlice};
use tracing::{info, warn};

/// On `card`, of which `kept` may be of use.
pub async fn obtain(
    way: &Way<'_>,
    assignment: &Assignment,
    card: &Card,
    kept: Option<CudaWeights>,
    stop: &Stop,
    tell: impl Fn(Loading) + Send + 'static,
) -> Result<OnDevice, NotBuilt> {
    let slices = assignment.plan.slices(&assignment.spec, assignment.rank);
    let (weights, before) = room(card, slices, kept, Gives::of(assignment)).await?;
    let needs = way.needs(assignment, weights.slices(), &weights.kept());
    let all: u64 = needs.iter().map(|need| need.slice.bytes() as u64).sum();
    let (weights, result) = match needs.iter().all(Need::is_plain) {
        true => fill(way, assignment, (weights, before), stop, tell).await,
        false => {
            let weights = Patchwork::in_place(weights, needs, way.digests.clone());
            let kept = all - weights.lacking_bytes();
            say_kept(kept, all);
            let tell = move |loading| tell(with_kept(kept, loading));
            let (weights, result) = fill(way, assignment, (weights, before), stop, tell).await;
            (weights.into_weights(), result)
        }
    };
    let has_some = !weights.kept().is_empty();
    let weights = OnDevice::Card(Box::new(weights));
    match result {
        Ok(()) => Ok(weights),
        Err(error) => {
            way.handing.shelf.put_away();
            Err((error, has_some.then(|| weights.into())))
        }
    }
}

/// What of the share before is for others.
#[derive(Clone, Copy)]
enum Gives {
    Nothing,
    /// What every rank of the stage has.
    Replicated,
    /// And what is not of the new share, up to so many bytes.
    Rest {
        bytes_max: u64,
    },
}

impl Gives {
    fn of(assignment: &Assignment) -> Gives {
        match (Way::gives(assignment), assignment.lends) {
            (false, _) => Gives::Nothing,
            (true, false) => Gives::Replicated,
            (true, true) => {
                // Other ranks may be on this host, and the rest of the system is too.
                let ranks = assignment.plan.rank_count() as u64;
                let bytes_max = memory_available().map_or(0, |bytes| bytes / 2 / ranks);
                Gives::Rest { bytes_max }
            }
        }
    }

    /// Of what is `kept`: one part a tensor, in the order of the forward, as far as there is room.
    fn parts(self, kept: Vec<TensorSlice>, wanted: &[TensorSlice]) -> Vec<TensorSlice> {
        let bytes_max = match self {
            Gives::Nothing => return Vec::new(),
            Gives::Replicated => 0,
            Gives::Rest { bytes_max } => bytes_max,
        };
        let mut bytes = 0;
        let mut lent = |slice: TensorSlice| {
            if slice.tensor.replicated() {
                return Some(slice);
            }
            let of_new = wanted.iter().find(|wanted| wanted.tensor == slice.tensor);
            let mut beyond = of_new.map_or_else(|| vec![slice.clone()], |wanted| slice.without(wanted));
            let part = if beyond.len() > 1 { slice } else { beyond.pop()? };
            bytes += part.bytes() as u64;
            (bytes <= bytes_max).then_some(part)
        };
        kept.into_iter().filter_map(&mut lent).collect()
    }
}

/// Memory of the card, and what lies aside.
async fn room(
    card: &Card,
    slices: Vec<TensorSlice>,
    kept: Option<CudaWeights>,
    gives: Gives,
) -> Result<(CudaWeights, RankWeights), NotBuilt> {
    let card = card.clone();
    let room = move || {
        let mut aside = RankWeights::for_slices(Vec::new())?;
        if let Some(kept) = kept {
            match kept.copied(gives.parts(kept.kept(), &slices)) {
                Ok(before) => aside = before,
                Err(error) => warn!(%error, "what this card had is not handed on"),
            }
            match kept.recut(slices.clone()) {
                Ok(weights) => return Ok((weights, aside)),
                Err(error) => {
                    warn!(%error, "what this card has cannot be kept, all of its share comes anew");
                }
            }
        }
        // What was given back is free once the card was waited for.
        card.synchronize()?;
        Ok((CudaWeights::new(&card, slices)?, aside))
    };
    let room = tokio::task::spawn_blocking(room).await.expect("cutting weights anew does not panic");
    room.map_err(|error: WorkerError| (error, None))
}

/// What lacks, into memory that others do not read.
async fn fill<W: WeightSink + 'static>(
    way: &Way<'_>,
    assignment: &Assignment,
    (weights, before): (W, RankWeights),
    stop: &Stop,
    tell: impl Fn(Loading) + Send + 'static,
) -> (W, Result<(), WorkerError>) {
    // Where the host has no memory for what is copied, nobody is given any, and the load goes on.
    let coming = match Way::gives(assignment) {
        true => Copied::<W>::room(weights.slices())
            .inspect_err(|error| warn!(%error, "what comes to this card is not handed on"))
            .ok(),
        false => None,
    };
    let Some(coming) = coming else {
        way.handing.shelf.put_away();
        let (Filled { weights, .. }, result) = load(way, assignment, weights, stop, tell).await;
        return (weights, result);
    };
    let lent = before.bytes_held();
    if lent > 0 {
        info!(bytes = %Bytes(lent), "some of what this card had lies aside for others");
    }
    let copied = Copied::new(weights, before, coming);
    way.handing.shelf.lay(copied.aside());
    let (Filled { weights, .. }, result) = load(way, assignment, copied, stop, tell).await;
    (weights.into_inner(), result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handing::tests::assignment;
    use flotilla_shared::{ModelSpec, Plan, Rank, WeightOrigin, WeightsId};

    /// Each rank may be a stage of its own.
    #[test]
    fn who_is_alone_in_its_stage_gives_what_it_had_if_it_is_told_to() {
        let mut alone = assignment(WeightsId([1; 32]));
        assert!(matches!(Gives::of(&alone), Gives::Nothing));
        alone.lends = true;
        assert!(matches!(Gives::of(&alone), Gives::Rest { bytes_max } if bytes_max > 0));
        alone.weights = WeightOrigin::Synthetic { seed: 1 };
        assert!(matches!(Gives::of(&alone), Gives::Nothing));
    }

    /// The last of three keeps the back of two, the middle one has some of it and of the front.
    #[test]
    fn what_others_ask_for_lies_aside_as_far_as_there_is_room() {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let slices =
            |ranks: usize, rank| Plan::with_shares(&spec, &vec![1.0; ranks]).slices(&spec, Rank(rank));
        let (kept, wanted, others) = (slices(3, 1), slices(2, 0), slices(2, 1));
        let replicated: Vec<_> = kept.iter().filter(|slice| slice.tensor.replicated()).cloned().collect();
        assert!(Gives::Nothing.parts(kept.clone(), &wanted).is_empty());
        assert_eq!(Gives::Replicated.parts(kept.clone(), &wanted), replicated);
        let all = Gives::Rest { bytes_max: u64::MAX }.parts(kept.clone(), &wanted);
        let common = |slice: &TensorSlice| kept.iter().find_map(|kept| slice.common(kept));
        let asked: Vec<_> = others.iter().filter_map(common).collect();
        for part in &asked {
            assert!(all.iter().any(|lent| lent.covers(part)), "{part}");
        }
        let bytes = |slices: &[TensorSlice]| slices.iter().map(|slice| slice.bytes() as u64).sum::<u64>();
        assert!(asked.len() > replicated.len() && bytes(&all) == bytes(&asked));
        let least = Gives::Rest { bytes_max: bytes(&all) / 2 }.parts(kept, &wanted);
        assert!(bytes(&least) < bytes(&all) * 3 / 4 && bytes(&least) > bytes(&all) / 4);
        assert!(least.len() > replicated.len());
    }
}
