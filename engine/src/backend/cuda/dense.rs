//! Products with bf16 weights: of few rows and of many by the kernels of `dense.cu`, of many by cuBLASLt where it
//! is there.

mod library;

use crate::cuda::{Card, CudaError, Launcher, Source};
use cudarc::driver::{CudaFunction, CudaStream, CudaView, CudaViewMut, DevicePtr, LaunchConfig};
use library::LibraryProducts;

/// One program for all shapes.
pub fn source() -> Source {
    Source { name: "dense.cu", text: include_str!("dense.cu"), defines: vec![] }
}

/// How a product is made: the kernels of dense.cu, each with what a block of it covers, and cuBLASLt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// At most 8 tokens (16), 16 rows of W a block (8).
    Few8x16,
    Few8x8,
    Few16x16,
    Few16x8,
    /// Tiles of 128 tokens by 128 rows of W.
    ManyLarge,
    /// Tiles of 64 tokens by 32 rows of W.
    ManyMiddle,
    /// NVIDIA's library, where it is there, for whatever `product_few` does not take.
    CublasLt,
}

/// Tokens that `product_few` can take.
const FEW_TOKENS: usize = 16;

impl Way {
    /// Those that are kernels of ours.
    pub const KERNELS: [Way; 6] =
        [Way::Few8x16, Way::Few8x8, Way::Few16x16, Way::Few16x8, Way::ManyLarge, Way::ManyMiddle];

    /// The kernel for T tokens and M rows of W, on a card of so many multiprocessors. Not measured: rows of W are cut
    /// finer, and tiles are made smaller, where the coarse cut leaves multiprocessors idle (half of them).
    pub fn choose(t: usize, m: usize, multiprocessors: usize) -> Way {
        let coarse = m.div_ceil(16) >= multiprocessors;
        match t {
            0..=8 if coarse => Way::Few8x16,
            0..=8 => Way::Few8x8,
            9..=FEW_TOKENS if coarse => Way::Few16x16,
            9..=FEW_TOKENS => Way::Few16x8,
            17..=64 => Way::ManyMiddle,
            _ if t.div_ceil(128) * m.div_ceil(128) * 2 < multiprocessors => Way::ManyMiddle,
            _ => Way::ManyLarge,
        }
    }

    /// None if it is not ours.
    fn kernel(self) -> Option<&'static str> {
        match self {
            Way::Few8x16 => Some("product_few_8x16"),
            Way::Few8x8 => Some("product_few_8x8"),
            Way::Few16x16 => Some("product_few_16x16"),
            Way::Few16x8 => Some("product_few_16x8"),
            Way::ManyLarge => Some("product_many_large"),
            Way::ManyMiddle => Some("product_many_middle"),
            Way::CublasLt => None,
        }
    }

    /// The most tokens it can take.
    pub fn tokens_max(self) -> usize {
        match self {
            Way::Few8x16 | Way::Few8x8 => 8,
            Way::Few16x16 | Way::Few16x8 => FEW_TOKENS,
            Way::ManyLarge | Way::ManyMiddle | Way::CublasLt => usize::MAX,
        }
    }

    fn launch(self, t: usize, m: usize) -> LaunchConfig {
        let (grid, threads) = match self {
            Way::Few8x16 | Way::Few16x16 => ((m.div_ceil(16), 1), 256),
            Way::Few8x8 | Way::Few16x8 => ((m.div_ceil(8), 1), 256),
            Way::ManyLarge => ((t.div_ceil(128), m.div_ceil(128)), 256),
            Way::ManyMiddle => ((t.div_ceil(64), m.div_ceil(32)), 128),
            Way::CublasLt => unreachable!("it is not ours to launch"),
        };
        assert!(grid.1 <= 65535, "M = {m} is more than a grid is high");
        LaunchConfig {
            grid_dim: (grid.0 as u32, grid.1 as u32, 1),
            block_dim: (threads, 1, 1),
            shared_mem_bytes: 0,
        }
    }
}

/// W and its bias. weights: bf16 [M, K], bias: bf16 [M].
#[derive(Debug)]
pub struct Linear<'a> {
    weights: CudaView<'a, u16>,
    bias: Option<CudaView<'a, u16>>,
    rows: usize,
    columns: usize,
}

impl<'a> Linear<'a> {
    pub fn new(
        weights: CudaView<'a, u16>,
        bias: Option<CudaView<'a, u16>>,
        rows: usize,
        columns: usize,
    ) -> Linear<'a> {
        assert!(rows > 0 && columns > 0 && columns.is_multiple_of(8), "W is [{rows}, {columns}]");
        assert!(rows <= u32::MAX as usize - 128 && columns <= u32::MAX as usize / 2);
        assert_eq!(weights.len(), rows * columns);
        assert!(bias.as_ref().is_none_or(|bias| bias.len() == rows));
        Linear { weights, bias, rows, columns }
    }
}

pub struct DenseKernels {
    launcher: Launcher,
    multiprocessors: usize,
    /// In the order of [`Way::KERNELS`].
    kernels: Vec<CudaFunction>,
    library: Option<LibraryProducts>,
}

impl DenseKernels {
    pub fn new(card: &Card) -> Result<Self, CudaError> {
        Self::compiled(card, &source())
    }

    /// From a source that may not be the file itself.
    pub fn compiled(card: &Card, source: &Source) -> Result<Self, CudaError> {
        let module = card.compile(source)?;
        let names = Way::KERNELS.iter().filter_map(|way| way.kernel());
        Ok(DenseKernels {
            launcher: card.launcher(),
            multiprocessors: card.facts().multiprocessors as usize,
            kernels: names.map(|name| module.kernel(name)).collect::<Result<_, _>>()?,
            library: LibraryProducts::open(card, module.kernel("widen_bias")?),
        })
    }

    /// The way for T tokens and M rows of W. On an H200 (2026-11-28, engine/benches/cuda) cuBLASLt takes half of the
    /// time of our kernels at T = 64, and a third to a half from T = 512; up to T = 16 neither is always faster.
    pub fn choose(&self, t: usize, m: usize) -> Way {
        match &self.library {
            Some(library) if t > FEW_TOKENS && library.is_free() => Way::CublasLt,
            _ => Way::choose(t, m, self.multiprocessors),
        }
    }

    /// Whether cuBLASLt can be used at all.
    pub fn has_library(&self) -> bool {
        self.library.is_some()
    }

    /// Whether a step of T tokens may load code when it is first carried out, which it must not while it is recorded. The
    /// same on every rank, also on those without the library: NCCL wants all ranks to record a step, or none.
    pub fn loads_late(t: usize) -> bool {
        t > FEW_TOKENS
    }

    /// y = x Wᵀ + bias for the first *rows of T tokens; rows of y after them may be written, too. x: act [≥ T, K],
    /// y: f32 [≥ T, M].
    pub fn product(
        &mut self,
        t: usize,
        rows: &CudaView<'_, u32>,
        x: &CudaView<'_, u16>,
        linear: &Linear<'_>,
        y: &mut CudaViewMut<'_, f32>,
    ) -> Result<(), CudaError> {
        let way = self.choose(t, linear.rows);
        if way == Way::CublasLt && self.by_library(t, x, linear, y)? {
            return Ok(());
        }
        self.by_kernel(Way::choose(t, linear.rows, self.multiprocessors), t, rows, x, linear, y)
    }

    /// The same by a given way.
    pub fn product_by(
        &mut self,
        way: Way,
        t: usize,
        rows: &CudaView<'_, u32>,
        x: &CudaView<'_, u16>,
        linear: &Linear<'_>,
        y: &mut CudaViewMut<'_, f32>,
    ) -> Result<(), CudaError> {
        if way != Way::CublasLt {
            return self.by_kernel(way, t, rows, x, linear, y);
        }
        let reason = || format!("it has no way for {t} tokens by {:?}", (linear.rows, linear.columns));
        match self.by_library(t, x, linear, y)? {
            true => Ok(()),
            false => Err(CudaError::Driver { doing: "multiply by cuBLASLt".into(), reason: reason() }),
        }
    }

    /// False, with nothing done, where the library is not there or has no way.
    fn by_library(
        &mut self,
        t: usize,
        x: &CudaView<'_, u16>,
        linear: &Linear<'_>,
        y: &mut CudaViewMut<'_, f32>,
    ) -> Result<bool, CudaError> {
        assert!(t > 0 && x.len() >= t * linear.columns && y.len() >= t * linear.rows);
        self.library.as_mut().map_or(Ok(false), |library| library.product(t, x, linear, y))
    }

    fn by_kernel(
        &self,
        way: Way,
        t: usize,
        rows: &CudaView<'_, u32>,
        x: &CudaView<'_, u16>,
        linear: &Linear<'_>,
        y: &mut CudaViewMut<'_, f32>,
    ) -> Result<(), CudaError> {
        let Linear { weights, bias, rows: m, columns: k } = linear;
        assert!(t > 0 && t <= way.tokens_max(), "{way:?} for {t} tokens");
        assert!(!rows.is_empty() && x.len() >= t * k && y.len() >= t * m);
        assert!(
            aligned(weights, 16, &self.launcher) && aligned(x, 16, &self.launcher),
            "rows are read 16 bytes at a time"
        );
        let kernel = &self.kernels[Way::KERNELS.iter().position(|other| *other == way).expect("a kernel")];
        let (tokens, rows_of_w, columns, no_bias) = (t as u32, *m as u32, *k as u32, 0u64);
        let mut launch = self.launcher.launch(kernel);
        launch.early();
        launch.arg(rows).arg(x).arg(weights);
        match bias {
            Some(bias) => launch.arg(bias),
            None => launch.arg(&no_bias),
        };
        launch.arg(y).arg(&tokens).arg(&rows_of_w).arg(&columns);
        // SAFETY: the arguments are those of the kernel; every access is inside of what was asserted.
        unsafe { launch.start(way.launch(t, *m)) }?;
        Ok(())
    }
}

/// Whether the view starts at a multiple of so many bytes, as wide accesses need.
pub(super) fn aligned<T>(view: &CudaView<'_, T>, bytes: u64, stream: &CudaStream) -> bool {
    view.device_ptr(stream).0.is_multiple_of(bytes)
}
