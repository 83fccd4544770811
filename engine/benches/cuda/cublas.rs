//! The card's bf16 matrix rate: that of a large product by cuBLASLt, where it is there.

use super::timing::Clock;
use crate::data;
use flotilla_engine::cuda::cublas::{CublasLt, ProductShape};
use flotilla_engine::cuda::{Card, CudaError};
use flotilla_shared::activations::LIBRARY_BYTES;

/// T = M = K of the product.
const WIDTH: usize = 8192;

/// bf16 flops a second, of random values.
pub fn rate(card: &Card, clock: &Clock) -> Result<f64, CudaError> {
    let n = WIDTH;
    let mut cublas = CublasLt::open(card, LIBRARY_BYTES)?;
    let product = cublas.product(ProductShape { t: n, m: n, k: n, bias: false, align_bytes: 256 })?;
    let (w, x) = (data::bf16s(card, n * n, 1)?, data::bf16s(card, n * n, 2)?);
    let (w, x, mut y) = (w.as_view(), x.as_view(), card.zeros(n * n)?);
    let seconds = clock.launch(card, 1, |_| cublas.launch(&product, &w, &x, None, &mut y.as_view_mut()))?;
    Ok(2.0 * (n as f64).powi(3) / seconds)
}
