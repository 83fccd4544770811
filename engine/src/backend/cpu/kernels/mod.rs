//! The arithmetic of the forward on CPUs: pure functions over borrowed memory, f32 activations, or whole numbers made of them.
//!
//! A kernel is written once over [`simd::Simd`] and compiled for every instruction set; `Kernels` is bound to
//! one of them at start. Kernels know no model, no thread and no file: the caller cuts the
//! output into [`TileMut`]s, one a thread, and gives each thread a [`Scratch`].
//!
//! Letters: T tokens, K input columns, N output rows, G query heads of a kv head, D head dimension.
//!
//! # Measured
//!
//! Experts: docs/performance.md, "The engine on two cores"; ladders: docs/performance-history.md. Products with bf16:
//!
//! `cargo bench -p flotilla-engine --bench kernels`; [5760, 2880], one thread, huge pages, time of the thread.
//! 2-vCPU EPYC (family 25, model 17; Zen 4), 2026-11-23, with 6 to 11 other runnable processes: caches and memory
//! were shared, so these are lower bounds, and a ratio moves by 0.15 from run to run. Reads 26 to 30 GB/s,
//! FMA 59 G/s on both instruction sets.
//!
//! | weights, T | AVX2 | AVX-512 |
//! |---|---|---|
//! | bf16, 1 | 19 to 25 GB/s (0.70 to 0.85 of the read rate) | 21 to 25 GB/s (0.77 to 0.90) |
//! | bf16, 2 / 4 / 8 | 13 / 21 / 29 GMAC/s | 12 / 23 / 31 |
//! | bf16, 16 / 64 / 512 | 27 / 41 / 43 (0.73 of the FMA peak) | 29 / 46 / 49 (0.83) |
//!
//! Versions tried, same day and machine:
//!
//! | what | T | AVX2 | AVX-512 |
//! |---|---|---|---|
//! | bf16, 4 rows at once, prefetched a group of rows ahead | 1 | 14.8 GB/s | 14.9 |
//! | the same, 1 KiB ahead | 1 | 14.3 | 14.5 |
//! | the same, no prefetch | 1 | 15.2 | 14.8 |
//! | the same, prefetched into L2 | 1 | 18.5 | 19.4 |
//! | bf16, 1 row, one chain of sums | 1 | 15.6 | 18 to 25 |
//! | bf16, 1 row, two chains | 1 | 19 to 25 | 21 to 25 |
//! | bf16, 1 row, two chains | 4 | 15.9 GMAC/s | 16.9 (2 to 4 rows, now: 21, 23 to 26) |
//! | GEMM, the next panel not prefetched | 16 | 24 GMAC/s | 24 (now 28) |
//!
//! 2026-11-28, same kind of machine, little else running, reads 29 GB/s:
//!
//! | what | T | AVX2 | AVX-512 |
//! |---|---|---|---|
//! | bf16, 1 row, two chains, 2 KiB ahead, widened in order (before) | 1 | | 15.6 to 18.7 GB/s |
//! | taken as pairs, 4 lines a turn, no prefetch | 1 | | 20.1 |
//! | taken as pairs, 6 lines a turn, no prefetch (now) | 1 | 28.6 to 29.7 | 26.2 to 27.5 |
//! | taken as pairs, 1 row and no prefetch for 2 tokens, 2 rows for more | 2 / 4 / 8 | 11.7 / 16.5 / 23.6 GMAC/s | 14.8 / 16.5 / 23.7 |
//! | taken as pairs, rows and prefetch as before (now) | 2 / 4 / 8 | 14.2 / 22 / 30.6 | 14.9 / 27.6 / 35.0 |

// A register tile is a matrix: its rows and columns are counted together with those in memory.
#![allow(clippy::needless_range_loop)]

mod activations;
mod attention;
mod bf16;
mod elementwise;
mod grouped;
mod input;
mod isa;
mod matrix;
mod plain;
mod product;
mod replicated;
mod scratch;
mod simd;
mod swiglu;
#[cfg(test)]
mod tests;

pub use activations::{Activations, Precision, SharedActivations};
pub use attention::{KEYS_SPLIT, KV_BLOCK, KvBlock, KvElement, PartShape, Queries};
pub use grouped::{Grouped, GroupedInt8, GroupedMxfp4, Loss};
pub use input::{GEMM_TOKENS, Input};
pub use isa::Isa;
pub use matrix::{Matrix, SharedTile, TileMut};
pub use plain::Plain;
pub use product::Write;
pub use scratch::{InputBuffer, Scratch, TILE};

use input::Arrange;
use product::Product;
use simd::Simd;
use std::ops::Range;

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

struct Read<'a>(&'a [u8]);

impl Op for Read<'_> {
    type Out = u64;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> u64 {
        let mut sums = [0u64; 64];
        for words in self.0.as_chunks::<512>().0 {
            for (sum, word) in sums.iter_mut().zip(words.as_chunks::<8>().0) {
                *sum ^= u64::from_ne_bytes(*word);
            }
        }
        sums.iter().fold(0, |all, sum| all ^ sum)
    }
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
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2<O: Op>(op: O) -> O::Out {
            // SAFETY: this function's target features are those that `assume` asks for.
            op.run(unsafe { simd::avx2::Avx2::assume() })
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
        fn avx512<O: Op>(op: O) -> O::Out {
            // SAFETY: this function's target features are those that `assume` asks for.
            op.run(unsafe { simd::avx512::Avx512::<false, false>::assume() })
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
        fn avx512_vnni_alone<O: Op>(op: O) -> O::Out {
            // SAFETY: this function's target features are those that `assume` asks for.
            op.run(unsafe { simd::avx512::Avx512::<true, false>::assume() })
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512vnni,avx512vbmi,avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
        fn avx512_vnni<O: Op>(op: O) -> O::Out {
            // SAFETY: this function's target features are those that `assume` asks for.
            op.run(unsafe { simd::avx512::Avx512::<true, true>::assume() })
        }
        match self.isa {
            // SAFETY: `new` and `detect` have asked the machine.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2(op) },
            // SAFETY: `new` and `detect` have asked the machine.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512(op) },
            // SAFETY: `new` and `detect` have asked the machine.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512VnniAlone => unsafe { avx512_vnni_alone(op) },
            // SAFETY: `new` and `detect` have asked the machine.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => unsafe { avx512_vnni(op) },
            _ => op.run(simd::portable::Portable),
        }
    }

    /// All of it, read and thrown away: what a product could at best do. The bits of all words, each xor-ed in.
    pub fn read(&self, bytes: &[u8]) -> u64 {
        self.dispatch(Read(bytes))
    }

    /// x: f32 [T, K] for bf16 weights.
    pub fn bf16_input<'a>(&self, x: Matrix<'_, f32>, buffer: &'a mut InputBuffer) -> Input<'a> {
        self.bf16_input_over(x, buffer, |out, unit, arrange| arrange(0..out.len() / unit, out))
    }

    /// The same in units that do not depend on each other: `over` is given what is filled, the values of a unit, and what
    /// fills some units.
    pub fn bf16_input_over<'a>(
        &self,
        x: Matrix<'_, f32>,
        buffer: &'a mut InputBuffer,
        over: impl FnOnce(&mut [f32], usize, &(dyn Fn(Range<usize>, &mut [f32]) + Sync)),
    ) -> Input<'a> {
        let (out, layout) = Input::room(x, buffer, self.isa);
        let unit = layout.unit(x.columns());
        over(out, unit, &|units, out| self.dispatch(Arrange { x, layout, first: units.start, out }));
        Input::arranged(x, out, layout, self.isa)
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
        assert!(x.is_for(self.isa), "the input was arranged for another instruction set");
        assert_eq!(x.columns(), weights.columns());
        assert_eq!(x.tokens(), y.tokens());
        assert!(y.columns().end <= weights.rows(), "y has more columns than W has rows");
        assert!(bias.is_none_or(|bias| bias.len() == weights.rows()));
        self.dispatch(Product { weights, x, bias, y, write, scratch });
    }
}
