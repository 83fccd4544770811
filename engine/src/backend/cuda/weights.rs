//! A rank's weights in a card's memory: the checkpoint's bytes, packed and unpadded, in one allocation a
//! layer. q, k and v lie behind each other, for they are one product.

mod passage;
mod recut;

use super::reader::CudaReader;
use super::synthetic::SyntheticKernels;
use crate::cuda::{Card, CudaError};
use crate::weights::{RankWeights, Synthetic, WeightError, WeightSink};
use cudarc::driver::{CudaSlice, CudaView};
use flotilla_shared::TensorSlice;
use flotilla_shared::tensor::{LayerTensor, TensorId};
use std::collections::HashMap;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use passage::Passage;

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
    /// One a slice, of a load that is under way or was broken off.
    there: Vec<There>,
    /// From the host; none once everything is there.
    passage: Option<Passage>,
}

/// What is there of a slice.
#[derive(Clone, Debug, Default)]
struct There {
    /// A rectangle that lies in its place since before this load.
    kept: Option<TensorSlice>,
    /// Bytes that were filled, each once.
    filled: usize,
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
        let (passage, there) = (Passage::new(card)?, vec![There::default(); slices.len()]);
        Ok(Self::over(card.clone(), slices, layout, arenas, there, passage))
    }

    fn over(
        card: Card,
        slices: Vec<TensorSlice>,
        layout: Layout,
        arenas: Arc<Arenas>,
        there: Vec<There>,
        passage: Passage,
    ) -> Self {
        let index = index_of(&slices);
        CudaWeights { card, slices, index, layout, arenas, there, passage: Some(passage) }
    }

    pub fn card(&self) -> &Card {
        &self.card
    }

    /// For whoever reads them beside those that compute with them.
    ///
    /// # Panics
    /// If they are not whole.
    pub fn reader(&self) -> Result<CudaReader, CudaError> {
        assert!(self.is_whole(), "{UNREAD}");
        let places = self.slices.iter().zip(&self.layout.places);
        let places = places.map(|(slice, Place { arena, bytes })| (slice.clone(), *arena, bytes.start));
        CudaReader::new(&self.card, self.arenas.clone(), places.collect())
    }

    /// Whether a load came to its end: only then are they of use to an engine.
    pub fn is_whole(&self) -> bool {
        self.passage.is_none()
    }

    /// What is there: whole slices, and of those that a load did not complete the rectangle that was kept from before it.
    pub fn kept(&self) -> Vec<TensorSlice> {
        (0..self.slices.len()).filter_map(|at| self.there(at).cloned()).collect()
    }

    fn there(&self, at: usize) -> Option<&TensorSlice> {
        let (slice, there) = (&self.slices[at], &self.there[at]);
        let is_all = self.is_whole() || there.filled == slice.bytes();
        if is_all { Some(slice) } else { there.kept.as_ref() }
    }

    /// `parts`, which lie in what is there, in the host's memory; one a tensor.
    ///
    /// # Panics
    /// If one of them is of another tensor.
    pub fn copied(&self, parts: Vec<TensorSlice>) -> Result<RankWeights, WeightError> {
        let mut copy = RankWeights::for_slices(parts)?;
        let Some(first) = copy.slices().first() else { return Ok(copy) };
        let mut passage = Passage::new(&self.card).map_err(|error| refused(first, error))?;
        for (index, part) in copy.slices().to_vec().iter().enumerate() {
            let at = self.index[&part.tensor];
            let (slice, place) = (&self.slices[at], &self.layout.places[at]);
            copy.fill(index, 0..part.bytes(), &mut |out| {
                let arena = &self.arenas[place.arena];
                let read = passage.read(arena, place.bytes.start, slice, part, out);
                read.map_err(|error| refused(part, error))
            })?;
        }
        Ok(copy)
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

fn index_of(slices: &[TensorSlice]) -> HashMap<TensorId, usize> {
    slices.iter().enumerate().map(|(at, slice)| (slice.tensor, at)).collect()
}

/// Lets a buffer of the host be written: with room alone, or with what the card has there.
type Write<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<(), WeightError>;

impl CudaWeights {
    fn put(
        &mut self,
        index: usize,
        range: Range<usize>,
        finds_what_is_there: bool,
        write: Write<'_>,
    ) -> Result<(), WeightError> {
        let (slice, place) = (&self.slices[index], &self.layout.places[index]);
        let passage = self.passage.as_mut().expect("weights are not filled after the last");
        let arena = &mut Arc::get_mut(&mut self.arenas).expect(UNREAD)[place.arena];
        let bytes = place.bytes.start + range.start..place.bytes.start + range.end;
        let out = match finds_what_is_there {
            true => passage.fetch(&arena.slice(bytes.clone())),
            false => passage.room(range.len()),
        };
        write(out.map_err(|error| refused(slice, error))?)?;
        passage.send(&mut arena.slice_mut(bytes)).map_err(|error| refused(slice, error))?;
        let filled = &mut self.there[index].filled;
        *filled += range.len();
        assert!(*filled <= slice.bytes(), "{slice} is filled twice");
        Ok(())
    }
}

impl WeightSink for CudaWeights {
    fn slices(&self) -> &[TensorSlice] {
        &self.slices
    }

    fn fill(&mut self, index: usize, range: Range<usize>, write: Write<'_>) -> Result<(), WeightError> {
        self.put(index, range, false, write)
    }

    fn update(&mut self, index: usize, range: Range<usize>, write: Write<'_>) -> Result<(), WeightError> {
        self.put(index, range, true, write)
    }

    fn finish(&mut self) -> Result<(), WeightError> {
        self.card.synchronize().map_err(|error| refused(&self.slices[0], error))?;
        self.passage = None;
        Ok(())
    }

    fn make_from(
        &mut self,
        source: &Synthetic,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), WeightError> {
        self.make(source, progress)
    }
}
