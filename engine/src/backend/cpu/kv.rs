//! The paged KV cache of one rank: f32 [blocks, nk/R, BLOCK_TOKENS, D] a layer, keys and values apart, so
//! that the keys of one head in one block lie behind each other. A layer has the blocks of its kind's pool.

use super::kernels::KvSlab;
use crate::batch::Table;
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{BlockId, KvBlocks, LayerKind};
use std::ops::Range;

/// Keys and values of every block that the coordinator may give out.
#[derive(Debug)]
pub struct KvCache {
    /// Per layer.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    kv_heads: usize,
    head_dim: usize,
}

impl KvCache {
    /// Zeroed pages: the system gives them when they are first written.
    pub fn new(layers: &[LayerKind], blocks: KvBlocks, kv_heads: usize, head_dim: usize) -> Self {
        let len = |kind: &LayerKind| blocks.of(*kind) as usize * kv_heads * BLOCK_TOKENS * head_dim;
        let pages = || layers.iter().map(|kind| vec![0.0; len(kind)]).collect();
        KvCache { keys: pages(), values: pages(), kv_heads, head_dim }
    }

    /// Stores the keys and values of one position: f32 [nk/R, D] each. `table` is of the layer's kind.
    pub fn store(&mut self, layer: usize, table: Table<'_>, position: usize, keys: &[f32], values: &[f32]) {
        for head in 0..self.kv_heads {
            let at = self.offset(table.block(position), head, position % BLOCK_TOKENS);
            let from = head * self.head_dim..(head + 1) * self.head_dim;
            self.keys[layer][at..at + self.head_dim].copy_from_slice(&keys[from.clone()]);
            self.values[layer][at..at + self.head_dim].copy_from_slice(&values[from]);
        }
    }

    /// One head's keys and values at `positions`, block by block. `table` is of the layer's kind.
    pub fn slabs<'a>(
        &'a self,
        layer: usize,
        table: Table<'a>,
        head: usize,
        positions: Range<usize>,
    ) -> impl Iterator<Item = KvSlab<'a>> {
        let blocks = positions.start / BLOCK_TOKENS..positions.end.div_ceil(BLOCK_TOKENS);
        blocks.map(move |block| {
            let first = block * BLOCK_TOKENS;
            let rows = positions.start.max(first)..positions.end.min(first + BLOCK_TOKENS);
            let at = self.offset(table.block(first), head, rows.start - first);
            let elements = at..at + rows.len() * self.head_dim;
            KvSlab {
                keys: &self.keys[layer][elements.clone()],
                values: &self.values[layer][elements],
                rows: rows.len(),
                stride: self.head_dim,
            }
        })
    }

    fn offset(&self, block: BlockId, head: usize, row: usize) -> usize {
        ((block.index() * self.kv_heads + head) * BLOCK_TOKENS + row) * self.head_dim
    }
}
