//! Launches `attention.cu` and `attention_tiles.cu`: rotation and storing, and attention over the paged
//! cache with sinks. A step's rows are given as decode rows, which read their keys alone, or as tiles of
//! consecutive rows of one sequence, which share them; a step may have both.
//!
//! What a step's rows are lies in the card's memory, so that a captured launch can be replayed for others:
//! launches depend only on their number. That what lies there fits the buffers is the caller's word; the
//! lengths of the buffers are asserted here.

use crate::cuda::{Card, CudaError, Launcher, Module, Source};
use cudarc::driver::{CudaFunction, CudaSlice, CudaView, CudaViewMut, DevicePtr, LaunchConfig};
use flotilla_shared::step::BLOCK_TOKENS;

/// Threads of a block of `rope_store` and of `attend_combine`.
const ROPE_THREADS: usize = 128;
const COMBINE_THREADS: usize = 128;
/// Query rows times heads of a block of `attend_tiles`.
const TILE_M: usize = 128;
/// More would leave `attend_combine` more to read than they save.
const SPARE_MAX: usize = 128;
/// Blocks of `attend_split` that one multiprocessor holds.
const BLOCKS_PER_MULTIPROCESSOR: usize = 2;
/// In place of the window's width where every key is visible.
const NO_WINDOW: u32 = u32::MAX;

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
    fn split_warps(self) -> usize {
        if self.head_dim <= 64 && self.group <= 8 { 8 } else { 4 }
    }

    /// Blocks of the cache that a warp of `attend_split` takes at once.
    fn step_blocks(self) -> usize {
        if self.head_dim <= 64 { 2 } else { 1 }
    }

    fn tile_warps(self) -> usize {
        if self.head_dim <= 64 { 4 } else { 8 }
    }

    /// Whether one block of `attend_split` has a warp for each step of a window's row, whose keys may begin
    /// anywhere in a block of the cache.
    fn one_block_holds(self, window: u32) -> bool {
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
        Source { name: "attention.cu", text: include_str!("attention.cu"), defines }
    }

    /// attention_tiles.cu: prefill.
    pub fn tiles_source(self) -> Source {
        let mut defines = self.defines();
        defines.push(("TILE_M", TILE_M as i64));
        defines.push(("TILE_WARPS", self.tile_warps() as i64));
        Source { name: "attention_tiles.cu", text: include_str!("attention_tiles.cu"), defines }
    }
}

/// The rows of a step, in the card's memory. T is the bucket of the launch.
#[derive(Debug)]
pub struct StepRows<'a> {
    /// [1]: the rows that there are, at most T.
    pub rows: CudaView<'a, u32>,
    /// [T]
    pub positions: CudaView<'a, u32>,
    /// [T]: where in `blocks` the entry of position 0 of the row's sequence would lie, in u32 arithmetic that
    /// wraps. Entries before that of the row's first visible position need not be there.
    pub table_start: CudaView<'a, u32>,
    /// Block tables, in rising positions.
    pub blocks: CudaView<'a, u32>,
}

/// Which rows decode.
#[derive(Debug)]
pub struct DecodeRows<'a> {
    /// The most that there are.
    pub launched: usize,
    /// `None`: every row of the step, and T is `launched`.
    pub list: Option<DecodeList<'a>>,
}

#[derive(Debug)]
pub struct DecodeList<'a> {
    /// [launched], in any order.
    pub rows: CudaView<'a, u32>,
    /// [1]: how many of them are there.
    pub count: CudaView<'a, u32>,
}

/// Which rows are tiles.
#[derive(Debug)]
pub struct Tiles<'a> {
    /// The most that there are.
    pub launched: usize,
    /// [launched][4]: first row, rows (at most [`AttentionShape::tile_rows`]), 0, 0. The rows of a tile are
    /// consecutive positions of one sequence. Tiles with many keys are best put last: the last one starts first.
    pub tiles: CudaView<'a, u32>,
    /// [1]
    pub count: CudaView<'a, u32>,
}

/// cos and sin of each row's angles, the concentration in them: f32 [T, D/2] each.
#[derive(Debug)]
pub struct Rotation<'a> {
    pub cos: CudaView<'a, f32>,
    pub sin: CudaView<'a, f32>,
}

/// A layer's cache: bf16 [blocks, nk, BLOCK_TOKENS, D] each.
#[derive(Debug)]
pub struct Cache<'a> {
    pub keys: CudaView<'a, u16>,
    pub values: CudaView<'a, u16>,
}

#[derive(Debug)]
pub struct CacheMut<'a> {
    pub keys: CudaViewMut<'a, u16>,
    pub values: CudaViewMut<'a, u16>,
}

/// A layer's attention over the cache.
#[derive(Debug)]
pub struct Attend<'a> {
    /// act [T, nq, D], from `rope_store`.
    pub q: CudaView<'a, u16>,
    pub cache: Cache<'a>,
    /// bf16 [nq]
    pub sinks: CudaView<'a, u16>,
    /// Visible keys with the row's own; `None` for all.
    pub window: Option<u32>,
}

/// What the parts of decode rows leave to be combined.
#[derive(Debug)]
pub struct Partials {
    /// f32 [parts, nq, D]
    out: CudaSlice<f32>,
    /// f32 [parts, nq, 2]: m and l.
    state: CudaSlice<f32>,
}

impl Partials {
    /// `parts`: [`AttentionKernels::parts_max`], or the rows and spare blocks of the launch that has the most.
    pub fn new(card: &Card, shape: AttentionShape, parts: usize) -> Result<Self, CudaError> {
        let states = parts.max(1) * shape.q_heads();
        // SAFETY: what a launch of attend_combine reads was written by attend_split's before it.
        let (out, state) = unsafe { (card.unset(states * shape.head_dim)?, card.unset(states * 2)?) };
        Ok(Partials { out, state })
    }

    pub fn bytes(shape: AttentionShape, parts: usize) -> u64 {
        (parts.max(1) * shape.q_heads() * (shape.head_dim + 2) * size_of::<f32>()) as u64
    }

    fn parts(&self, shape: AttentionShape) -> usize {
        self.state.len() / (2 * shape.q_heads())
    }
}

#[derive(Debug)]
pub struct AttentionKernels {
    shape: AttentionShape,
    launcher: Launcher,
    multiprocessors: usize,
    rope_store: CudaFunction,
    attend_split: CudaFunction,
    attend_combine: CudaFunction,
    attend_tiles: CudaFunction,
}

impl AttentionKernels {
    pub fn new(card: &Card, shape: AttentionShape) -> Result<Self, CudaError> {
        Self::compiled(card, shape, &shape.source(), &shape.tiles_source())
    }

    /// From sources that may not be the files themselves.
    pub fn compiled(
        card: &Card,
        shape: AttentionShape,
        source: &Source,
        tiles_source: &Source,
    ) -> Result<Self, CudaError> {
        let module: Module = card.compile(source)?;
        Ok(AttentionKernels {
            shape,
            launcher: card.launcher(),
            multiprocessors: card.facts().multiprocessors as usize,
            rope_store: module.kernel("rope_store")?,
            attend_split: module.kernel("attend_split")?,
            attend_combine: module.kernel("attend_combine")?,
            attend_tiles: card.compile(tiles_source)?.kernel("attend_tiles")?,
        })
    }

    pub fn shape(&self) -> AttentionShape {
        self.shape
    }

    /// Blocks beyond one a decode row, for the rows with the most keys: enough to fill the card.
    pub fn spare(&self, window: Option<u32>) -> usize {
        let fill = (BLOCKS_PER_MULTIPROCESSOR * self.multiprocessors).div_ceil(self.shape.kv_heads);
        let alone = window.is_some_and(|window| self.shape.one_block_holds(window));
        if alone { 0 } else { fill.clamp(1, SPARE_MAX) }
    }

    /// For the [`Partials`] of launches of up to `rows_max` decode rows; all layers share them.
    pub fn parts_max(&self, rows_max: usize) -> usize {
        rows_max + self.spare(None)
    }

    /// q, k and v of T rows: q rotated and scaled into `q`, k rotated and v into the cache.
    /// qkv: f32 [T, (nq + 2 nk) D], q: act [T, nq, D]
    pub fn rope_store(
        &self,
        t: usize,
        step: &StepRows<'_>,
        rotation: &Rotation<'_>,
        qkv: &CudaView<'_, f32>,
        q: &mut CudaViewMut<'_, u16>,
        cache: &mut CacheMut<'_>,
    ) -> Result<(), CudaError> {
        self.assert_step(t, step);
        let (shape, angles) = (self.shape, t * self.shape.head_dim / 2);
        assert!(qkv.len() >= t * shape.qkv_width() && q.len() >= t * shape.q_width());
        assert!(rotation.cos.len() >= angles && rotation.sin.len() >= angles);
        assert!(
            cache.keys.len() == cache.values.len() && cache.keys.len().is_multiple_of(shape.block_values())
        );
        self.assert_aligned(&q.as_view());
        self.assert_aligned(&cache.keys.as_view());
        self.assert_aligned(&cache.values.as_view());
        let blocks = (shape.qkv_width() / 8).div_ceil(ROPE_THREADS);
        let scale = shape.q_scale();
        let mut launch = self.launcher.launch(&self.rope_store);
        launch.early();
        launch.arg(qkv).arg(&rotation.cos).arg(&rotation.sin);
        launch.arg(&step.rows).arg(&step.positions).arg(&step.table_start).arg(&step.blocks);
        launch.arg(&scale).arg(q).arg(&mut cache.keys).arg(&mut cache.values);
        // SAFETY: the arguments are the kernel's, and as long as was asserted. That *rows ≤ T and that
        // positions and blocks are of the tables and the cache is the caller's word.
        unsafe { launch.start(grid(blocks, t, 1, ROPE_THREADS)) }?;
        Ok(())
    }

    /// Attention of decode rows. out: act [T, nq D]; other rows are left as they are.
    pub fn attend_decode(
        &self,
        rows: &DecodeRows<'_>,
        step: &StepRows<'_>,
        attend: &Attend<'_>,
        partials: &mut Partials,
        out: &mut CudaViewMut<'_, u16>,
    ) -> Result<(), CudaError> {
        self.attend_decode_in(self.spare(attend.window), rows, step, attend, partials, out)
    }

    /// The same with a given number of spare blocks.
    pub fn attend_decode_in(
        &self,
        spare: usize,
        rows: &DecodeRows<'_>,
        step: &StepRows<'_>,
        attend: &Attend<'_>,
        partials: &mut Partials,
        out: &mut CudaViewMut<'_, u16>,
    ) -> Result<(), CudaError> {
        let DecodeRows { launched, list } = rows;
        let (launched, there) = (*launched, self.assert_attend(attend, out));
        match list {
            Some(list) => assert!(list.rows.len() >= launched && !list.count.is_empty()),
            None => assert!(there >= launched, "{launched} decode rows of {there}"),
        }
        self.assert_step(if list.is_some() { 1 } else { launched }, step);
        assert!(
            spare == 0 || launched + spare <= partials.parts(self.shape),
            "{launched} decode rows and {spare} spare blocks are more than the partial sums have room for"
        );

        let (no_list, window, spare_blocks) = (0u64, attend.window.unwrap_or(NO_WINDOW), spare as u32);
        let count = list.as_ref().map_or(&step.rows, |list| &list.count);
        let mut launch = self.launcher.launch(&self.attend_split);
        launch.early();
        launch.arg(&attend.q).arg(&attend.cache.keys).arg(&attend.cache.values).arg(&attend.sinks);
        match list {
            Some(list) => launch.arg(&list.rows),
            None => launch.arg(&no_list),
        };
        launch.arg(count).arg(&step.positions).arg(&step.table_start).arg(&step.blocks).arg(&window);
        launch.arg(&spare_blocks);
        launch.arg(&mut partials.out).arg(&mut partials.state).arg(&mut *out);
        // SAFETY: the arguments are the kernel's, and as long as was asserted. That the rows are of the step,
        // and their blocks of the cache, is the caller's word.
        unsafe {
            launch.start(grid(launched + spare, self.shape.kv_heads, 1, self.shape.split_warps() * 32))
        }?;
        if spare == 0 {
            return Ok(());
        }

        let mut launch = self.launcher.launch(&self.attend_combine);
        launch.early();
        launch.arg(&partials.out).arg(&partials.state).arg(&attend.sinks);
        match list {
            Some(list) => launch.arg(&list.rows),
            None => launch.arg(&no_list),
        };
        launch.arg(count).arg(&step.positions).arg(&window).arg(&spare_blocks).arg(out);
        // SAFETY: as above; what is read of the partial sums has been written by the launch above.
        unsafe { launch.start(grid(self.shape.q_heads(), launched, 1, COMBINE_THREADS)) }?;
        Ok(())
    }

    /// Attention of tiles. out: act [T, nq D]; other rows are left as they are.
    pub fn attend_tiles(
        &self,
        tiles: &Tiles<'_>,
        step: &StepRows<'_>,
        attend: &Attend<'_>,
        out: &mut CudaViewMut<'_, u16>,
    ) -> Result<(), CudaError> {
        self.assert_attend(attend, out);
        self.assert_step(1, step);
        assert!(tiles.tiles.len() >= tiles.launched * 4 && !tiles.count.is_empty());
        let window = attend.window.unwrap_or(NO_WINDOW);
        let mut launch = self.launcher.launch(&self.attend_tiles);
        launch.arg(&attend.q).arg(&attend.cache.keys).arg(&attend.cache.values).arg(&attend.sinks);
        launch.arg(&tiles.tiles).arg(&tiles.count);
        launch.arg(&step.positions).arg(&step.table_start).arg(&step.blocks).arg(&window).arg(out);
        // SAFETY: the arguments are the kernel's, and as long as was asserted. That the tiles' rows are of the
        // step, and their blocks of the cache, is the caller's word.
        unsafe { launch.start(grid(self.shape.kv_heads, tiles.launched, 1, self.shape.tile_warps() * 32)) }?;
        Ok(())
    }

    fn assert_step(&self, t: usize, step: &StepRows<'_>) {
        assert!(t > 0 && !step.rows.is_empty());
        assert!(step.positions.len() >= t && step.table_start.len() >= t, "a step of {t} rows");
        assert!(!step.blocks.is_empty());
    }

    /// The rows that q and out have.
    fn assert_attend(&self, attend: &Attend<'_>, out: &CudaViewMut<'_, u16>) -> usize {
        let Attend { q, cache, sinks, window } = attend;
        let shape = self.shape;
        assert!(
            cache.keys.len() == cache.values.len() && cache.keys.len().is_multiple_of(shape.block_values())
        );
        assert!(q.len().is_multiple_of(shape.q_width()) && out.len() >= q.len());
        assert!(
            sinks.len() == shape.q_heads() && window.is_none_or(|window| (1..NO_WINDOW).contains(&window))
        );
        self.assert_aligned(q);
        self.assert_aligned(&cache.keys);
        self.assert_aligned(&cache.values);
        self.assert_aligned(&out.as_view());
        q.len() / shape.q_width()
    }

    fn assert_aligned(&self, view: &CudaView<'_, u16>) {
        assert!(
            view.device_ptr(&self.launcher).0.is_multiple_of(16),
            "16 bytes are read or written at a time"
        );
    }
}

fn grid(x: usize, y: usize, z: usize, threads: usize) -> LaunchConfig {
    assert!(x > 0 && (1..=65535).contains(&y) && (1..=65535).contains(&z), "a grid of {x} × {y} × {z}");
    LaunchConfig {
        grid_dim: (x as u32, y as u32, z as u32),
        block_dim: (threads as u32, 1, 1),
        shared_mem_bytes: 0,
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
