//! What a worker holds between groups.

use super::{exactly_32, wrong};
use crate::{WireError, wire};
use flotilla_shared::{Epoch, Held, Stage, WeightsId};

impl From<&Held> for wire::Held {
    fn from(held: &Held) -> Self {
        let stage = Stage { layers: held.layers.clone(), ranks: vec![held.share.clone()] };
        wire::Held { weights_id: held.weights.0.to_vec().into(), stage: Some((&stage).into()) }
    }
}

impl TryFrom<wire::Held> for Held {
    type Error = WireError;

    fn try_from(held: wire::Held) -> Result<Self, WireError> {
        let weights = WeightsId(exactly_32(&held.weights_id, "Held.weights_id")?);
        let Stage { layers, mut ranks } = super::need(held.stage, "Held.stage")?.try_into()?;
        match (ranks.pop(), ranks.len()) {
            (Some(share), 0) => Ok(Held { weights, layers, share }),
            _ => Err(wrong("Held.stage", "must have one rank")),
        }
    }
}

/// What a worker says that has left its group.
pub fn released(epoch: Epoch, held: Option<&Held>) -> wire::Released {
    wire::Released { epoch: epoch.0, held: held.map(Into::into) }
}

/// What it holds, if it has left this epoch.
pub fn released_from(released: wire::Released, epoch: Epoch) -> Result<Option<Option<Held>>, WireError> {
    if released.epoch != epoch.0 {
        return Ok(None);
    }
    released.held.map(Held::try_from).transpose().map(Some)
}
