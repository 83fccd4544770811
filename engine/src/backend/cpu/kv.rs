//! The paged KV cache of one rank: [blocks, nk/R, 2, BLOCK_TOKENS · D] a layer, in f16 or f32. Of each block and head
//! the keys come first, transposed ([D, BLOCK_TOKENS]), the values behind them ([BLOCK_TOKENS, D]). A layer has the
//! blocks of its kind's pool. Which sequence has which block is not known here.
//!
//! All of it is one mapping, in huge pages where the system has them: a block of one head is 4 KiB of f16 at D = 64, and
//! would else miss the TLB each time. The system gives memory when a page is first written, as it does with small
//! pages, only 2 MiB at a time: what a process holds grows in such steps, and a layer of which one block was written
//! holds 2 MiB.

use super::kernels::{KV_BLOCK, KvBlock, KvElement};
use crate::batch::Table;
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{BlockId, KvBlocks, KvDtype, LayerKind};
use memmap2::MmapMut;
use std::marker::PhantomData;
use std::ops::Range;

const _: () = assert!(KV_BLOCK == BLOCK_TOKENS);

/// Below this there is no huge page to be had.
#[cfg(target_os = "linux")]
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Keys and values of every block that the coordinator may give out.
#[derive(Debug)]
pub struct KvCache {
    bytes: MmapMut,
    /// Where each of the model's layers begins; those of other stages have nothing there.
    layers: Vec<usize>,
    dtype: KvDtype,
    kv_heads: usize,
    head_dim: usize,
}

impl KvCache {
    /// For the layers `held` of the model's. Zeroed pages: the system gives them when they are first written.
    ///
    /// # Panics
    /// If the system does not even give addresses; as any other allocation.
    pub fn new(
        dtype: KvDtype,
        layers: &[LayerKind],
        held: &Range<usize>,
        blocks: KvBlocks,
        (kv_heads, head_dim): (usize, usize),
    ) -> Self {
        let of_block = 2 * kv_heads * BLOCK_TOKENS * head_dim * dtype.element_bytes();
        let (mut begins, mut len) = (Vec::new(), 0);
        for (layer, kind) in layers.iter().enumerate() {
            begins.push(len);
            if held.contains(&layer) {
                len += blocks.of(*kind) as usize * of_block;
            }
        }
        let bytes = MmapMut::map_anon(len.max(1));
        let bytes = bytes.unwrap_or_else(|error| panic!("no memory for {len} bytes of KV cache: {error}"));
        #[cfg(target_os = "linux")]
        if len >= HUGE_PAGE_BYTES {
            // Where the kernel has none to give, small pages are only slower.
            let _ = bytes.advise(memmap2::Advice::HugePage);
        }
        KvCache { bytes, layers: begins, dtype, kv_heads, head_dim }
    }

    /// Takes all of the memory now, as if every block had been written.
    pub fn touch(&mut self) {
        self.bytes.fill(0);
    }

    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }

    /// A layer's cache, to be written by several threads, each its own heads.
    pub fn heads(&mut self, layer: usize) -> KvHeads<'_> {
        let bytes = &mut self.bytes[self.layers[layer]..];
        let (base, len, dtype) = (bytes.as_mut_ptr(), bytes.len(), self.dtype);
        KvHeads { base, len, dtype, kv_heads: self.kv_heads, head_dim: self.head_dim, owner: PhantomData }
    }

    /// One head's keys and values in a block. `E` is what the cache holds.
    pub fn block<E: KvElement>(&self, layer: usize, block: BlockId, head: usize) -> KvBlock<'_, E> {
        let at = self.offset(layer, block, head);
        let elements = bytemuck::cast_slice(&self.bytes[at..at + self.head_bytes()]);
        let (keys, values) = elements.split_at(BLOCK_TOKENS * self.head_dim);
        KvBlock { keys, values }
    }

    /// Bytes of one head in one block.
    fn head_bytes(&self) -> usize {
        2 * BLOCK_TOKENS * self.head_dim * self.dtype.element_bytes()
    }

    fn offset(&self, layer: usize, block: BlockId, head: usize) -> usize {
        self.layers[layer] + (block.index() * self.kv_heads + head) * self.head_bytes()
    }
}

/// A layer's blocks, of which each head has bytes of its own.
pub struct KvHeads<'a> {
    base: *mut u8,
    len: usize,
    dtype: KvDtype,
    kv_heads: usize,
    head_dim: usize,
    owner: PhantomData<&'a mut [u8]>,
}

// SAFETY: through `&self` nothing is reached but `store`, whose caller answers for heads that are written by one thread each;
// the bytes of two heads do not overlap.
unsafe impl Sync for KvHeads<'_> {}

impl KvHeads<'_> {
    /// Stores one head's key and value of one position: f32 [D] each. `table` is of the layer's kind.
    ///
    /// # Safety
    /// No two calls for the same head run at the same time.
    pub unsafe fn store(&self, head: usize, table: Table<'_>, position: usize, key: &[f32], value: &[f32]) {
        assert!(head < self.kv_heads && key.len() == self.head_dim && value.len() == self.head_dim);
        // SAFETY: the contract is this function's own.
        unsafe {
            match self.dtype {
                KvDtype::F32 => self.store_as::<f32>(head, table, position, key, value),
                KvDtype::F16 => self.store_as::<u16>(head, table, position, key, value),
                KvDtype::Bf16 => unreachable!("cards keep bf16, CPUs do not"),
            }
        }
    }

    unsafe fn store_as<E: KvElement>(
        &self,
        head: usize,
        table: Table<'_>,
        position: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let (d, row) = (self.head_dim, position % BLOCK_TOKENS);
        let len = 2 * BLOCK_TOKENS * d * self.dtype.element_bytes();
        let at = (table.block(position).index() * self.kv_heads + head) * len;
        assert!(at + len <= self.len, "a block beyond the cache");
        // SAFETY: within the layer's bytes, as just seen; they are one head's, which nobody else writes now.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.base.add(at), len) };
        let (keys, values) = bytemuck::cast_slice_mut::<u8, E>(bytes).split_at_mut(BLOCK_TOKENS * d);
        for (column, k) in keys.chunks_exact_mut(BLOCK_TOKENS).zip(key) {
            column[row] = E::from_f32(*k);
        }
        for (stored, v) in values[row * d..].iter_mut().zip(value) {
            *stored = E::from_f32(*v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_found_where_its_layer_block_and_head_are() {
        let (heads, d) = (3, 6);
        for dtype in [KvDtype::F16, KvDtype::F32] {
            let kinds = [LayerKind::Window, LayerKind::Full, LayerKind::Window];
            let mut kv = KvCache::new(dtype, &kinds, &(0..3), KvBlocks { full: 5, window: 2 }, (heads, d));
            let tables = [[1, 0], [4, 2], [0, 1]].map(|ids| ids.map(BlockId));
            // Whole numbers that f16 holds exactly, each of its own.
            let value = |layer: usize, position: usize, at: usize| ((layer * 32 + position) * 18 + at) as f32;
            for (layer, table) in tables.iter().enumerate() {
                for position in 0..32 {
                    let keys: Vec<f32> = (0..heads * d).map(|at| value(layer, position, at)).collect();
                    let values: Vec<f32> = keys.iter().map(|key| -key).collect();
                    let rows = keys.chunks_exact(d).zip(values.chunks_exact(d));
                    for (head, (key, value)) in rows.enumerate() {
                        // SAFETY: one call at a time.
                        unsafe { kv.heads(layer).store(head, Table::whole(table), position, key, value) };
                    }
                }
            }
            for (layer, table) in tables.iter().enumerate() {
                for (position, head, i) in
                    (0..32).flat_map(|p| (0..heads * d).map(move |at| (p, at / d, at % d)))
                {
                    let (block, row) = (table[position / 16], position % 16);
                    let [key, found] = match dtype {
                        KvDtype::F32 => pair::<f32>(&kv, layer, block, head, (row, i)),
                        _ => pair::<u16>(&kv, layer, block, head, (row, i)),
                    };
                    let expected = value(layer, position, head * d + i);
                    assert_eq!(
                        [key, found],
                        [expected, -expected],
                        "{dtype:?} {layer} {position} {head} {i}"
                    );
                }
            }
        }
    }

    fn pair<E: KvElement>(
        kv: &KvCache,
        layer: usize,
        block: BlockId,
        head: usize,
        (row, i): (usize, usize),
    ) -> [f32; 2] {
        let block = kv.block::<E>(layer, block, head);
        [block.keys[i * BLOCK_TOKENS + row].to_f32(), block.values[row * kv.head_dim + i].to_f32()]
    }
}
