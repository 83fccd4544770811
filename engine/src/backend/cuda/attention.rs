//! Launches `attention.cu` and `attention_tiles.cu`: rotation and storing, and attention over the paged
//! cache with sinks. A step's rows are given as decode rows, which read their keys alone, or as tiles of
//! consecutive rows of one sequence, which share them; a step may have both.
//!
//! What a step's rows are lies in the card's memory, so that a captured launch can be replayed for others:
//! launches depend only on their number. That what lies there fits the buffers is the caller's word; the
//! lengths of the buffers are asserted here.

mod shape;
mod views;

pub use shape::AttentionShape;
pub use views::{Attend, Cache, CacheMut, DecodeList, DecodeRows, Partials, Rotation, StepRows, Tiles};

use crate::cuda::{Card, CudaError, Launcher, Module, Source};
use cudarc::driver::{CudaFunction, CudaView, CudaViewMut, DevicePtr, LaunchConfig};

/// Threads of a block of `rope_store` and of `attend_combine`.
const ROPE_THREADS: usize = 128;
const COMBINE_THREADS: usize = 128;
/// More would leave `attend_combine` more to read than they save.
const SPARE_MAX: usize = 128;
/// Blocks of `attend_split` that one multiprocessor holds.
const BLOCKS_PER_MULTIPROCESSOR: usize = 2;
/// In place of the window's width where every key is visible.
const NO_WINDOW: u32 = u32::MAX;

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
