//! The paged KV cache of one rank on a card: bf16 [blocks, nk/R, BLOCK_TOKENS, D], keys and values of each
//! layer apart, so that the keys of one head in one block lie behind each other. A layer has the blocks of its
//! kind's pool.

use crate::cuda::{Card, CudaError};
use cudarc::driver::CudaSlice;
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{KvBlocks, LayerKind};

/// One layer's keys and values.
#[derive(Debug)]
pub struct LayerCache {
    pub keys: CudaSlice<u16>,
    pub values: CudaSlice<u16>,
}

/// Takes the cache of every layer; kernels read only positions that they have written.
pub fn caches(
    card: &Card,
    layers: &[LayerKind],
    blocks: KvBlocks,
    kv_heads: usize,
    head_dim: usize,
) -> Result<Vec<LayerCache>, CudaError> {
    let layer = |kind: &LayerKind| {
        let len = blocks.of(*kind) as usize * kv_heads * BLOCK_TOKENS * head_dim;
        // SAFETY: attention reads no position that `rope_store` has not written.
        let (keys, values) = unsafe { (card.unset(len)?, card.unset(len)?) };
        Ok(LayerCache { keys, values })
    };
    layers.iter().map(layer).collect()
}
