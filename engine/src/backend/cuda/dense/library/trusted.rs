//! Whether the library multiplies as it is asked to: a small product of whole numbers, which has no rounding, so
//! that a matrix read the other way round, or a bias of the wrong type, cannot hide.

use super::super::Linear;
use super::LibraryProducts;
use crate::cuda::{CudaError, Library, Opened};
use flotilla_shared::sampling::mix;
use half::bf16;

const TOKENS: usize = 32;
const ROWS: usize = 64;
const COLUMNS: usize = 128;

impl LibraryProducts {
    pub(super) fn check(&mut self) -> Result<(), CudaError> {
        let (x, w, bias) = (whole(TOKENS * COLUMNS, 1), whole(ROWS * COLUMNS, 2), whole(ROWS, 3));
        let upload = |values: &[f32]| {
            self.card.upload(&values.iter().map(|v| bf16::from_f32(*v).to_bits()).collect::<Vec<_>>())
        };
        let (x_there, w_there, bias_there) = (upload(&x)?, upload(&w)?, upload(&bias)?);
        let mut y = self.card.zeros::<f32>(TOKENS * ROWS)?;
        let linear = Linear::new(w_there.as_view(), Some(bias_there.as_view()), ROWS, COLUMNS);
        let done = self.product(TOKENS, &x_there.as_view(), &linear, &mut y.as_view_mut())?;
        let reason = match done {
            true if self.card.download(&y)? == expected(&x, &w, &bias) => return Ok(()),
            true => "a product of whole numbers came out wrong",
            false => "it has no way for a small product",
        };
        let path = Opened::open(Library::CublasLt)?.path().to_owned();
        Err(CudaError::Cublas { path, doing: "multiply", reason: reason.into() })
    }
}

/// From -4 to 3.
fn whole(len: usize, seed: u64) -> Vec<f32> {
    (0..len as u64).map(|i| (mix(seed << 32 | i) % 8) as f32 - 4.0).collect()
}

fn expected(x: &[f32], w: &[f32], bias: &[f32]) -> Vec<f32> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
    let row = |x: &[f32]| w.chunks(COLUMNS).zip(bias).map(|(w, bias)| dot(x, w) + bias).collect::<Vec<_>>();
    x.chunks(COLUMNS).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::{COLUMNS, ROWS, TOKENS, expected, whole};

    #[test]
    fn the_expected_product_is_whole_and_of_both_signs() {
        let y = expected(&whole(TOKENS * COLUMNS, 1), &whole(ROWS * COLUMNS, 2), &whole(ROWS, 3));
        assert_eq!(y.len(), TOKENS * ROWS);
        assert!(y.iter().all(|v| v.fract() == 0.0 && v.abs() < 2048.0));
        assert!(y.iter().any(|v| *v < 0.0) && y.iter().any(|v| *v > 0.0));
    }
}
