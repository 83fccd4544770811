//! A rank's weights in a card's memory: the checkpoint's bytes, packed and unpadded, in one allocation a
//! layer. q, k and v lie behind each other, for they are one product.

use super::reader::CudaReader;
use super::synthetic::SyntheticKernels;
use crate::cuda::{Card, CudaError};
use crate::weights::{FILL_BYTES, Synthetic, WeightError, WeightSink};
use cudarc::driver::{CudaSlice, CudaView, PinnedHostSlice, sys};
use flotilla_shared::TensorSlice;
use flotilla_shared::tensor::{LayerTensor, TensorId};
use std::collections::HashMap;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

/// Where a tensor begins, so that kernels may read it 16 bytes at a time and whole cache lines at best.
const ALIGN_BYTES: usize = 256;

const UNREAD: &str = "weights are read back once they are whole";

/// Tensors that must follow each other without a gap.
const JOINED: [LayerTensor; 4] =
    [LayerTensor::KWeight, LayerTensor::VWeight, LayerTensor::KBias, LayerTensor::VBias];

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    arena: usize,
    bytes: Range<usize>,
}

/// Where each slice goes: known before any memory is taken.
#[derive(Debug)]
struct Layout {
    places: Vec<Place>,
    arena_bytes: Vec<usize>,
}

impl Layout {
    /// One arena a layer, and the first for what is in no layer.
    fn of(slices: &[TensorSlice]) -> Layout {
        let mut layout =
            Layout { places: vec![Place { arena: 0, bytes: 0..0 }; slices.len()], arena_bytes: vec![] };
        // q, k, v and their biases side by side, whatever the order of the slices.
        let mut order: Vec<usize> = (0..slices.len()).collect();
        order.sort_by_key(|&index| key(slices[index].tensor));
        for index in order {
            let slice = &slices[index];
            let (arena, joined) = match slice.tensor {
                TensorId::Layer(layer, tensor) => (1 + usize::from(layer), JOINED.contains(&tensor)),
                _ => (0, false),
            };
            if layout.arena_bytes.len() <= arena {
                layout.arena_bytes.resize(arena + 1, 0);
            }
            let end = &mut layout.arena_bytes[arena];
            let start = if joined { *end } else { end.next_multiple_of(ALIGN_BYTES) };
            *end = start + slice.bytes();
            layout.places[index] = Place { arena, bytes: start..*end };
        }
        layout
    }

    fn bytes(&self) -> u64 {
        self.arena_bytes.iter().map(|&bytes| bytes as u64).sum()
    }
}

/// Products that are one stand side by side.
fn key(tensor: TensorId) -> (usize, usize) {
    use LayerTensor::{KBias, KWeight, QBias, QWeight, VBias, VWeight};
    match tensor {
        TensorId::Layer(layer, tensor) => {
            let first = [QWeight, KWeight, VWeight, QBias, KBias, VBias];
            let place = first.iter().position(|other| *other == tensor);
            (1 + usize::from(layer), place.unwrap_or(first.len() + tensor as usize))
        }
        TensorId::Embed => (0, 0),
        TensorId::FinalNorm => (0, 1),
        TensorId::Unembed => (0, 2),
    }
}

/// Bytes that the weights of `slices` take on a card.
pub fn weight_bytes(slices: &[TensorSlice]) -> u64 {
    Layout::of(slices).bytes()
}

/// One rank's weights on a card.
pub struct CudaWeights {
    card: Card,
    slices: Vec<TensorSlice>,
    index: HashMap<TensorId, usize>,
    layout: Layout,
    /// Nobody else has them before everything is there, and nobody writes to them after.
    arenas: Arc<Arenas>,
    /// What is on its way from the host; none once everything is there.
    staging: Option<PinnedHostSlice<u8>>,
}

/// One a layer. Whoever has them last may let them go on any thread.
pub(super) struct Arenas(Vec<CudaSlice<u8>>);

impl Deref for Arenas {
    type Target = Vec<CudaSlice<u8>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Arenas {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// The driver takes memory back only from threads that have the card's context.
impl Drop for Arenas {
    fn drop(&mut self) {
        let Some(first) = self.0.first() else { return };
        let context = first.stream().context();
        // The first call may only say what went wrong before.
        let bound = context.bind_to_thread().or_else(|_| context.bind_to_thread());
        if let Err(error) = bound {
            tracing::warn!("{}", CudaError::doing("give weights back")(error));
        }
    }
}

impl CudaWeights {
    /// Takes the memory for `slices`, one a tensor, none empty.
    pub fn new(card: &Card, slices: Vec<TensorSlice>) -> Result<Self, CudaError> {
        let layout = Layout::of(&slices);
        let arenas = layout.arena_bytes.iter().map(|&bytes| {
            // SAFETY: kernels read what `fill` has written, which is every byte between the gaps.
            unsafe { card.unset(bytes.max(1)) }
        });
        let arenas = Arc::new(Arenas(arenas.collect::<Result<_, _>>()?));
        let context = card.stream().context();
        // SAFETY: written by `fill` before it is copied from. Not write-combined: a source may read back.
        let staging = unsafe { context.alloc_pinned_with_flags(FILL_BYTES, sys::CU_MEMHOSTALLOC_PORTABLE) };
        let staging = staging.map_err(CudaError::doing("take pinned memory for weights"))?;
        Ok(CudaWeights {
            card: card.clone(),
            index: slices.iter().enumerate().map(|(at, slice)| (slice.tensor, at)).collect(),
            slices,
            layout,
            arenas,
            staging: Some(staging),
        })
    }

    pub fn card(&self) -> &Card {
        &self.card
    }

    /// For whoever reads them beside those that compute with them.
    ///
    /// # Panics
    /// If they are not whole.
    pub fn reader(&self) -> Result<CudaReader, CudaError> {
        assert!(self.staging.is_none(), "{UNREAD}");
        let places = self.slices.iter().zip(&self.layout.places);
        let places = places.map(|(slice, Place { arena, bytes })| (slice.clone(), *arena, bytes.start));
        CudaReader::new(&self.card, self.arenas.clone(), places.collect())
    }

    /// Bytes taken on the card.
    pub fn bytes(&self) -> u64 {
        self.layout.bytes()
    }

    /// Makes everything on the card; `progress` is told (bytes done, bytes in all).
    pub fn make(
        &mut self,
        source: &Synthetic,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), WeightError> {
        let Some(first) = self.slices.first() else { return Ok(()) };
        let kernels = SyntheticKernels::new(&self.card, source).map_err(|error| refused(first, error))?;
        let total = self.slices.iter().map(|slice| slice.bytes() as u64).sum();
        let mut done = 0;
        let arenas = Arc::get_mut(&mut self.arenas).expect(UNREAD);
        for (slice, place) in self.slices.iter().zip(&self.layout.places) {
            let mut out = arenas[place.arena].slice_mut(place.bytes.clone());
            // Waited for, so that progress is what is there and an error names its slice.
            let made = kernels.make(slice, &mut out).and_then(|()| self.card.synchronize());
            made.map_err(|error| refused(slice, error))?;
            done += slice.bytes() as u64;
            progress(done, total);
        }
        self.finish()
    }

    fn place(&self, tensor: TensorId) -> Option<&Place> {
        self.index.get(&tensor).map(|&at| &self.layout.places[at])
    }

    /// A part of an arena as elements.
    fn view<T>(&self, arena: usize, bytes: Range<usize>) -> CudaView<'_, T> {
        let len = bytes.len() / size_of::<T>();
        let view = self.arenas[arena].slice(bytes);
        // SAFETY: u8 and u16 take any bits, tensors are aligned, and the length is that of the bytes.
        unsafe { view.transmute(len) }.expect("as many bytes as elements")
    }

    /// The rank's part of a tensor; `None` where it has none.
    pub fn bf16(&self, tensor: TensorId) -> Option<CudaView<'_, u16>> {
        self.place(tensor).map(|place| self.view(place.arena, place.bytes.clone()))
    }

    pub fn layer_bf16(&self, layer: usize, tensor: LayerTensor) -> Option<CudaView<'_, u16>> {
        self.bf16(TensorId::Layer(layer as u16, tensor))
    }

    pub fn layer_bytes(&self, layer: usize, tensor: LayerTensor) -> Option<CudaView<'_, u8>> {
        let place = self.place(TensorId::Layer(layer as u16, tensor))?;
        Some(self.view(place.arena, place.bytes.clone()))
    }

    /// q, k and v as one: bf16 [(nq + 2 nk)/R · D, H], and their biases.
    pub fn qkv(&self, layer: usize) -> Option<(CudaView<'_, u16>, CudaView<'_, u16>)> {
        use LayerTensor::{QBias, QWeight, VBias, VWeight};
        let place = |tensor| self.place(TensorId::Layer(layer as u16, tensor));
        let joined = |first, last| {
            let (first, last) = (place(first)?, place(last)?);
            Some(self.view(first.arena, first.bytes.start..last.bytes.end))
        };
        Some((joined(QWeight, VWeight)?, joined(QBias, VBias)?))
    }
}

fn refused(slice: &TensorSlice, error: CudaError) -> WeightError {
    WeightError::Card { slice: slice.clone(), reason: error.to_string() }
}

/// A load that is broken off may leave a copy that still reads the pinned memory.
impl Drop for CudaWeights {
    fn drop(&mut self) {
        if self.staging.is_some() {
            let _ = self.card.synchronize();
        }
    }
}

impl WeightSink for CudaWeights {
    fn slices(&self) -> &[TensorSlice] {
        &self.slices
    }

    fn fill(
        &mut self,
        index: usize,
        range: Range<usize>,
        write: &mut dyn FnMut(&mut [u8]) -> Result<(), WeightError>,
    ) -> Result<(), WeightError> {
        let (slice, place) = (&self.slices[index], &self.layout.places[index]);
        let staging = self.staging.as_mut().expect("weights are not filled after the last");
        // The last copy may still read it.
        let out = self
            .card
            .synchronize()
            .and_then(|()| staging.as_mut_slice().map_err(CudaError::doing("use pinned memory for weights")));
        let out = &mut out.map_err(|error| refused(slice, error))?[..range.len()];
        write(out)?;
        let start = place.bytes.start + range.start;
        let arenas = Arc::get_mut(&mut self.arenas).expect(UNREAD);
        let mut to = arenas[place.arena].slice_mut(start..start + out.len());
        let copied = self.card.stream().memcpy_htod(out, &mut to);
        copied.map_err(CudaError::doing("copy weights to the card")).map_err(|error| refused(slice, error))
    }

    fn finish(&mut self) -> Result<(), WeightError> {
        let done = self.card.synchronize();
        self.staging = None;
        done.map_err(|error| refused(&self.slices[0], error))
    }

    fn make_from(
        &mut self,
        source: &Synthetic,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), WeightError> {
        self.make(source, progress)
    }
}
