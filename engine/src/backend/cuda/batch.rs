//! A step's rows in a card's memory: one copy a step. Where each part lies depends on the launch's number of
//! rows alone, so that a graph that was captured for so many rows finds those of the next step.

use super::attention::{AttentionShape, DecodeList, DecodeRows, Rotation, StepRows, Tiles};
use crate::backend::rope::RopeTable;
use crate::batch::Batch;
use crate::cuda::{Card, CudaError};
use cudarc::driver::{CudaSlice, CudaView, PinnedHostSlice, sys};
use flotilla_shared::{LayerKind, ModelSpec};
use std::ops::Range;

/// Parts begin at a multiple of so many words: 16 bytes.
const ALIGN_WORDS: usize = 4;

/// Where each part lies, in words of 4 bytes. T is the launch's number of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout {
    t: usize,
    rows: Range<usize>,
    logit_row_count: Range<usize>,
    tile_count: Range<usize>,
    decode_count: Range<usize>,
    tokens: Range<usize>,
    positions: Range<usize>,
    full_start: Range<usize>,
    window_start: Range<usize>,
    logit_rows: Range<usize>,
    decode_rows: Range<usize>,
    tiles: Range<usize>,
    cos: Range<usize>,
    sin: Range<usize>,
    /// From here on: block tables.
    blocks: usize,
}

impl Layout {
    fn of(t: usize, head_dim: usize) -> Layout {
        let mut end = 0;
        let mut take = |words: usize| {
            let start = end;
            end = (start + words).next_multiple_of(ALIGN_WORDS);
            start..start + words
        };
        Layout {
            t,
            rows: take(1),
            logit_row_count: take(1),
            tile_count: take(1),
            decode_count: take(1),
            tokens: take(t),
            positions: take(t),
            full_start: take(t),
            window_start: take(t),
            logit_rows: take(t),
            decode_rows: take(t),
            tiles: take(4 * t),
            cos: take(t * head_dim / 2),
            sin: take(t * head_dim / 2),
            blocks: take(0).start,
        }
    }

    fn words(&self, blocks: usize) -> usize {
        self.blocks + blocks.max(1)
    }

    fn table_start(&self, kind: LayerKind) -> &Range<usize> {
        match kind {
            LayerKind::Full => &self.full_start,
            LayerKind::Window => &self.window_start,
        }
    }
}

/// The rows of the step that runs, on the card and as they are laid out for it.
pub struct DeviceBatch {
    card: Card,
    host: PinnedHostSlice<u32>,
    /// What became too small: to give it back would wait for whatever else the card does, such as a rank of this process
    /// that waits for this one. Together they are not larger than what is in use.
    outgrown: Vec<PinnedHostSlice<u32>>,
    words: CudaSlice<u32>,
    rope: RopeTable,
    head_dim: usize,
    tile_rows: usize,
    layout: Layout,
    /// Of the rows that there are: decode rows in a list, and tiles.
    decodes: usize,
    tiles: usize,
    logit_rows: usize,
    /// Every row decodes and has its logits taken.
    pure_decode: bool,
}

/// Pinned memory and the card's, of so many words each.
fn room(card: &Card, words: usize) -> Result<(PinnedHostSlice<u32>, CudaSlice<u32>), CudaError> {
    // SAFETY: `set` writes every word before it is copied.
    let host =
        unsafe { card.stream().context().alloc_pinned_with_flags(words, sys::CU_MEMHOSTALLOC_PORTABLE) };
    Ok((host.map_err(CudaError::doing("take pinned memory for a step's rows"))?, card.zeros(words)?))
}

impl DeviceBatch {
    /// Room for `rows_max` rows, and for `blocks_max` entries of block tables at first.
    pub fn new(
        card: &Card,
        spec: &ModelSpec,
        attention: Option<AttentionShape>,
        rows_max: usize,
        blocks_max: usize,
    ) -> Result<Self, CudaError> {
        // To take pinned memory may wait for other ranks' kernels too, so that there it is hardly ever done in a step.
        let blocks = if card.has_company() { 2 * blocks_max } else { blocks_max };
        let (host, words) = room(card, Layout::of(rows_max, spec.head_dim).words(blocks))?;
        Ok(DeviceBatch {
            card: card.clone(),
            host,
            outgrown: Vec::new(),
            words,
            rope: RopeTable::new(spec),
            head_dim: spec.head_dim,
            tile_rows: attention.map_or(1, AttentionShape::tile_rows),
            layout: Layout::of(1, spec.head_dim),
            decodes: 0,
            tiles: 0,
            logit_rows: 0,
            pure_decode: false,
        })
    }

    pub fn is_pure_decode(batch: &Batch) -> bool {
        batch.sequences.iter().all(|sequence| sequence.rows.len() == 1)
            && batch.logit_rows.len() == batch.rows()
            && !batch.keep_routing
    }

    /// Takes more memory if the tables of `batch` need it: sequences that share blocks may have more entries
    /// than there are blocks. Whether the step's rows lie elsewhere now.
    pub fn make_room(&mut self, batch: &Batch, t: usize) -> Result<bool, CudaError> {
        let words = Layout::of(t, self.head_dim).words(batch.blocks.len());
        if words <= self.words.len() {
            return Ok(false);
        }
        let (host, words) = room(&self.card, words.next_power_of_two())?;
        self.outgrown.push(std::mem::replace(&mut self.host, host));
        self.words = words;
        Ok(true)
    }

    /// Lays `batch` out for a launch of `t` rows, of which those past the batch are skipped, and starts
    /// copying it. The copy of the step before must be done.
    pub fn set(&mut self, batch: &Batch, t: usize) -> Result<(), CudaError> {
        assert!(t >= batch.rows() && !batch.sequences.is_empty());
        let layout = Layout::of(t, self.head_dim);
        let count = layout.words(batch.blocks.len());
        self.rope.set_positions(&batch.positions);
        self.pure_decode = Self::is_pure_decode(batch);
        let using = CudaError::doing("use pinned memory");
        let words = &mut self.host.as_mut_slice().map_err(using)?[..count];
        words.fill(0);
        let put = |words: &mut [u32], at: &Range<usize>, values: &mut dyn Iterator<Item = u32>| {
            words[at.clone()].iter_mut().zip(values).for_each(|(word, value)| *word = value);
        };
        put(words, &layout.tokens, &mut batch.tokens.iter().copied());
        put(words, &layout.positions, &mut batch.positions.iter().copied());
        put(words, &layout.logit_rows, &mut batch.logit_rows.iter().map(|&row| row as u32));
        put(words, &layout.cos, &mut self.rope.cos().iter().map(|cos| cos.to_bits()));
        put(words, &layout.sin, &mut self.rope.sin().iter().map(|sin| sin.to_bits()));
        let blocks = layout.blocks..layout.blocks + batch.blocks.len();
        put(words, &blocks, &mut batch.blocks.iter().map(|block| block.0));
        (self.decodes, self.tiles) = (0, 0);
        for sequence in &batch.sequences {
            for kind in [LayerKind::Full, LayerKind::Window] {
                let starts = layout.table_start(kind);
                words[starts.clone()][sequence.rows.clone()].fill(sequence.table_start(kind));
            }
            if sequence.rows.len() == 1 {
                words[layout.decode_rows.start + self.decodes] = sequence.rows.start as u32;
                self.decodes += 1;
                continue;
            }
            for first in sequence.rows.clone().step_by(self.tile_rows) {
                let rows = self.tile_rows.min(sequence.rows.end - first);
                words[layout.tiles.start + 4 * self.tiles..][..2]
                    .copy_from_slice(&[first as u32, rows as u32]);
                self.tiles += 1;
            }
        }
        self.logit_rows = batch.logit_rows.len();
        let counts = [
            (&layout.rows, batch.rows()),
            (&layout.logit_row_count, self.logit_rows),
            (&layout.tile_count, self.tiles),
            (&layout.decode_count, self.decodes),
        ];
        for (at, value) in counts {
            words[at.start] = value as u32;
        }
        self.layout = layout;
        let mut to = self.words.slice_mut(..count);
        let copied = self.card.stream().memcpy_htod(&*words, &mut to);
        copied.map_err(CudaError::doing("copy a step's rows"))
    }

    /// T of the launch.
    pub fn t(&self) -> usize {
        self.layout.t
    }

    /// Logit rows of the launch.
    pub fn logit_rows(&self) -> usize {
        if self.pure_decode { self.layout.t } else { self.logit_rows }
    }

    fn part(&self, at: &Range<usize>) -> CudaView<'_, u32> {
        self.words.slice(at.clone())
    }

    fn floats(&self, at: &Range<usize>) -> CudaView<'_, f32> {
        // SAFETY: f32 takes any bits, and is as long as u32.
        unsafe { self.part(at).transmute(at.len()) }.expect("as many words")
    }

    pub fn rows(&self) -> CudaView<'_, u32> {
        self.part(&self.layout.rows)
    }

    pub fn tokens(&self) -> CudaView<'_, u32> {
        self.part(&self.layout.tokens)
    }

    /// (rows, how many)
    pub fn logit_row_list(&self) -> (CudaView<'_, u32>, CudaView<'_, u32>) {
        (self.part(&self.layout.logit_rows), self.part(&self.layout.logit_row_count))
    }

    /// With the block tables of layers of `kind`.
    pub fn step_rows(&self, kind: LayerKind) -> StepRows<'_> {
        StepRows {
            rows: self.rows(),
            positions: self.part(&self.layout.positions),
            table_start: self.part(self.layout.table_start(kind)),
            blocks: self.words.slice(self.layout.blocks..),
        }
    }

    pub fn rotation(&self) -> Rotation<'_> {
        Rotation { cos: self.floats(&self.layout.cos), sin: self.floats(&self.layout.sin) }
    }

    /// The rows that decode, if there are any.
    pub fn decode_rows(&self) -> Option<DecodeRows<'_>> {
        if self.pure_decode {
            return Some(DecodeRows { launched: self.layout.t, list: None });
        }
        let list = || DecodeList {
            rows: self.part(&self.layout.decode_rows),
            count: self.part(&self.layout.decode_count),
        };
        (self.decodes > 0).then(|| DecodeRows { launched: self.decodes, list: Some(list()) })
    }

    /// The rows that are tiles, if there are any.
    pub fn tiles(&self) -> Option<Tiles<'_>> {
        (self.tiles > 0).then(|| Tiles {
            launched: self.tiles,
            tiles: self.part(&self.layout.tiles),
            count: self.part(&self.layout.tile_count),
        })
    }
}
