//! Starts kernels. One that is started early ([`Launch::early`], on cards from sm_90 on) may begin before the one ahead
//! of it in the stream has ended: its blocks come as soon as all blocks of that one run and have said so
//! (`let_next_start`), do what needs nothing of it, such as asking for weights, and then wait for it
//! (`wait_for_previous`). So a chain of short kernels loses the gaps between them. Recorded in a graph it is
//! the same. CUDA calls it programmatic dependent launch.
//!
//! What a kernel that is started early owes: before it ends, every block waits, also one that has nothing to do, or
//! what comes after it could start before what came ahead of it has ended; and it does so before it reads or
//! writes what another kernel of the stream writes or reads. Pointers to such memory are not `__restrict__`: their loads
//! could be moved ahead of the wait. (One reads ahead what the kernel ahead has itself waited for: `down_few` in `experts_few.cu`.)

use super::driver;
use super::trial::Trial;
use cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr,
    DriverError, LaunchConfig, sys,
};
use std::ffi::c_void;
use std::ops::Deref;
use std::sync::Arc;

/// The first generation that can.
const EARLY_FROM: (u32, u32) = (9, 0);
/// The first CUDA whose graphs keep it.
const EARLY_DRIVER: (u32, u32) = (12, 3);
/// That any kernel has.
const ARGS_MAX: usize = 16;

/// A card's stream, and how kernels are started on it.
#[derive(Clone, Debug)]
pub struct Launcher {
    stream: Arc<CudaStream>,
    early: bool,
}

impl Launcher {
    pub(super) fn new(stream: Arc<CudaStream>, capability: (u32, u32)) -> Launcher {
        let new_enough =
            driver::driver_facts().is_ok_and(|facts| (facts.cuda.major, facts.cuda.minor) >= EARLY_DRIVER);
        Launcher { stream, early: capability >= EARLY_FROM && new_enough && Trial::Early.is_wanted() }
    }

    pub fn launch<'a>(&'a self, kernel: &'a CudaFunction) -> Launch<'a> {
        Launch { launcher: self, kernel, words: [0; ARGS_MAX], count: 0, early: false }
    }
}

impl Deref for Launcher {
    type Target = Arc<CudaStream>;

    fn deref(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

/// What a kernel takes: a number, or where memory begins.
pub trait Argument {
    fn word(self, stream: &CudaStream) -> u64;
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Argument for &$number {
            fn word(self, _: &CudaStream) -> u64 {
                let mut bytes = [0; 8];
                bytes[..size_of::<$number>()].copy_from_slice(&self.to_ne_bytes());
                u64::from_ne_bytes(bytes)
            }
        }
    )*};
}
numbers!(u32, i32, f32, u64);

impl<T: DeviceRepr> Argument for &CudaSlice<T> {
    fn word(self, stream: &CudaStream) -> u64 {
        self.device_ptr(stream).0
    }
}

impl<T: DeviceRepr> Argument for &mut CudaSlice<T> {
    fn word(self, stream: &CudaStream) -> u64 {
        self.device_ptr_mut(stream).0
    }
}

impl<T: DeviceRepr> Argument for &CudaView<'_, T> {
    fn word(self, stream: &CudaStream) -> u64 {
        self.device_ptr(stream).0
    }
}

impl<T: DeviceRepr> Argument for &mut CudaViewMut<'_, T> {
    fn word(self, stream: &CudaStream) -> u64 {
        self.device_ptr_mut(stream).0
    }
}

/// A kernel with its arguments so far.
#[derive(Debug)]
pub struct Launch<'a> {
    launcher: &'a Launcher,
    kernel: &'a CudaFunction,
    words: [u64; ARGS_MAX],
    count: usize,
    early: bool,
}

impl Launch<'_> {
    pub fn arg(&mut self, argument: impl Argument) -> &mut Self {
        self.words[self.count] = argument.word(&self.launcher.stream);
        self.count += 1;
        self
    }

    /// Before the kernel ahead has ended, where the card can; see the head of the file for what the kernel owes.
    pub fn early(&mut self) -> &mut Self {
        self.early = self.launcher.early;
        self
    }

    /// # Safety
    /// The arguments are those of the kernel, in number, order and kind, and what it touches is there.
    pub unsafe fn start(&mut self, config: LaunchConfig) -> Result<(), DriverError> {
        self.launcher.stream.context().bind_to_thread()?;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let ((grid_x, grid_y, grid_z), (block_x, block_y, block_z)) = (config.grid_dim, config.block_dim);
        let launch = sys::CUlaunchConfig {
            gridDimX: grid_x,
            gridDimY: grid_y,
            gridDimZ: grid_z,
            blockDimX: block_x,
            blockDimY: block_y,
            blockDimZ: block_z,
            sharedMemBytes: config.shared_mem_bytes,
            hStream: self.launcher.stream.cu_stream(),
            attrs: &mut attribute,
            numAttrs: self.early.into(),
        };
        let mut arguments: [*mut c_void; ARGS_MAX] = [std::ptr::null_mut(); ARGS_MAX];
        for (argument, word) in arguments.iter_mut().zip(&mut self.words[..self.count]) {
            *argument = (word as *mut u64).cast();
        }
        let (kernel, none) = (self.kernel.cu_function(), std::ptr::null_mut());
        // SAFETY: the driver copies as many bytes of each word as the kernel's argument has, which the caller has
        // answered for; everything else lives until the call returns.
        unsafe { sys::cuLaunchKernelEx(&launch, kernel, arguments.as_mut_ptr(), none) }.result()
    }
}
