//! A CPU's weights read back as the checkpoint has them: experts are put in their old order one by one, what was rounded
//! is not to be had.

use super::kernels::Grouped;
use super::weights::CpuWeights;
use crate::weights::{ByteRuns, HeldTensor, Kept, WeightError};
use flotilla_shared::TensorSlice;
use flotilla_shared::tensor::{LayerTensor, TensorId};
use std::sync::PoisonError;

/// Readers whose room is kept, each with an expert's bytes: so many peers may read at once, each forward.
const ROOMS_MAX: usize = 4;

/// The expert that a reader had last, in the checkpoint's order.
#[derive(Debug, Default)]
pub struct Ungrouped {
    of: Option<(TensorId, usize)>,
    bytes: Vec<u8>,
}

impl Kept for CpuWeights {
    fn kept(&self) -> Vec<TensorSlice> {
        let exact = self.held.tensors().filter(|held| !self.int8.contains_key(&held.tensor()));
        exact.map(|held| held.slice().clone()).collect()
    }

    fn has(&self, part: &TensorSlice) -> bool {
        !self.int8.contains_key(&part.tensor) && self.held.has(part)
    }

    fn read_back(&self, part: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<(), WeightError> {
        let tensor = part.tensor;
        let held = self.held.get(tensor).filter(|_| !self.int8.contains_key(&tensor));
        let held = held.unwrap_or_else(|| panic!("{part} is not kept"));
        let runs = ByteRuns::within(part, held.slice());
        match grouped(tensor) {
            None => runs.visit(offset, out.len(), |start, range| {
                let len = range.len();
                out[range].copy_from_slice(&held.bytes()[start..start + len]);
            }),
            Some(unit) => self.read_experts(held, unit, &runs, offset, out),
        }
        Ok(())
    }

    fn forget(&mut self, tensor: TensorId) {
        drop(self.held.take(tensor));
    }
}

impl CpuWeights {
    fn read_experts(&self, held: &HeldTensor, unit: Grouped, runs: &ByteRuns, offset: usize, out: &mut [u8]) {
        let [experts, rows, ..] = held.shape()[..] else { panic!("experts have more than two dimensions") };
        let expert_bytes = held.bytes().len() / experts;
        let first = runs.at(offset) / expert_bytes;
        let mut ungrouped = self.room_of((held.tensor(), first));
        runs.visit(offset, out.len(), |start, range| {
            let (mut at, mut to) = (start, range.start);
            while to < range.end {
                let (expert, within) = (at / expert_bytes, at % expert_bytes);
                if ungrouped.of != Some((held.tensor(), expert)) {
                    let bytes = &held.bytes()[expert * expert_bytes..][..expert_bytes];
                    self.kernels.ungroup(bytes, rows, unit, &mut ungrouped.bytes);
                    ungrouped.of = Some((held.tensor(), expert));
                }
                let len = (expert_bytes - within).min(range.end - to);
                out[to..to + len].copy_from_slice(&ungrouped.bytes[within..within + len]);
                (at, to) = (at + len, to + len);
            }
        });
        let mut rooms = self.ungrouped.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.truncate(ROOMS_MAX - 1);
        rooms.insert(0, ungrouped);
    }

    /// The room with that expert in it; else the one that was used longest ago, or another.
    fn room_of(&self, expert: (TensorId, usize)) -> Ungrouped {
        let mut rooms = self.ungrouped.lock().unwrap_or_else(PoisonError::into_inner);
        match rooms.iter().position(|room| room.of == Some(expert)) {
            Some(at) => rooms.remove(at),
            None if rooms.len() == ROOMS_MAX => rooms.pop().unwrap_or_default(),
            None => Ungrouped::default(),
        }
    }
}

/// How a tensor was regrouped, if it was.
fn grouped(tensor: TensorId) -> Option<Grouped> {
    use LayerTensor::{DownBlocks, DownScales, GateUpBlocks, GateUpScales};
    match tensor {
        TensorId::Layer(_, GateUpBlocks | DownBlocks) => Some(Grouped::Blocks),
        TensorId::Layer(_, GateUpScales | DownScales) => Some(Grouped::Scales),
        _ => None,
    }
}
