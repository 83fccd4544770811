//! Slices of tensors by name, as workers ask for them.

use super::{range, to_range, wrong};
use crate::{WireError, wire};
use flotilla_shared::TensorSlice;
use flotilla_shared::tensor::{LayerTensor, TensorId};

/// Dimensions of a tensor at most.
const DIMENSIONS_MAX: usize = 4;
/// Numbers of the tensors in no layer; those of layer l begin at 3 + l · 32, in the order of the forward.
const EMBED: u32 = 0;
const FINAL_NORM: u32 = 1;
const UNEMBED: u32 = 2;
const LAYERS: u32 = 3;
const PER_LAYER: u32 = 32;

fn number(tensor: TensorId) -> u32 {
    match tensor {
        TensorId::Embed => EMBED,
        TensorId::FinalNorm => FINAL_NORM,
        TensorId::Unembed => UNEMBED,
        TensorId::Layer(layer, tensor) => LAYERS + u32::from(layer) * PER_LAYER + tensor as u32,
    }
}

fn tensor(number: u32) -> Option<TensorId> {
    match number {
        EMBED => Some(TensorId::Embed),
        FINAL_NORM => Some(TensorId::FinalNorm),
        UNEMBED => Some(TensorId::Unembed),
        _ => {
            let (layer, part) = ((number - LAYERS) / PER_LAYER, (number - LAYERS) % PER_LAYER);
            let tensor = LayerTensor::ALL.get(part as usize)?;
            Some(TensorId::Layer(layer.try_into().ok()?, *tensor))
        }
    }
}

impl From<&TensorSlice> for wire::Slice {
    fn from(slice: &TensorSlice) -> Self {
        wire::Slice {
            tensor: number(slice.tensor),
            ranges: slice.ranges.iter().filter_map(to_range).collect(),
        }
    }
}

/// Whether it lies in a tensor of the model at hand is for whoever knows the model.
impl TryFrom<wire::Slice> for TensorSlice {
    type Error = WireError;

    fn try_from(slice: wire::Slice) -> Result<Self, WireError> {
        let number = slice.tensor;
        let tensor =
            tensor(number).ok_or_else(|| wrong("Slice.tensor", format!("is {number}, which is none")))?;
        if slice.ranges.len() > DIMENSIONS_MAX {
            return Err(wrong("Slice.ranges", format!("has {} dimensions", slice.ranges.len())));
        }
        let ranges = slice.ranges.into_iter().map(|it| range(Some(it), "Slice.ranges"));
        Ok(TensorSlice { tensor, ranges: ranges.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::ModelSpec;

    #[test]
    fn slices_survive_the_wire() {
        let spec = ModelSpec::published("gpt-oss-120b").unwrap();
        for tensor in TensorId::all(&spec) {
            let slice = TensorSlice::whole(tensor, &spec);
            assert_eq!(TensorSlice::try_from(wire::Slice::from(&slice)), Ok(slice));
        }
    }

    #[test]
    fn what_is_no_slice_is_refused() {
        let refused = |slice: wire::Slice| TensorSlice::try_from(slice).unwrap_err().field;
        assert_eq!(refused(wire::Slice { tensor: LAYERS + 19, ranges: vec![] }), "Slice.tensor");
        assert_eq!(refused(wire::Slice { tensor: u32::MAX, ranges: vec![] }), "Slice.tensor");
        let ranges = vec![wire::Range { start: 0, end: 1 }; 5];
        assert_eq!(refused(wire::Slice { tensor: 0, ranges }), "Slice.ranges");
        let ranges = vec![wire::Range { start: 2, end: 1 }];
        assert_eq!(refused(wire::Slice { tensor: 0, ranges }), "Slice.ranges");
    }
}
