//! Launches `experts_few.cu`, `experts_many.cu` and `experts_wgmma.cu`: the rank's part of the chosen experts, and their sum.
//! Letters as in [`crate::model`]; I is the rank's own part of the intermediate width.

mod tall;

use super::route::{Prompts, RouteShape, Routes};
use crate::cuda::{Card, CudaError, Launcher, Source};
use cudarc::driver::sys::CUfunction_attribute;
use cudarc::driver::{CudaFunction, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, LaunchConfig};
use tall::TALL;

/// As in the first two files.
const THREADS: u32 = 128;
const MANY_ROW_TILE: usize = 128;
const MANY_SHARED_BYTES: usize = 3 * (MANY_ROW_TILE * 48 + 64 * 128);
/// A lane of `experts_few.cu` keeps all scales of its rows.
const COLUMNS_MAX: usize = 8192;
/// Columns of a block of experts_many.cu.
const MANY_COLUMNS: usize = 64;
const COMBINE_THREADS: u32 = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    pub intermediate: usize,
    pub route: RouteShape,
}

impl ExpertShape {
    fn check(&self) {
        let (hidden, intermediate) = (self.route.hidden, self.intermediate);
        assert!(intermediate > 0 && intermediate.is_multiple_of(32), "I = {intermediate}");
        assert!(hidden.max(intermediate) <= COLUMNS_MAX, "{self:?} is too wide");
    }
}

/// For how many routes an item is made; each is a program of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    Few8,
    Few16,
    Few32,
    /// As `Many`, on cards that have warpgroup products.
    Wgmma,
    Many,
}

impl Way {
    pub const ALL: [Way; 5] = [Way::Few8, Way::Few16, Way::Few32, Way::Wgmma, Way::Many];

    /// For the items that [`RouteShape::item_routes`] makes for T rows.
    pub fn of(t: usize, prompts: Prompts) -> Way {
        match (RouteShape::item_routes(t), prompts) {
            (8, _) => Way::Few8,
            (16, _) => Way::Few16,
            (32, _) => Way::Few32,
            (_, Prompts::Wgmma) => Way::Wgmma,
            (_, Prompts::Mma) => Way::Many,
        }
    }

    /// Rows of a tile of `experts_few.cu`, and blocks that a multiprocessor holds at a time.
    fn few_tile(self) -> (usize, usize) {
        match self {
            Way::Few16 => (32, 3),
            Way::Few32 => (16, 4),
            _ => (32, 4),
        }
    }

    /// All that launches for up to `rows_max` rows need.
    pub fn up_to(rows_max: usize, prompts: Prompts) -> Vec<Way> {
        let largest = Way::of(rows_max, prompts);
        Way::ALL.into_iter().filter(|way| *way == largest || *way < largest.min(Way::Wgmma)).collect()
    }

    fn is_for(self, t: usize) -> bool {
        [Prompts::Wgmma, Prompts::Mma].into_iter().any(|prompts| Way::of(t, prompts) == self)
    }

    fn kernels(self) -> &'static str {
        match self {
            Way::Few8 | Way::Few16 | Way::Few32 => "few",
            Way::Wgmma => "wgmma",
            Way::Many => "many",
        }
    }
}

pub fn source(shape: &ExpertShape, way: Way) -> Source {
    const FEW: &str = concat!(include_str!("experts.cu"), "\n", include_str!("experts_few.cu"));
    const MANY: &str = concat!(include_str!("experts.cu"), "\n", include_str!("experts_many.cu"));
    const WGMMA: &str = concat!(include_str!("experts.cu"), "\n", include_str!("experts_wgmma.cu"));
    let mut defines = vec![
        ("HIDDEN", shape.route.hidden as i64),
        ("INTERMEDIATE", shape.intermediate as i64),
        ("PER_TOKEN", shape.route.per_token as i64),
        ("EXPERT_FIRST", shape.route.own.start as i64),
        ("EXPERT_END", shape.route.own.end as i64),
    ];
    let (name, text, n_tiles) = match way {
        Way::Few8 => ("experts_few.cu", FEW, 1),
        Way::Few16 => ("experts_few.cu", FEW, 2),
        Way::Few32 => ("experts_few.cu", FEW, 4),
        Way::Many => return Source { name: "experts_many.cu", text: MANY, defines },
        Way::Wgmma => {
            defines.extend(TALL.defines());
            return Source { name: "experts_wgmma.cu", text: WGMMA, defines };
        }
    };
    defines.push(("N_TILES_MAX", n_tiles));
    Source { name, text, defines }
}

/// One tensor of all the rank's experts, as the checkpoint has it: blocks u8 [E, rows, K/32, 16] from an address
/// that is a multiple of 16, scales u8 [E, rows, K/32] likewise, bias bf16 [E, rows].
#[derive(Debug)]
pub struct Product<'a> {
    pub blocks: CudaView<'a, u8>,
    pub scales: CudaView<'a, u8>,
    pub bias: Option<CudaView<'a, u16>>,
}

impl Product<'_> {
    fn check(&self, (experts, rows, columns): (usize, usize, usize), stream: &CudaStream) {
        let count = experts * rows * (columns / 32);
        assert_eq!(self.blocks.len(), count * 16, "blocks of [{experts}, {rows}, {columns}]");
        assert_eq!(self.scales.len(), count, "scales of [{experts}, {rows}, {columns}]");
        assert!(self.bias.as_ref().is_none_or(|bias| bias.len() == experts * rows));
        let aligned = |view: &CudaView<'_, u8>| view.device_ptr(stream).0.is_multiple_of(16);
        assert!(aligned(&self.blocks) && aligned(&self.scales), "weights are copied 16 bytes at a time");
    }
}

/// A layer's. gate_up: [E, 2I, H], gate at 2j and up at 2j + 1, with its bias; down: [E, H, I], with its bias on the
/// one rank that adds it.
#[derive(Debug)]
pub struct ExpertWeights<'a> {
    pub gate_up: Product<'a>,
    pub down: Product<'a>,
}

/// Between the products; taken once.
#[derive(Debug)]
pub struct ExpertBuffers {
    /// f16 [T·K, I], by (expert, row), in the order that the way of the step reads: eight by eight 0 4 1 5 2 6 3 7, or the
    /// pairs of experts_wgmma.cu.
    act: CudaSlice<u16>,
    /// f32 [T·K, H], by route.
    slots: CudaSlice<f32>,
}

impl ExpertBuffers {
    /// Device memory that [`ExpertBuffers::new`] takes.
    pub fn bytes(shape: &ExpertShape, rows_max: usize) -> usize {
        rows_max * shape.route.per_token * (shape.intermediate * 2 + shape.route.hidden * 4)
    }

    pub fn new(card: &Card, shape: &ExpertShape, rows_max: usize) -> Result<Self, CudaError> {
        let routes = rows_max * shape.route.per_token;
        // Kernels count elements of `act` in 32 bits.
        assert!(routes * shape.intermediate <= i32::MAX as usize);
        // SAFETY: kernels read what kernels before them in the stream have written, and nothing else.
        let (act, slots) =
            unsafe { (card.unset(routes * shape.intermediate)?, card.unset(routes * shape.route.hidden)?) };
        Ok(ExpertBuffers { act, slots })
    }
}

/// One of the two products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    GateUp,
    Down,
}

/// The two products for one [`Way`].
#[derive(Debug)]
struct Pair {
    gate_up: CudaFunction,
    down: CudaFunction,
}

/// The kernels for one shape.
#[derive(Debug)]
pub struct ExpertKernels {
    launcher: Launcher,
    multiprocessors: usize,
    shape: ExpertShape,
    limit: f32,
    pairs: Vec<(Way, Pair)>,
    combine: CudaFunction,
}

impl ExpertKernels {
    /// `limit` is the model's clamp.
    pub fn new(card: &Card, shape: &ExpertShape, limit: f32, rows_max: usize) -> Result<Self, CudaError> {
        let ways = Way::up_to(rows_max, Prompts::on(card));
        let sources: Vec<_> = ways.into_iter().map(|way| (way, source(shape, way))).collect();
        Self::compiled(card, &sources, shape, limit)
    }

    /// From sources for this shape, which may not be the files themselves.
    pub fn compiled(
        card: &Card,
        sources: &[(Way, Source)],
        shape: &ExpertShape,
        limit: f32,
    ) -> Result<Self, CudaError> {
        shape.check();
        let (mut pairs, mut combine) = (Vec::new(), None);
        for (way, source) in sources {
            let module = card.compile(source)?;
            let gate_up = module.kernel(&format!("gate_up_{}", way.kernels()))?;
            let down = module.kernel(&format!("down_{}", way.kernels()))?;
            if *way == Way::Wgmma {
                allow_shared(&gate_up, TALL.shared_bytes(shape.route.hidden))?;
                allow_shared(&down, TALL.shared_bytes(shape.intermediate))?;
            }
            pairs.push((*way, Pair { gate_up, down }));
            combine = Some(module.kernel("combine")?);
        }
        let combine = combine.expect("kernels for no rows at all");
        Ok(ExpertKernels {
            launcher: card.launcher(),
            multiprocessors: card.facts().multiprocessors as usize,
            shape: shape.clone(),
            limit,
            pairs,
            combine,
        })
    }

    fn pair(&self, t: usize) -> &(Way, Pair) {
        let pair = self.pairs.iter().find(|(way, _)| way.is_for(t));
        pair.unwrap_or_else(|| panic!("not compiled for {t} rows"))
    }

    /// y = Σ w (W_d swiglu(W_gu h + b_gu) + b_d) over the rank's own experts of the first *rows of T rows, which
    /// `routes` and `chosen` were made for, with the same T. y: f32 [T, H].
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        t: usize,
        rows: &CudaView<'_, u32>,
        routes: &Routes,
        chosen: &CudaView<'_, u16>,
        weights: &ExpertWeights<'_>,
        buffers: &mut ExpertBuffers,
        y: &mut CudaViewMut<'_, f32>,
    ) -> Result<(), CudaError> {
        self.check(t, routes, chosen, weights, buffers);
        assert!(!rows.is_empty() && y.len() >= t * self.shape.route.hidden);
        assert!(y.device_ptr(&self.launcher).0.is_multiple_of(16), "y is written 16 bytes at a time");
        self.gate_up(t, routes, &weights.gate_up, buffers)?;
        self.down(t, routes, &weights.down, buffers)?;

        let hidden = self.shape.route.hidden as u32;
        let mut launch = self.launcher.launch(&self.combine);
        launch.early();
        launch.arg(&buffers.slots).arg(chosen).arg(rows).arg(y);
        let config = LaunchConfig {
            grid_dim: (hidden.div_ceil(4 * COMBINE_THREADS), t as u32, 1),
            block_dim: (COMBINE_THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments are those of the kernel; T rows fit into all of them by the assertions.
        unsafe { launch.start(config) }?;
        Ok(())
    }

    /// One launch of [`ExpertKernels::run`], for those who measure. `Down` reads what `GateUp` has left.
    pub fn run_part(
        &self,
        part: Part,
        t: usize,
        routes: &Routes,
        chosen: &CudaView<'_, u16>,
        weights: &ExpertWeights<'_>,
        buffers: &mut ExpertBuffers,
    ) -> Result<(), CudaError> {
        self.check(t, routes, chosen, weights, buffers);
        match part {
            Part::GateUp => self.gate_up(t, routes, &weights.gate_up, buffers),
            Part::Down => self.down(t, routes, &weights.down, buffers),
        }
    }

    fn check(
        &self,
        t: usize,
        routes: &Routes,
        chosen: &CudaView<'_, u16>,
        weights: &ExpertWeights<'_>,
        buffers: &ExpertBuffers,
    ) {
        let ExpertShape { intermediate, route: RouteShape { hidden, per_token, ref own, .. } } = self.shape;
        assert_eq!(&self.shape.route, routes.shape());
        assert!(t > 0 && t <= routes.rows_max() && chosen.len() >= t * per_token);
        assert!(buffers.act.len() >= t * per_token * intermediate);
        assert!(buffers.slots.len() >= t * per_token * hidden);
        weights.gate_up.check((own.len(), 2 * intermediate, hidden), &self.launcher);
        weights.down.check((own.len(), hidden, intermediate), &self.launcher);
        assert!(weights.gate_up.bias.is_some(), "every rank has the bias of its rows of gate_up");
    }

    fn gate_up(
        &self,
        t: usize,
        routes: &Routes,
        weights: &Product<'_>,
        buffers: &mut ExpertBuffers,
    ) -> Result<(), CudaError> {
        let Product { blocks, scales, bias } = weights;
        let (way, pair) = self.pair(t);
        let mut launch = self.launcher.launch(&pair.gate_up);
        if *way < Way::Wgmma {
            launch.early();
        }
        launch.arg(blocks).arg(scales).arg(bias.as_ref().expect("checked"));
        launch.arg(&routes.arranged).arg(&routes.sorted).arg(&routes.items).arg(&routes.item_count);
        launch.arg(&self.limit).arg(&mut buffers.act);
        let config = self.grid(t, 2 * self.shape.intermediate, self.shape.route.hidden);
        // SAFETY: the arguments are those of the kernel, their lengths those that `check` has asserted, and
        // routes and items such as route.cu has made them.
        unsafe { launch.start(config) }?;
        Ok(())
    }

    fn down(
        &self,
        t: usize,
        routes: &Routes,
        weights: &Product<'_>,
        buffers: &mut ExpertBuffers,
    ) -> Result<(), CudaError> {
        let Product { blocks, scales, bias } = weights;
        let (way, pair) = self.pair(t);
        let mut launch = self.launcher.launch(&pair.down);
        if *way < Way::Wgmma {
            launch.early();
        }
        launch.arg(blocks).arg(scales);
        match bias {
            Some(bias) => launch.arg(bias),
            None => launch.arg(&0u64), // the null pointer
        };
        launch.arg(&buffers.act).arg(&routes.sorted).arg(&routes.items).arg(&routes.item_count);
        launch.arg(&routes.weights).arg(&mut buffers.slots);
        let config = self.grid(t, self.shape.route.hidden, self.shape.intermediate);
        // SAFETY: as in `gate_up`.
        unsafe { launch.start(config) }?;
        Ok(())
    }

    fn grid(&self, t: usize, rows: usize, columns: usize) -> LaunchConfig {
        let (way, items) = (self.pair(t).0, self.shape.route.items_max(t));
        let tiles = |rows_of_tile: usize, parts: usize| {
            (rows.div_ceil(rows_of_tile) as u32, items as u32, parts as u32)
        };
        let (grid_dim, threads, shared) = match way {
            Way::Many => {
                let parts = RouteShape::item_routes(t).div_ceil(MANY_COLUMNS);
                (tiles(MANY_ROW_TILE, parts), THREADS, MANY_SHARED_BYTES)
            }
            Way::Wgmma => (tiles(TALL.row_tile(), 1), TALL.threads(), TALL.shared_bytes(columns)),
            way => {
                let (tile, blocks) = way.few_tile();
                (((items * (rows / tile)).min(blocks * self.multiprocessors) as u32, 1, 1), THREADS, 0)
            }
        };
        LaunchConfig { grid_dim, block_dim: (threads, 1, 1), shared_mem_bytes: shared as u32 }
    }
}

/// More shared memory than a block has unasked.
fn allow_shared(kernel: &CudaFunction, bytes: usize) -> Result<(), CudaError> {
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel
        .set_attribute(attribute, bytes as i32)
        .map_err(CudaError::doing(format!("give a block {bytes} bytes")))
}
