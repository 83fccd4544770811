//! Launches `route.cu`: which experts a row takes, and the rows of each expert behind each other.
//! Letters as in [`crate::model`]; T is the launch's rows, of which those at and past `*rows` have no routes.

use crate::cuda::{Card, CudaError, Launcher, Source, Trial};
use cudarc::driver::{CudaFunction, CudaSlice, CudaView, CudaViewMut, DevicePtr, LaunchConfig};
use std::ops::Range;

/// As in route.cu: the threads of a block of the router, what it covers of (experts, rows), its shared memory.
const LOGITS_FEW: (u32, (usize, usize), u32) = (64, (4, 1), 4 * (4 * (960 * 2 + 32) + 960 * 4));
const LOGITS_MANY: (u32, (usize, usize), u32) = (128, (32, 8), 3 * (32 * (128 * 2 + 32) + 8 * 128 * 4));
/// Rows of a block that chooses.
const CHOOSE_ROWS: usize = 4;
/// Rows up to which one block chooses and sorts.
const ONE_BLOCK_ROWS: usize = 32;
/// Rows up to which the router is a matter of latency. On an H200 the blocks for many rows, 8 of them at 32 rows, took
/// four times as long there as those for few took at 8; so many as 64 is a guess, not measured.
const FEW_ROWS: usize = 64;
const SORT_WARPS_MAX: usize = 16;

/// By what the experts of many rows are multiplied, which is said here because it decides how activations lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompts {
    /// Products of a warp.
    Mma,
    /// Products of a warpgroup, which only compute capability 9.0 has.
    Wgmma,
}

impl Prompts {
    pub fn on(card: &Card) -> Prompts {
        let is_wanted = Prompts::can(card) && Trial::Warpgroups.is_wanted();
        if is_wanted { Prompts::Wgmma } else { Prompts::Mma }
    }

    /// Whether the card has warpgroup products.
    pub fn can(card: &Card) -> bool {
        card.facts().capability == (9, 0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteShape {
    pub hidden: usize,
    pub experts: usize,
    pub per_token: usize,
    /// The experts that the rank has a part of: a range that is not empty.
    pub own: Range<usize>,
}

impl RouteShape {
    fn check(&self) {
        let RouteShape { hidden, experts, per_token, own } = self;
        assert!(*hidden > 0 && hidden.is_multiple_of(32), "H = {hidden} is not a multiple of 32");
        assert!(*experts <= 256 && (1..=8).contains(per_token) && per_token <= experts);
        assert!(!own.is_empty() && own.end <= *experts, "{own:?} of {experts} experts");
    }

    /// Routes that one item covers at most, in a launch for T rows. A row takes an expert once, so up to 128 rows
    /// each expert is one item and its weights are read once.
    pub fn item_routes(t: usize) -> usize {
        match t {
            0..=8 => 8,
            9..=16 => 16,
            17..=32 => 32,
            33..=64 => 64,
            _ => 128,
        }
    }

    /// Items that T rows can have at most: what a launch's grid must be ready for.
    pub fn items_max(&self, t: usize) -> usize {
        let (routes, tile) = (t * self.per_token, Self::item_routes(t));
        let split = if t <= tile { 0 } else { routes / tile };
        routes.min(self.own.len()) + split
    }
}

pub fn source(shape: &RouteShape) -> Source {
    let defines = vec![
        ("HIDDEN", shape.hidden as i64),
        ("EXPERT_COUNT", shape.experts as i64),
        ("PER_TOKEN", shape.per_token as i64),
        ("EXPERT_FIRST", shape.own.start as i64),
        ("EXPERT_END", shape.own.end as i64),
    ];
    Source { name: "route.cu", text: include_str!("route.cu"), defines }
}

/// What routing makes of a step's rows; its memory is taken once.
#[derive(Debug)]
pub struct Routes {
    shape: RouteShape,
    rows_max: usize,
    /// f32 [T, E]
    logits: CudaSlice<f32>,
    /// f16 [T, H]: h in the order of the expert kernels.
    pub(super) arranged: CudaSlice<u16>,
    /// f32 [T, K]: softmax over the row's experts.
    pub(super) weights: CudaSlice<f32>,
    /// u32 [T·K]: routes t · K + k of the rank's own experts, by (expert, row).
    pub(super) sorted: CudaSlice<u32>,
    /// u32 [items][4]: {own expert, first of `sorted`, count, 0}, and how many there are.
    pub(super) items: CudaSlice<u32>,
    pub(super) item_count: CudaSlice<u32>,
}

impl Routes {
    /// Items of any number of rows up to `rows_max`: more rows may have fewer, as tiles grow.
    fn items(shape: &RouteShape, rows_max: usize) -> usize {
        [8, 16, 32, 64, rows_max].iter().map(|t| shape.items_max(rows_max.min(*t))).max().unwrap_or(0)
    }

    /// Device memory that [`Routes::new`] takes.
    pub fn bytes(shape: &RouteShape, rows_max: usize) -> usize {
        let row = shape.experts * 4 + shape.hidden * 2 + shape.per_token * 8;
        rows_max * row + Self::items(shape, rows_max) * 16 + 4
    }

    pub fn new(card: &Card, shape: &RouteShape, rows_max: usize) -> Result<Self, CudaError> {
        shape.check();
        assert!(rows_max > 0 && rows_max * shape.per_token * shape.hidden <= i32::MAX as usize);
        // SAFETY: kernels read what kernels before them in the stream have written, and nothing else.
        unsafe {
            Ok(Routes {
                rows_max,
                logits: card.unset(rows_max * shape.experts)?,
                arranged: card.unset(rows_max * shape.hidden)?,
                weights: card.unset(rows_max * shape.per_token)?,
                sorted: card.unset(rows_max * shape.per_token)?,
                items: card.unset(Self::items(shape, rows_max) * 4)?,
                item_count: card.unset(1)?,
                shape: shape.clone(),
            })
        }
    }

    pub fn shape(&self) -> &RouteShape {
        &self.shape
    }

    pub fn rows_max(&self) -> usize {
        self.rows_max
    }

    /// f32 [T, E]
    pub fn logits(&self) -> &CudaSlice<f32> {
        &self.logits
    }

    /// f32 [T, K]
    pub fn weights(&self) -> &CudaSlice<f32> {
        &self.weights
    }

    /// f16 [T, H], eight by eight in the order 0 4 1 5 2 6 3 7; for warpgroups, of 32 first the pairs (0, 4) of each
    /// eight, then (1, 5), (2, 6), (3, 7).
    pub fn arranged(&self) -> &CudaSlice<u16> {
        &self.arranged
    }

    /// (sorted, items, item_count)
    pub fn by_expert(&self) -> (&CudaSlice<u32>, &CudaSlice<u32>, &CudaSlice<u32>) {
        (&self.sorted, &self.items, &self.item_count)
    }
}

/// The kernels for one shape.
#[derive(Debug)]
pub struct RouteKernels {
    launcher: Launcher,
    shape: RouteShape,
    prompts: Prompts,
    router_logits_few: CudaFunction,
    router_logits_many: CudaFunction,
    choose: CudaFunction,
    sort_by_expert: CudaFunction,
    choose_and_sort: CudaFunction,
}

impl RouteKernels {
    pub fn new(card: &Card, shape: &RouteShape) -> Result<Self, CudaError> {
        Self::compiled(card, &source(shape), shape)
    }

    /// From a source for this shape, which may not be the file itself.
    pub fn compiled(card: &Card, source: &Source, shape: &RouteShape) -> Result<Self, CudaError> {
        shape.check();
        let module = card.compile(source)?;
        Ok(RouteKernels {
            launcher: card.launcher(),
            shape: shape.clone(),
            prompts: Prompts::on(card),
            router_logits_few: module.kernel("router_logits_few")?,
            router_logits_many: module.kernel("router_logits_many")?,
            choose: module.kernel("choose")?,
            sort_by_expert: module.kernel("sort_by_expert")?,
            choose_and_sort: module.kernel("choose_and_sort")?,
        })
    }

    /// For experts that are multiplied in another way than the card's own, as tests do.
    pub fn with_prompts(self, prompts: Prompts) -> Self {
        RouteKernels { prompts, ..self }
    }

    /// The experts of the first *rows of T rows, and all that the expert kernels need to know of them.
    /// h: f32 [T, H], weight: bf16 [E, H], bias: bf16 [E], chosen: u16 [T, K].
    #[allow(clippy::too_many_arguments)]
    pub fn route(
        &self,
        t: usize,
        rows: &CudaView<'_, u32>,
        h: &CudaView<'_, f32>,
        weight: &CudaView<'_, u16>,
        bias: &CudaView<'_, u16>,
        chosen: &mut CudaViewMut<'_, u16>,
        routes: &mut Routes,
    ) -> Result<(), CudaError> {
        self.logits(t, rows, h, weight, bias, routes)?;
        self.choose_and_sort(t, rows, chosen, routes)
    }

    /// Logits and arranged h.
    pub fn logits(
        &self,
        t: usize,
        rows: &CudaView<'_, u32>,
        h: &CudaView<'_, f32>,
        weight: &CudaView<'_, u16>,
        bias: &CudaView<'_, u16>,
        routes: &mut Routes,
    ) -> Result<(), CudaError> {
        let RouteShape { hidden, experts, .. } = self.shape;
        assert_eq!(self.shape, routes.shape);
        assert!(t > 0 && t <= routes.rows_max && !rows.is_empty() && h.len() >= t * hidden);
        assert!(weight.len() == experts * hidden && bias.len() == experts);
        let aligned = h.device_ptr(&self.launcher).0 | weight.device_ptr(&self.launcher).0;
        assert!(aligned.is_multiple_of(16), "h and W are copied 16 bytes at a time");
        let (kernel, (threads, (tile_experts, tile_rows), shared_mem_bytes)) = match t {
            0..=FEW_ROWS => (&self.router_logits_few, LOGITS_FEW),
            _ => (&self.router_logits_many, LOGITS_MANY),
        };
        // The last column of blocks arranges h.
        let grid = (experts.div_ceil(tile_experts) as u32 + 1, t.div_ceil(tile_rows) as u32, 1);
        let mut launch = self.launcher.launch(kernel);
        let pairs = u32::from(self.prompts == Prompts::Wgmma && t > ONE_BLOCK_ROWS);
        launch.early();
        launch.arg(h).arg(weight).arg(bias).arg(rows).arg(&pairs);
        launch.arg(&mut routes.logits).arg(&mut routes.arranged);
        let config = LaunchConfig { grid_dim: grid, block_dim: (threads, 1, 1), shared_mem_bytes };
        // SAFETY: the arguments are those of the kernel; rows are below T, and T rows fit by the assertions.
        unsafe { launch.start(config) }?;
        Ok(())
    }

    /// From the logits: one launch for few rows, two for many.
    pub fn choose_and_sort(
        &self,
        t: usize,
        rows: &CudaView<'_, u32>,
        chosen: &mut CudaViewMut<'_, u16>,
        routes: &mut Routes,
    ) -> Result<(), CudaError> {
        assert_eq!(self.shape, routes.shape);
        assert!(t > 0 && t <= routes.rows_max && !rows.is_empty());
        assert!(chosen.len() >= t * self.shape.per_token);
        let item_routes = RouteShape::item_routes(t) as u32;
        let warps = if t <= ONE_BLOCK_ROWS { t } else { t * self.shape.per_token / 32 };
        let one_block = blocks(1, warps.clamp(1, SORT_WARPS_MAX) * 32);
        let Routes { logits, weights, sorted, items, item_count, .. } = routes;
        // Rows are below T, of which T·K routes and `items_max` items fit into `Routes`, and K choices a row into
        // `chosen`.
        if t <= ONE_BLOCK_ROWS {
            let mut launch = self.launcher.launch(&self.choose_and_sort);
            launch.early();
            launch.arg(&*logits).arg(rows).arg(&item_routes).arg(chosen).arg(weights);
            launch.arg(sorted).arg(items).arg(item_count);
            // SAFETY: the arguments are those of the kernel, and large enough for T rows.
            unsafe { launch.start(one_block) }?;
            return Ok(());
        }
        let mut launch = self.launcher.launch(&self.choose);
        launch.arg(&*logits).arg(rows).arg(&mut *chosen).arg(weights);
        // SAFETY: the arguments are those of the kernel, and large enough for T rows.
        unsafe { launch.start(blocks(t.div_ceil(CHOOSE_ROWS), CHOOSE_ROWS * 32)) }?;
        let chosen = chosen.as_view();
        let mut launch = self.launcher.launch(&self.sort_by_expert);
        launch.arg(&chosen).arg(rows).arg(&item_routes).arg(sorted).arg(items).arg(item_count);
        // SAFETY: the arguments are those of the kernel, and large enough for T rows.
        unsafe { launch.start(one_block) }?;
        Ok(())
    }
}

fn blocks(count: usize, threads: usize) -> LaunchConfig {
    LaunchConfig { grid_dim: (count as u32, 1, 1), block_dim: (threads as u32, 1, 1), shared_mem_bytes: 0 }
}
