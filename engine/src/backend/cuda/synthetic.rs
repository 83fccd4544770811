//! Launches `synthetic.cu`: a synthetic model's slices made in the card's memory, with the bytes that
//! [`Synthetic`] makes in the host's.

use crate::cuda::{Card, CudaError, Launcher, Source};
use crate::weights::{ByteRuns, Comb, Draw, PALETTE, Recipe, Synthetic, WeightSource};
use cudarc::driver::{CudaFunction, CudaSlice, CudaViewMut, LaunchConfig};
use flotilla_shared::TensorSlice;

/// As in synthetic.cu: threads of a block, and bytes that it makes.
const THREADS: u32 = 256;
const BLOCK_BYTES: usize = THREADS as usize * 32 * 8;

pub fn source() -> Source {
    let defines = vec![("PALETTE", PALETTE as i64)];
    Source { name: "synthetic.cu", text: include_str!("synthetic.cu"), defines }
}

/// The kernels, and what one model needs of them.
pub struct SyntheticKernels<'a> {
    launcher: Launcher,
    model: &'a Synthetic,
    make_codes: CudaFunction,
    make_scales: CudaFunction,
    make_normal: CudaFunction,
    /// bf16 [PALETTE], of each draw that has one.
    palettes: Vec<Option<CudaSlice<u16>>>,
}

impl<'a> SyntheticKernels<'a> {
    pub fn new(card: &Card, model: &'a Synthetic) -> Result<Self, CudaError> {
        Self::compiled(card, &source(), model)
    }

    /// From a source that may not be the file itself.
    pub fn compiled(card: &Card, source: &Source, model: &'a Synthetic) -> Result<Self, CudaError> {
        let module = card.compile(source)?;
        let palette = |draw: &Draw| match draw {
            Draw::Normal(palette) => card.upload(&palette[..]).map(Some),
            Draw::Codes | Draw::Scales { .. } => Ok(None),
        };
        Ok(SyntheticKernels {
            launcher: card.launcher(),
            make_codes: module.kernel("make_codes")?,
            make_scales: module.kernel("make_scales")?,
            make_normal: module.kernel("make_normal")?,
            palettes: model.draws().iter().map(palette).collect::<Result<_, _>>()?,
            model,
        })
    }

    /// Starts filling `out`, which is as long as the slice and may begin at any byte.
    ///
    /// # Panics
    /// If the slice does not lie in its tensor.
    pub fn make(&self, slice: &TensorSlice, out: &mut CudaViewMut<'_, u8>) -> Result<(), CudaError> {
        assert_eq!(out.len(), slice.bytes(), "{slice}");
        let Recipe { key, draw } = self.model.recipe(slice.tensor);
        let mut end = 0;
        for Comb { start, run_bytes, stride, run_count } in ByteRuns::new(slice, self.model.spec()).combs() {
            let len = run_bytes * run_count;
            if len == 0 {
                continue;
            }
            let mut part = out.slice_mut(end..end + len);
            end += len;
            let [bytes, start, run_bytes, stride] = [len, start, run_bytes, stride].map(|n| n as u64);
            let kernel = match &self.model.draws()[draw] {
                Draw::Codes => &self.make_codes,
                Draw::Scales { .. } => &self.make_scales,
                Draw::Normal(_) => &self.make_normal,
            };
            let mut launch = self.launcher.launch(kernel);
            launch.arg(&mut part).arg(&bytes).arg(&start).arg(&run_bytes).arg(&stride).arg(&key);
            let (low, threshold);
            match &self.model.draws()[draw] {
                Draw::Codes => {}
                Draw::Scales { low: lower, threshold: of_128 } => {
                    (low, threshold) = (u32::from(*lower), u32::from(*of_128));
                    launch.arg(&low).arg(&threshold);
                }
                Draw::Normal(_) => {
                    launch.arg(self.palettes[draw].as_ref().expect("uploaded with the others"));
                }
            }
            let config = LaunchConfig {
                grid_dim: (len.div_ceil(BLOCK_BYTES) as u32, 1, 1),
                block_dim: (THREADS, 1, 1),
                shared_mem_bytes: 0,
            };
            // SAFETY: the arguments are those of the kernel, which writes `bytes` bytes of a part that has them.
            unsafe { launch.start(config) }?;
        }
        Ok(())
    }
}
