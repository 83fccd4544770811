//! A rank's heads, and the sources compiled for them.

use crate::cuda::Source;
use flotilla_shared::step::BLOCK_TOKENS;

/// Query rows times heads of a block of `attend_tiles`.
const TILE_M: usize = 128;

/// The rank's own heads: `kv_heads` of them, each with `group` query heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    pub head_dim: usize,
    pub group: usize,
    pub kv_heads: usize,
}

impl AttentionShape {
    pub fn q_heads(self) -> usize {
        self.group * self.kv_heads
    }

    /// Values of one row of q, and of the attention.
    pub fn q_width(self) -> usize {
        self.q_heads() * self.head_dim
    }

    /// Values of one row of q, k and v together.
    pub fn qkv_width(self) -> usize {
        (self.q_heads() + 2 * self.kv_heads) * self.head_dim
    }

    /// Keys, or values, of one block of the cache.
    pub fn block_values(self) -> usize {
        self.kv_heads * BLOCK_TOKENS * self.head_dim
    }

    /// The most rows of a tile.
    pub fn tile_rows(self) -> usize {
        TILE_M / self.group
    }

    /// What q is multiplied with before it is rounded: a score is then q·k, in powers of two.
    pub fn q_scale(self) -> f32 {
        (std::f64::consts::LOG2_E / (self.head_dim as f64).sqrt()) as f32
    }

    /// Of `attend_split`: 8 warps have 128 registers each with two blocks a multiprocessor, 4 warps more.
    pub(super) fn split_warps(self) -> usize {
        if self.head_dim <= 64 && self.group <= 8 { 8 } else { 4 }
    }

    /// Blocks of the cache that a warp of `attend_split` takes at once.
    pub(super) fn step_blocks(self) -> usize {
        if self.head_dim <= 64 { 2 } else { 1 }
    }

    pub(super) fn tile_warps(self) -> usize {
        if self.head_dim <= 64 { 4 } else { 8 }
    }

    /// Whether one block of `attend_split` has a warp for each step of a window's row, whose keys may begin
    /// anywhere in a block of the cache.
    pub(super) fn one_block_holds(self, window: u32) -> bool {
        let keys = window as usize + BLOCK_TOKENS - 1;
        keys <= self.split_warps() * self.step_blocks() * BLOCK_TOKENS
    }

    fn defines(self) -> Vec<(&'static str, i64)> {
        let Self { head_dim, group, kv_heads } = self;
        assert!(head_dim.is_multiple_of(16) && (16..=128).contains(&head_dim), "head_dim {head_dim}");
        assert!((1..=16).contains(&group) && kv_heads > 0, "{kv_heads} kv heads of {group} query heads");
        [
            ("HEAD_DIM", head_dim),
            ("GROUP", group),
            ("Q_HEADS", self.q_heads()),
            ("KV_HEADS", kv_heads),
            ("BLOCK_TOKENS", BLOCK_TOKENS),
        ]
        .map(|(name, value)| (name, value as i64))
        .to_vec()
    }

    /// attention.cu: rotation and decode.
    pub fn source(self) -> Source {
        let mut defines = self.defines();
        defines.push(("SPLIT_WARPS", self.split_warps() as i64));
        defines.push(("STEP_BLOCKS", self.step_blocks() as i64));
        Source { name: "attention.cu", text: include_str!("../attention.cu"), defines }
    }

    /// attention_tiles.cu: prefill.
    pub fn tiles_source(self) -> Source {
        let mut defines = self.defines();
        defines.push(("TILE_M", TILE_M as i64));
        defines.push(("TILE_WARPS", self.tile_warps() as i64));
        Source { name: "attention_tiles.cu", text: include_str!("../attention_tiles.cu"), defines }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: AttentionShape = AttentionShape { head_dim: 64, group: 8, kv_heads: 8 };

    #[test]
    fn one_block_holds_a_window_of_128() {
        assert!(REAL.one_block_holds(128));
        assert!(REAL.one_block_holds(241));
        assert!(!REAL.one_block_holds(242));
    }

    #[test]
    fn tiles_fill_the_rows_of_a_block() {
        assert_eq!(REAL.tile_rows(), 16);
        assert_eq!(AttentionShape { group: 3, ..REAL }.tile_rows(), 42);
    }
}
