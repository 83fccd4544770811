//! Launches `dense.cu`: products with bf16 weights, of few rows and of many.

use crate::cuda::{Card, CudaError, Launcher, Source};
use cudarc::driver::{CudaFunction, CudaStream, CudaView, CudaViewMut, DevicePtr, LaunchConfig};

/// One program for all shapes.
pub fn source() -> Source {
    Source { name: "dense.cu", text: include_str!("dense.cu"), defines: vec![] }
}

/// The kernels of dense.cu, each with what a block of it covers.
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
}

/// Tokens that `product_few` can take.
const FEW_TOKENS: usize = 16;

impl Way {
    pub const ALL: [Way; 6] =
        [Way::Few8x16, Way::Few8x8, Way::Few16x16, Way::Few16x8, Way::ManyLarge, Way::ManyMiddle];

    /// For T tokens and M rows of W, on a card of so many multiprocessors. Not measured: rows of W are cut
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

    fn kernel(self) -> &'static str {
        match self {
            Way::Few8x16 => "product_few_8x16",
            Way::Few8x8 => "product_few_8x8",
            Way::Few16x16 => "product_few_16x16",
            Way::Few16x8 => "product_few_16x8",
            Way::ManyLarge => "product_many_large",
            Way::ManyMiddle => "product_many_middle",
        }
    }

    /// The most tokens it can take.
    pub fn tokens_max(self) -> usize {
        match self {
            Way::Few8x16 | Way::Few8x8 => 8,
            Way::Few16x16 | Way::Few16x8 => FEW_TOKENS,
            Way::ManyLarge | Way::ManyMiddle => usize::MAX,
        }
    }

    fn launch(self, t: usize, m: usize) -> LaunchConfig {
        let (grid, threads) = match self {
            Way::Few8x16 | Way::Few16x16 => ((m.div_ceil(16), 1), 256),
            Way::Few8x8 | Way::Few16x8 => ((m.div_ceil(8), 1), 256),
            Way::ManyLarge => ((t.div_ceil(128), m.div_ceil(128)), 256),
            Way::ManyMiddle => ((t.div_ceil(64), m.div_ceil(32)), 128),
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

#[derive(Debug)]
pub struct DenseKernels {
    launcher: Launcher,
    multiprocessors: usize,
    /// In the order of [`Way::ALL`].
    kernels: Vec<CudaFunction>,
}

impl DenseKernels {
    pub fn new(card: &Card) -> Result<Self, CudaError> {
        Self::compiled(card, &source())
    }

    /// From a source that may not be the file itself.
    pub fn compiled(card: &Card, source: &Source) -> Result<Self, CudaError> {
        let module = card.compile(source)?;
        Ok(DenseKernels {
            launcher: card.launcher(),
            multiprocessors: card.facts().multiprocessors as usize,
            kernels: Way::ALL.iter().map(|way| module.kernel(way.kernel())).collect::<Result<_, _>>()?,
        })
    }

    /// y = x Wᵀ + bias for the first *rows of T tokens. x: act [T, K], y: f32 [T, M].
    pub fn product(
        &self,
        t: usize,
        rows: &CudaView<'_, u32>,
        x: &CudaView<'_, u16>,
        linear: &Linear<'_>,
        y: &mut CudaViewMut<'_, f32>,
    ) -> Result<(), CudaError> {
        self.product_by(Way::choose(t, linear.rows, self.multiprocessors), t, rows, x, linear, y)
    }

    /// The same by a given kernel.
    pub fn product_by(
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
        let kernel = &self.kernels[Way::ALL.iter().position(|other| *other == way).expect("one of all")];
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
