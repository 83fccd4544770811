//! The shape of a block of `experts_wgmma.cu`.

/// The shape of a block of experts_wgmma.cu, by which it is compiled.
pub(super) struct Tall {
    warpgroups: usize,
    /// Tiles of 64 rows of a warpgroup.
    tiles: usize,
    stages: usize,
    blocks_of_sm: usize,
    /// Scales are never multiplied into weights.
    always_exact: bool,
}

/// Others that fit a card's registers, as (warpgroups, tiles, stages, blocks_of_sm): (4, 1, 5, 1), (3, 1, 5, 1),
/// (2, 1, 4, 2).
pub(super) const TALL: Tall =
    Tall { warpgroups: 2, tiles: 2, stages: 5, blocks_of_sm: 1, always_exact: false };

impl Tall {
    pub(super) const fn threads(&self) -> u32 {
        self.warpgroups as u32 * 128
    }
    pub(super) const fn row_tile(&self) -> usize {
        self.warpgroups * self.tiles * 64
    }
    /// The ring, from a multiple of 1024, and a tile's scales behind it.
    pub(super) const fn shared_bytes(&self, columns: usize) -> usize {
        1024 + self.stages * (128 * 128 + self.row_tile() * 32) + self.row_tile() * columns / 32
    }
    pub(super) fn defines(&self) -> [(&'static str, i64); 5] {
        [
            ("WARPGROUPS", self.warpgroups as i64),
            ("M_TILES", self.tiles as i64),
            ("STAGES", self.stages as i64),
            ("BLOCKS_OF_SM", self.blocks_of_sm as i64),
            ("ALWAYS_EXACT", i64::from(self.always_exact)),
        ]
    }
}
