//! The arithmetic of the forward on CPUs: pure functions over borrowed memory, f32 activations.
//!
//! A kernel is written once over [`simd::Simd`] and compiled for every instruction set; `Kernels` is bound to
//! one of them at start. Kernels know no model, no thread and no file: the caller cuts the
//! output into [`TileMut`]s, one a thread, and gives each thread a [`Scratch`].
//!
//! Letters: T tokens, K input columns, N output rows, G query heads of a kv head, D head dimension.

// A register tile is a matrix: its rows and columns are counted together with those in memory.
#![allow(clippy::needless_range_loop)]

mod attention;
mod bf16;
mod input;
mod isa;
mod matrix;
mod mxfp4;
mod product;
mod replicated;
mod scratch;
mod simd;
mod swiglu;
#[cfg(test)]
mod tests;

pub use attention::KvSlab;
pub use input::{GEMM_TOKENS, Input};
pub use isa::Isa;
pub use matrix::{Matrix, Mxfp4Matrix, TileMut};
pub use product::Write;
pub use scratch::{GROUP_MAX, InputBuffer, Scratch};

use input::{Arrange, Order};
use product::{Product, Weights};
use simd::Simd;

/// The kernels for one instruction set.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    isa: Isa,
}

/// A kernel with its arguments, before it knows the instruction set.
trait Op {
    type Out;
    /// Must be `#[inline(always)]`, or it is compiled without the instructions it is for.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

impl Kernels {
    /// For the widest instruction set of this machine.
    pub fn detect() -> Kernels {
        Kernels { isa: Isa::detect() }
    }

    /// For the given one, which the machine must have.
    pub fn new(isa: Isa) -> Kernels {
        assert!(isa.is_available(), "this machine has no {isa:?}");
        Kernels { isa }
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    fn dispatch<O: Op>(&self, op: O) -> O::Out {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2<O: Op>(op: O) -> O::Out {
            // SAFETY: this function's target features are those that `assume` asks for.
            op.run(unsafe { simd::avx2::Avx2::assume() })
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
        fn avx512<O: Op>(op: O) -> O::Out {
            // SAFETY: this function's target features are those that `assume` asks for.
            op.run(unsafe { simd::avx512::Avx512::assume() })
        }
        match self.isa {
            // SAFETY: `new` and `detect` have asked the machine.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2(op) },
            // SAFETY: `new` and `detect` have asked the machine.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512(op) },
            _ => op.run(simd::portable::Portable),
        }
    }

    /// x: f32 [T, K] for bf16 weights. Fewer than GEMM_TOKENS tokens are borrowed as they are.
    pub fn bf16_input<'a>(&self, x: Matrix<'a, f32>, buffer: &'a mut InputBuffer) -> Input<'a> {
        self.dispatch(Arrange { x, buffer, order: Order::Natural, isa: self.isa })
    }

    /// x: f32 [T, K] for MXFP4 weights.
    pub fn mxfp4_input<'a>(&self, x: Matrix<'a, f32>, buffer: &'a mut InputBuffer) -> Input<'a> {
        assert!(x.columns().is_multiple_of(simd::BLOCK), "MXFP4 has whole blocks");
        self.dispatch(Arrange { x, buffer, order: Order::Decoded, isa: self.isa })
    }

    /// y[t, n] (+)= Σ_k W[n, k] · x[t, k] + bias[n], for y's columns n.
    /// W: bf16 [N, K], x: from `bf16_input`, bias: bf16 [N], y: f32 [T, columns of N].
    pub fn bf16_product(
        &self,
        weights: Matrix<'_, u16>,
        x: &Input<'_>,
        bias: Option<&[u16]>,
        y: TileMut<'_>,
        write: Write,
        scratch: &mut Scratch,
    ) {
        assert!(x.is_for(self.isa, Order::Natural), "the input was arranged for something else");
        let shape = (weights.rows(), weights.columns());
        self.product(shape, Product { weights, x, bias, y, write, scratch });
    }

    /// y[t, n] (+)= Σ_k W[n, k] · x[t, k] + bias[n], for y's columns n.
    /// W: MXFP4 [N, K], x: from `mxfp4_input`, bias: bf16 [N], y: f32 [T, columns of N].
    pub fn mxfp4_product(
        &self,
        weights: Mxfp4Matrix<'_>,
        x: &Input<'_>,
        bias: Option<&[u16]>,
        y: TileMut<'_>,
        write: Write,
        scratch: &mut Scratch,
    ) {
        assert!(x.is_for(self.isa, Order::Decoded), "the input was arranged for something else");
        let shape = (weights.rows(), weights.columns());
        self.product(shape, Product { weights, x, bias, y, write, scratch });
    }

    fn product<W: Weights>(&self, (rows, columns): (usize, usize), product: Product<'_, '_, W>) {
        assert_eq!(product.x.columns(), columns);
        assert_eq!(product.x.tokens(), product.y.tokens());
        assert!(product.y.columns().end <= rows, "y has more columns than W has rows");
        assert!(product.bias.is_none_or(|bias| bias.len() == rows));
        self.dispatch(product);
    }
}
