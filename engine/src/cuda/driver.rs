//! The driver, started once: everything that can be wrong with it is found out here, by functions of our
//! own, before cudarc's first call, because cudarc panics on a library or a function that is not there.

use super::error::{CudaError, Version};
use super::library::{Library, Opened, file_at};
use std::ffi::{c_int, c_uint, c_void};
use std::path::PathBuf;
use std::sync::Mutex;

/// The oldest driver: programs of NVRTC 12 run from here on.
const OLDEST: Version = Version { major: 12, minor: 0, patch: 0 };

/// What the engine calls through cudarc. A driver of [`OLDEST`] has them all.
pub const NEEDED: [&str; 50] = [
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

const SUCCESS: c_int = 0;
const STUB_LIBRARY: c_int = 34;
const NO_DEVICE: c_int = 100;

/// A driver that has started and shows at least one card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverFacts {
    pub path: PathBuf,
    /// The version of CUDA that the driver speaks.
    pub cuda: Version,
    /// The driver's own version, such as 570.86.15, where the kernel tells it.
    pub release: Option<String>,
    pub card_count: usize,
}

static STARTED: Mutex<Option<DriverFacts>> = Mutex::new(None);

/// Starts the driver, once; what failed is tried again at the next call.
pub fn driver_facts() -> Result<DriverFacts, CudaError> {
    let mut started = STARTED.lock().unwrap();
    if started.is_none() {
        *started = Some(start()?);
    }
    Ok(started.clone().expect("it has just been started"))
}

pub fn card_count() -> Result<usize, CudaError> {
    driver_facts().map(|facts| facts.card_count)
}

/// Whether the driver has this function, for what is not needed by all.
pub(super) fn has(symbol: &str) -> bool {
    Opened::open(Library::Driver).is_ok_and(|driver| driver.has(symbol))
}

pub(super) fn visible_devices() -> Option<String> {
    std::env::var("CUDA_VISIBLE_DEVICES").ok()
}

fn start() -> Result<DriverFacts, CudaError> {
    let driver = Opened::open(Library::Driver)?;
    let path = driver.path().to_owned();
    if let Some(symbol) = NEEDED.into_iter().find(|symbol| !driver.has(symbol)) {
        return Err(CudaError::NoSymbol { library: Library::Driver, path, symbol });
    }
    // SAFETY: the signatures are those of cuda.h, where CUresult and int have the same size; each pointer
    // is to an int of ours.
    let (version, init, count) = unsafe {
        (
            int_of(driver.symbol::<IntOut>("cuDriverGetVersion")?),
            driver.symbol::<unsafe extern "C" fn(c_uint) -> c_int>("cuInit")?(0),
            int_of(driver.symbol::<IntOut>("cuDeviceGetCount")?),
        )
    };
    // A stub says so whatever it is asked.
    let version = match version {
        Ok(version) => Version { major: version / 1000, minor: version % 1000 / 10, patch: 0 },
        Err(STUB_LIBRARY) => return Err(CudaError::Stub { path }),
        Err(code) => return Err(down(path, code)),
    };
    if version < OLDEST {
        return Err(CudaError::TooOld { library: Library::Driver, path, found: version, needed: OLDEST });
    }
    match init {
        SUCCESS => {}
        STUB_LIBRARY => return Err(CudaError::Stub { path }),
        NO_DEVICE => return Err(CudaError::NoCard { visible: visible_devices() }),
        code => return Err(down(path, code)),
    }
    let card_count = match count {
        Ok(0) | Err(NO_DEVICE) => return Err(CudaError::NoCard { visible: visible_devices() }),
        Ok(count) => count as usize,
        Err(code) => return Err(down(path, code)),
    };
    same_for_cudarc(driver)?;
    Ok(DriverFacts { path, cuda: version, release: release(), card_count })
}

type IntOut = unsafe extern "C" fn(*mut c_int) -> c_int;

/// # Safety
/// `function` must write one int and nothing else.
unsafe fn int_of(function: IntOut) -> Result<u32, c_int> {
    let mut value = 0;
    // SAFETY: the caller says so.
    match unsafe { function(&mut value) } {
        SUCCESS => Ok(value.max(0) as u32),
        code => Err(code),
    }
}

/// cudarc looks for libcuda by names of its own. What we have opened has one of them, so that the loader
/// hands it the same; unless a library of a name that it tries earlier is in the loader's path.
fn same_for_cudarc(driver: &Opened) -> Result<(), CudaError> {
    // SAFETY: libraries are opened that are NVIDIA's by name, as in `library::open`; `culib` panics only
    // where this has found none.
    let theirs = unsafe {
        if !cudarc::driver::sys::is_culib_present() {
            return Err(CudaError::Shadowed { path: driver.path().to_owned(), instead: None });
        }
        cudarc::driver::sys::culib()
    };
    // SAFETY: only addresses are taken.
    let address = unsafe { theirs.get::<*mut c_void>("cuInit").ok().and_then(|init| init.try_as_raw_ptr()) };
    // SAFETY: as above.
    let ours = unsafe { driver.symbol::<*mut c_void>("cuInit")? };
    if address == Some(ours) {
        return Ok(());
    }
    let instead = address.and_then(|address| file_at(address));
    Err(CudaError::Shadowed { path: driver.path().to_owned(), instead })
}

/// Why cuInit failed, for the failures that people meet.
fn down(path: PathBuf, code: c_int) -> CudaError {
    let (reason, hint) = match code {
        2 => ("out of memory", "the machine's memory or a limit of this process is used up"),
        3 => ("it is shutting down", "the process is ending"),
        304 => ("a call of the operating system failed", "are the /dev/nvidia* files there and accessible?"),
        802 => ("the system is not ready", "is nvidia-fabricmanager running? Machines with NVSwitch need it"),
        803 => (
            "the kernel module and the library are of different versions",
            "restart the machine after a driver update; in a container, use the host's libcuda",
        ),
        804 => (
            "CUDA's forward compatibility package does not support this card",
            "remove cuda-compat from LD_LIBRARY_PATH, or install a newer driver",
        ),
        _ => (
            "it gives an error that is not known",
            "does `nvidia-smi` work? The kernel's log (dmesg) may tell more",
        ),
    };
    CudaError::DriverDown { path, reason: format!("{reason} (CUDA error {code})"), hint }
}

/// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu …", or with "Open" in it.
fn release() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let looks_right = |word: &&str| {
        word.contains('.') && word.chars().all(|letter| letter.is_ascii_digit() || letter == '.')
    };
    text.lines().next()?.split_whitespace().find(looks_right).map(str::to_owned)
}
