//! What is asked for of weights. Whether it lies in the model at hand is for whoever knows the model.

use super::{exactly_32, narrow, wrong};
use crate::{WireError, wire};
use flotilla_shared::{Epoch, TensorSlice, WeightsId};
use std::ops::Range;

/// Slices, and extents, of one request at most.
const EXTENTS_MAX: usize = 4096;

/// Parts of slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    pub epoch: Epoch,
    /// `None`: those of the epoch.
    pub weights: Option<WeightsId>,
    pub slices: Vec<TensorSlice>,
    /// By number of the slice: bytes of it.
    pub extents: Vec<(usize, Range<usize>)>,
}

impl From<&Fetch> for wire::FetchRequest {
    fn from(fetch: &Fetch) -> Self {
        let to_extent = |(slice, bytes): &(usize, Range<usize>)| wire::Extent {
            slice: *slice as u32,
            start: bytes.start as u64,
            end: bytes.end as u64,
        };
        wire::FetchRequest {
            epoch: fetch.epoch.0,
            weights_id: fetch.weights.map_or_else(Default::default, |id| id.0.to_vec().into()),
            slices: fetch.slices.iter().map(Into::into).collect(),
            extents: fetch.extents.iter().map(to_extent).collect(),
        }
    }
}

impl TryFrom<wire::FetchRequest> for Fetch {
    type Error = WireError;

    fn try_from(wire: wire::FetchRequest) -> Result<Self, WireError> {
        let counts =
            [("FetchRequest.slices", wire.slices.len()), ("FetchRequest.extents", wire.extents.len())];
        for (field, count) in counts {
            if count > EXTENTS_MAX {
                return Err(wrong(field, format!("are {count} at once, at most {EXTENTS_MAX}")));
            }
        }
        let extent = |wire: wire::Extent| {
            let (start, end) =
                (narrow(wire.start, "Extent.start")?, narrow::<usize>(wire.end, "Extent.end")?);
            Ok((wire.slice as usize, start..end))
        };
        let weights = (!wire.weights_id.is_empty())
            .then(|| exactly_32(&wire.weights_id, "FetchRequest.weights_id").map(WeightsId));
        Ok(Fetch {
            epoch: Epoch(wire.epoch),
            weights: weights.transpose()?,
            slices: wire.slices.into_iter().map(TensorSlice::try_from).collect::<Result<_, _>>()?,
            extents: wire.extents.into_iter().map(extent).collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::ModelSpec;
    use flotilla_shared::tensor::TensorId;

    #[test]
    fn requests_survive_the_wire_and_others_are_refused() {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        for weights in [None, Some(WeightsId([3; 32]))] {
            let fetch = Fetch {
                epoch: Epoch(4),
                weights,
                slices: vec![TensorSlice::whole(TensorId::Embed, &spec)],
                extents: vec![(0, 5..9), (0, 1 << 20..1 << 40)],
            };
            assert_eq!(Fetch::try_from(wire::FetchRequest::from(&fetch)), Ok(fetch));
        }
        let field = |request: wire::FetchRequest| Fetch::try_from(request).unwrap_err().field;
        let extents = vec![wire::Extent::default(); EXTENTS_MAX + 1];
        assert_eq!(field(wire::FetchRequest { extents, ..Default::default() }), "FetchRequest.extents");
        let slices = vec![wire::Slice::default(); EXTENTS_MAX + 1];
        assert_eq!(field(wire::FetchRequest { slices, ..Default::default() }), "FetchRequest.slices");
        let weights_id = vec![1; 31].into();
        assert_eq!(field(wire::FetchRequest { weights_id, ..Default::default() }), "FetchRequest.weights_id");
    }
}
