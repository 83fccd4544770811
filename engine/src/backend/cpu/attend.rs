//! Who computes which part of a step's attention: tiles of consecutive tokens times kv heads, and parts of their keys where
//! there would be too little for all threads. How a part is computed is the kernel's; a row's bits do not depend on how
//! the work is cut (`kernels/attention`).

use super::CpuBackend;
use super::attention::Attention;
use super::kernels::{KEYS_SPLIT, KV_BLOCK, KvElement, PartShape, Queries};
use crate::batch::{Batch, BatchSequence};
use flotilla_shared::tensor::LayerTensor;
use flotilla_shared::{KvDtype, LayerKind};
use std::ops::Range;

/// Tokens that pass over the keys together: with 8 query heads of each, 128 rows for which a tile is widened once.
const TILE_TOKENS: usize = 16;
/// A smaller tile is only for keeping threads busy.
const TILE_TOKENS_MIN: usize = 4;
/// Pieces of work a thread, so that uneven ones even out.
const ITEMS_A_THREAD: usize = 4;

/// The work of one layer, laid out anew for each: rows that are alone in their sequence, and tiles of several.
#[derive(Debug, Default)]
pub struct AttendWork {
    singles: Pieces,
    tiles: Pieces,
    /// One a sequence of the batch.
    places: Vec<Place>,
}

/// Pieces of work whose parts have the same room.
#[derive(Debug, Default)]
struct Pieces {
    items: Vec<Item>,
    /// f32 [items, room]
    parts: Vec<f32>,
    /// Tokens of a tile at most.
    tokens: usize,
    room: usize,
}

/// Some rows of a sequence, one kv head, some of their keys.
#[derive(Clone, Debug)]
struct Item {
    sequence: usize,
    rows: Range<usize>,
    head: usize,
    keys: Range<usize>,
}

/// Where a sequence's items are: [heads, tiles, splits] from `first` on.
#[derive(Clone, Copy, Debug)]
struct Place {
    first: usize,
    tiles: usize,
    splits: usize,
}

/// What the work is about.
#[derive(Clone, Copy, Debug)]
struct Shape {
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    window: usize,
    threads: usize,
}

impl AttendWork {
    fn lay_out(&mut self, batch: &Batch, shape: Shape) {
        let rows = |alone: bool| {
            let rows = batch.sequences.iter().map(|sequence| sequence.rows.len());
            rows.filter(move |rows| (*rows == 1) == alone)
        };
        let wanted = ITEMS_A_THREAD * shape.threads;
        let tokens = (rows(false).sum::<usize>() * shape.kv_heads).div_ceil(wanted);
        let tokens = tokens.clamp(TILE_TOKENS_MIN, TILE_TOKENS).min(rows(false).max().unwrap_or(1));
        self.singles.begin(1, shape);
        self.tiles.begin(tokens, shape);
        let pieces = rows(true).sum::<usize>() + rows(false).map(|rows| rows.div_ceil(tokens)).sum::<usize>();
        let apart = shape.threads > 1 && pieces * shape.kv_heads < wanted;
        self.places.clear();
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let pieces = if sequence.rows.len() == 1 { &mut self.singles } else { &mut self.tiles };
            self.places.push(pieces.push(index, sequence, batch, shape, apart));
        }
        self.singles.make_room();
        self.tiles.make_room();
    }

    fn parts_of(&self, row: usize, head: usize, batch: &Batch, shape: Shape) -> Parts<'_> {
        let sequence = batch.sequences.partition_point(|sequence| sequence.rows.end <= row);
        let rows = &batch.sequences[sequence].rows;
        let pieces = if rows.len() == 1 { &self.singles } else { &self.tiles };
        let place = self.places[sequence];
        let (tile, token) = ((row - rows.start) / pieces.tokens, (row - rows.start) % pieces.tokens);
        let first = place.first + (head * place.tiles + tile) * place.splits;
        let tokens = pieces.items[first].rows.len();
        Parts {
            pieces,
            items: first..first + place.splits,
            shape: PartShape::new(tokens * shape.group, shape.head_dim),
            row: token * shape.group,
        }
    }
}

/// The parts of one token and head.
struct Parts<'a> {
    pieces: &'a Pieces,
    items: Range<usize>,
    shape: PartShape,
    /// The token's first row in each.
    row: usize,
}

impl Pieces {
    fn begin(&mut self, tokens: usize, shape: Shape) {
        self.items.clear();
        self.tokens = tokens;
        self.room = PartShape::new(tokens * shape.group, shape.head_dim).len();
    }

    fn push(
        &mut self,
        index: usize,
        sequence: &BatchSequence,
        batch: &Batch,
        shape: Shape,
        apart: bool,
    ) -> Place {
        let position = batch.positions[sequence.rows.start] as usize;
        let keys = (position + 1).saturating_sub(shape.window)..position + sequence.rows.len();
        let splits = match apart {
            true => keys.start / KEYS_SPLIT..keys.end.div_ceil(KEYS_SPLIT),
            false => 0..1,
        };
        let place = Place {
            first: self.items.len(),
            tiles: sequence.rows.len().div_ceil(self.tokens),
            splits: splits.len(),
        };
        for head in 0..shape.kv_heads {
            for start in sequence.rows.clone().step_by(self.tokens) {
                let rows = start..sequence.rows.end.min(start + self.tokens);
                for split in splits.clone() {
                    let keys =
                        if apart { split * KEYS_SPLIT..(split + 1) * KEYS_SPLIT } else { 0..usize::MAX };
                    self.items.push(Item { sequence: index, rows: rows.clone(), head, keys });
                }
            }
        }
        place
    }

    /// Parts grow to the most that was ever needed.
    fn make_room(&mut self) {
        let len = self.items.len() * self.room;
        if self.parts.len() < len {
            self.parts.resize(len, 0.0);
        }
    }
}

impl CpuBackend {
    pub(super) fn attend_rows(&mut self, layer: usize, batch: &Batch) {
        if self.share.kv_heads.is_empty() {
            return;
        }
        self.kernels
            .bf16_widen(self.weights.layer_bf16(layer, LayerTensor::Sinks), &mut self.attention.sinks);
        match self.kv.dtype() {
            KvDtype::F32 => self.attend_over::<f32>(layer, batch),
            _ => self.attend_over::<u16>(layer, batch),
        }
    }

    /// `E` is what the cache holds.
    fn attend_over<E: KvElement>(&mut self, layer: usize, batch: &Batch) {
        let kind = self.spec.layers[layer];
        let shape = self.attend_shape(kind);
        let Attention { q, out, sinks, q_width, work, .. } = &mut self.attention;
        let (kernels, kv, q, sinks) = (self.kernels, &self.kv, &*q, &*sinks);
        work.lay_out(batch, shape);
        for Pieces { items, parts, room, .. } in [&mut work.singles, &mut work.tiles] {
            self.threads.chunks(&mut parts[..items.len() * *room], *room, |index, part, scratch| {
                let item = &items[index];
                let table = batch.table(&batch.sequences[item.sequence], kind);
                let queries = shape.queries(item, batch, q);
                let block = |block: usize| kv.block::<E>(layer, table.block(block * KV_BLOCK), item.head);
                let part = &mut part[..PartShape::new(queries.rows(), shape.head_dim).len()];
                kernels.attend(&queries, item.keys.clone(), &block, part, scratch);
            });
        }
        let work = &*work;
        self.threads.chunks(&mut out[..batch.rows() * *q_width], shape.width(), |index, out, _| {
            let (row, head) = (index / shape.kv_heads, index % shape.kv_heads);
            let Parts { pieces, items, shape: part, row } = work.parts_of(row, head, batch, shape);
            let sinks = &sinks[head * shape.group..][..shape.group];
            let parts = items.map(|item| &pieces.parts[item * pieces.room..][..part.len()]);
            kernels.attend_finish(out, sinks, part, row, parts);
        });
    }

    fn attend_shape(&self, kind: LayerKind) -> Shape {
        Shape {
            kv_heads: self.share.kv_heads.len(),
            group: self.spec.group(),
            head_dim: self.spec.head_dim,
            window: if kind == LayerKind::Window { self.spec.window } else { usize::MAX },
            threads: self.attention.threads,
        }
    }
}

impl Shape {
    /// Values of a kv head's query heads.
    fn width(&self) -> usize {
        self.group * self.head_dim
    }

    /// q: f32 [T, nq/R, D]
    fn queries<'q>(&self, item: &Item, batch: &Batch, q: &'q [f32]) -> Queries<'q> {
        let stride = self.kv_heads * self.width();
        Queries {
            q: &q[item.rows.start * stride + item.head * self.width()..],
            stride,
            tokens: item.rows.len(),
            group: self.group,
            head_dim: self.head_dim,
            position: batch.positions[item.rows.start] as usize,
            window: self.window,
            scale: (self.head_dim as f64).powf(-0.5) as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Table;

    fn batch(sequences: &[(usize, u32)]) -> Batch {
        let mut batch = Batch::default();
        for (rows, position) in sequences {
            batch.push(&vec![0; *rows], *position, Table::default(), Table::default());
        }
        batch
    }

    /// Every row and head is covered once by tiles, and every key that it sees once by their parts.
    #[test]
    fn pieces_tile_rows_heads_and_keys() {
        let batches = [
            vec![(1, 0)],
            vec![(1, 40_000)],
            vec![(5, 3000), (1, 7), (100, 0), (1, 1023), (17, 1020)],
            vec![(512, 8000)],
        ];
        for (sequences, threads) in batches.iter().flat_map(|b| [1, 2, 16].map(|threads| (b, threads))) {
            for window in [128, usize::MAX] {
                let batch = batch(sequences);
                let shape = Shape { kv_heads: 2, group: 8, head_dim: 64, window, threads };
                let mut work = AttendWork::default();
                work.lay_out(&batch, shape);
                for (index, sequence) in batch.sequences.iter().enumerate() {
                    for (row, head) in sequence.rows.clone().flat_map(|row| [(row, 0), (row, 1)]) {
                        let parts = work.parts_of(row, head, &batch, shape);
                        let end = batch.positions[row] as usize + 1;
                        let mut next = end.saturating_sub(window);
                        for item in &parts.pieces.items[parts.items.clone()] {
                            assert!(item.sequence == index && item.head == head && item.rows.contains(&row));
                            assert_eq!(parts.row, (row - item.rows.start) * shape.group);
                            if item.keys.end > next && next < end {
                                assert!(item.keys.contains(&next), "{item:?} of row {row} leaves out {next}");
                                next = item.keys.end;
                            }
                        }
                        assert!(next >= end, "row {row}: keys from {next} on are nobody's");
                    }
                }
            }
        }
    }

    #[test]
    fn one_deep_row_is_work_for_many_threads() {
        let shape = |threads| Shape { kv_heads: 1, group: 8, head_dim: 64, window: usize::MAX, threads };
        let mut work = AttendWork::default();
        work.lay_out(&batch(&[(1, 32_767)]), shape(1));
        assert_eq!(work.singles.items.len(), 1);
        work.lay_out(&batch(&[(1, 32_767)]), shape(8));
        assert_eq!(work.singles.items.len(), 32);
    }
}
