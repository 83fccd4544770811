//! Dense products by cuBLASLt: which ways it chose are kept, T is rounded up so that they are few, and the bias,
//! which is bf16 in the checkpoint, is made f32 for it.
//!
//! It loads a kernel when that is first used, which waits for everything that runs in the process's context. So
//! it is left out where a process has several ranks: one would wait for a sum that waits for it. And a step that
//! is recorded has been carried out once before (`graph.rs`). Before it is trusted it multiplies whole numbers, whose
//! product is known to the bit.

mod trusted;

use super::Linear;
use crate::cuda::cublas::{CublasLt, Product, ProductShape};
use crate::cuda::{Card, CudaError, Library};
use cudarc::driver::{
    CudaFunction, CudaSlice, CudaView, CudaViewMut, DevicePtr, LaunchConfig, PushKernelArg,
};
use flotilla_shared::activations::LIBRARY_BYTES;
use std::collections::HashMap;

/// The widest bias.
const BIAS_MAX: usize = 16 << 10;
/// The rest of [`LIBRARY_BYTES`].
const WORKSPACE_BYTES: usize = LIBRARY_BYTES - BIAS_MAX * size_of::<f32>();
const THREADS: usize = 256;
/// What matrices begin at a multiple of: the least, and the most that it asks for. The driver's memory does.
const ALIGN_MIN: u32 = 16;
const ALIGN_MAX: u32 = 256;

pub struct LibraryProducts {
    card: Card,
    cublas: CublasLt,
    widen: CudaFunction,
    /// Of the product that is launched next: f32 [M].
    bias: CudaSlice<f32>,
    /// It has multiplied as it should.
    trusted: bool,
    /// None where the library has no way. Few: a rank has three shapes of W, and T is rounded up.
    ways: HashMap<ProductShape, Option<Product>>,
}

impl LibraryProducts {
    /// None where it is not there or cannot be used. `widen`: the kernel that makes a bias f32.
    pub fn open(card: &Card, widen: CudaFunction) -> Option<LibraryProducts> {
        Self::opened(card, widen).inspect_err(|error| tell(card, error)).ok()
    }

    fn opened(card: &Card, widen: CudaFunction) -> Result<LibraryProducts, CudaError> {
        let (cublas, bias) = (CublasLt::open(card, WORKSPACE_BYTES)?, card.zeros(BIAS_MAX)?);
        let ways = HashMap::new();
        let mut products = LibraryProducts { card: card.clone(), cublas, widen, bias, trusted: false, ways };
        if !card.has_company() {
            products.check()?;
            products.trusted = true;
        }
        Ok(products)
    }

    /// Whether products may go by it: this process has one rank only, from the start on.
    pub fn is_free(&self) -> bool {
        self.trusted && !self.card.has_company()
    }

    /// y = x Wᵀ + bias for T tokens and some of the rows after them, which may hold anything. False, with nothing
    /// done, where the library has no way.
    pub fn product(
        &mut self,
        t: usize,
        x: &CudaView<'_, u16>,
        linear: &Linear<'_>,
        y: &mut CudaViewMut<'_, f32>,
    ) -> Result<bool, CudaError> {
        let (m, k) = (linear.rows, linear.columns);
        let t = rounded(t, (x.len() / k).min(y.len() / m));
        let stream = self.card.stream().clone();
        let places = [
            linear.weights.device_ptr(&stream).0,
            x.device_ptr(&stream).0,
            y.as_view().device_ptr(&stream).0,
        ];
        let shape = ProductShape { t, m, k, bias: linear.bias.is_some(), align_bytes: alignment(&places) };
        let fits = shape.align_bytes >= ALIGN_MIN && (!shape.bias || m <= BIAS_MAX);
        if !fits || !self.has_way(shape) {
            return Ok(false);
        }
        if let Some(bias) = &linear.bias {
            self.widen(bias, m)?;
        }
        let product = self.ways[&shape].as_ref().expect("it has a way");
        let bias = linear.bias.as_ref().map(|_| self.bias.slice(..m));
        match self.cublas.launch(product, &linear.weights, x, bias.as_ref(), y) {
            Ok(()) => Ok(true),
            // Not asked again. If the card itself is at fault, the kernel that comes instead will say so.
            Err(error) => {
                tracing::warn!("{shape:?} goes by a kernel of our own: {error}");
                self.ways.insert(shape, None);
                Ok(false)
            }
        }
    }

    /// Asks at the first time.
    fn has_way(&mut self, shape: ProductShape) -> bool {
        let cublas = &self.cublas;
        let way = self.ways.entry(shape).or_insert_with(|| {
            let told = |error: &CudaError| tracing::info!("{shape:?} goes by a kernel of our own: {error}");
            cublas.product(shape).inspect_err(told).ok()
        });
        way.is_some()
    }

    fn widen(&mut self, bias: &CudaView<'_, u16>, m: usize) -> Result<(), CudaError> {
        let count = m as u32;
        let mut launch = self.card.stream().launch_builder(&self.widen);
        launch.arg(bias).arg(&mut self.bias).arg(&count);
        let shape = LaunchConfig {
            grid_dim: (m.div_ceil(THREADS) as u32, 1, 1),
            block_dim: (THREADS as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the kernel reads and writes M elements of each; callers checked that there is room.
        unsafe { launch.launch(shape) }?;
        Ok(())
    }
}

/// T of the launch, of at most `room` rows. What there is between costs little: tiles are as high.
fn rounded(t: usize, room: usize) -> usize {
    let step = match t {
        0..=128 => 16,
        129..=1024 => 64,
        _ => 256,
    };
    t.next_multiple_of(step).min(room)
}

/// The largest power of two that all these addresses are a multiple of, up to [`ALIGN_MAX`].
fn alignment(places: &[u64]) -> u32 {
    let all = places.iter().fold(u64::from(ALIGN_MAX), |all, place| all | place);
    1 << all.trailing_zeros()
}

/// Says once for each rank why its prompts take longer than they might. Of cards without bf16 nothing: there our
/// kernels are all that there is.
fn tell(card: &Card, error: &CudaError) {
    if card.facts().capability < (8, 0) {
        return;
    }
    let reason = match error {
        CudaError::Missing { .. } if !error.is_refused() => format!("{} is not here", Library::CublasLt),
        _ => error.to_string().lines().next().unwrap_or_default().to_owned(),
    };
    let ordinal = card.facts().ordinal;
    tracing::info!("prompts are slower on card {ordinal}: {reason} (`flotilla doctor` says how to get it)");
}

#[cfg(test)]
mod tests {
    use super::{alignment, rounded};

    #[test]
    fn matrices_begin_together_at_a_power_of_two() {
        assert_eq!(alignment(&[0x1000, 0x2100, 0x300]), 256);
        assert_eq!(alignment(&[0x1000, 0x2110, 0x300]), 16);
        assert_eq!(alignment(&[0x1000, 0x2102, 0x380]), 2);
    }

    #[test]
    fn tokens_are_rounded_up_within_the_room() {
        assert_eq!([17, 24, 33, 100, 128].map(|t| rounded(t, 4096)), [32, 32, 48, 112, 128]);
        assert_eq!([129, 512, 1000, 1025, 2048].map(|t| rounded(t, 4096)), [192, 512, 1024, 1280, 2048]);
        assert_eq!(rounded(1025, 1100), 1100);
        assert_eq!(rounded(33, 33), 33);
        for t in 1..5000 {
            assert!((t..=5000).contains(&rounded(t, 5000)));
        }
        let kinds = (1..=8192).map(|t| rounded(t, 8192)).collect::<std::collections::BTreeSet<_>>();
        assert!(kinds.len() < 64, "{}", kinds.len());
    }
}
