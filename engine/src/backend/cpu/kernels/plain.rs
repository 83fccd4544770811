//! A calculation in plain Rust, compiled for every instruction set: the compiler puts several values into a
//! register where the machine's are wide. It gives the same bits on all of them, for nothing is fused
//! that was not written so.

use super::simd::Simd;
use super::{Kernels, Op};

/// A calculation with its arguments.
pub trait Plain {
    type Out;
    /// Must be `#[inline(always)]`, as must what it calls, or it is compiled for the oldest machine.
    fn run(self) -> Self::Out;
}

struct Compiled<P>(P);

impl<P: Plain> Op for Compiled<P> {
    type Out = P::Out;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> P::Out {
        self.0.run()
    }
}

impl Kernels {
    pub fn plain<P: Plain>(&self, calculation: P) -> P::Out {
        self.dispatch(Compiled(calculation))
    }
}
