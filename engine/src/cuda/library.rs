//! Finding CUDA's shared libraries, which are never linked: the driver's libcuda, NVRTC, cuBLASLt, NCCL.
//!
//! They are looked for where the user says (`FLOTILLA_CUDA_PATH`), where the system's loader looks, in
//! the places where packages put them, and in the folders of Python's wheels. What is opened stays open to
//! the end of the process. Nothing here starts the driver.

use super::error::{CudaError, Refused};
use super::places;
use std::ffi::{CStr, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Library {
    /// libcuda: comes with the driver, and with nothing else.
    Driver,
    /// The compiler.
    Nvrtc,
    /// Dense products.
    CublasLt,
    /// Sums between cards.
    Nccl,
}

impl Library {
    pub const ALL: [Library; 4] = [Library::Driver, Library::Nvrtc, Library::CublasLt, Library::Nccl];
    const COUNT: usize = Self::ALL.len();

    /// The names it goes by, the best one first. A program of NVRTC 12 runs under the drivers of CUDA 12
    /// and 13, one of NVRTC 13 under the latter only. libcuda.so comes first because cudarc tries it first,
    /// and because the two names are of different files on some machines (WSL).
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Library::Driver => &["libcuda.so", "libcuda.so.1"],
            Library::Nvrtc => &["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"],
            Library::CublasLt => &["libcublasLt.so.12", "libcublasLt.so.13", "libcublasLt.so"],
            Library::Nccl => &["libnccl.so.2", "libnccl.so"],
        }
    }

    pub fn how_to_get_it(self) -> &'static str {
        match self {
            Library::Driver => {
                "install NVIDIA's driver (Debian: nvidia-driver, Ubuntu: nvidia-driver-570 or later; in a \
                 container: nvidia-container-toolkit and --gpus all)"
            }
            Library::Nvrtc => {
                "`pip install nvidia-cuda-nvrtc-cu12`, or install the CUDA toolkit (package cuda-nvrtc-12-9); \
                 elsewhere, name its folder in FLOTILLA_CUDA_PATH"
            }
            Library::CublasLt => {
                "`pip install nvidia-cublas-cu12`, or install the CUDA toolkit (package libcublas-12-9); \
                 elsewhere, name its folder in FLOTILLA_CUDA_PATH"
            }
            Library::Nccl => {
                "`pip install nvidia-nccl-cu12`, or install the package libnccl2; elsewhere, name its folder in \
                 FLOTILLA_CUDA_PATH"
            }
        }
    }
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Library::Driver => "the NVIDIA driver",
            Library::Nvrtc => "NVRTC",
            Library::CublasLt => "cuBLASLt",
            Library::Nccl => "NCCL",
        })
    }
}

/// A library that is open.
#[derive(Debug)]
pub struct Opened {
    library: Library,
    path: PathBuf,
    handle: libloading::Library,
}

/// What each [`Library`] was opened as. Only what was found is remembered: a library that is installed
/// later is found later.
static OPENED: Mutex<[Option<&'static Opened>; Library::COUNT]> = Mutex::new([None; Library::COUNT]);
static FIRST: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Makes `folder` the first place where libraries are looked for, before `FLOTILLA_CUDA_PATH`. For what is
/// already open it comes too late.
pub fn search_first(folder: &Path) {
    let mut first = FIRST.lock().unwrap();
    first.retain(|known| known != folder);
    first.insert(0, folder.to_owned());
}

impl Opened {
    /// Finds and opens it, once.
    pub fn open(library: Library) -> Result<&'static Opened, CudaError> {
        let mut opened = OPENED.lock().unwrap();
        if let Some(opened) = opened[library as usize] {
            return Ok(opened);
        }
        let found = Box::leak(Box::new(find(library)?));
        opened[library as usize] = Some(found);
        Ok(found)
    }

    /// The file, as far as the loader tells.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has this function: newer functions may be absent.
    pub fn has(&self, symbol: &str) -> bool {
        // SAFETY: the symbol's address is only compared with nothing, never used.
        unsafe { self.handle.get::<*mut c_void>(symbol).is_ok() }
    }

    /// The function of this name.
    ///
    /// # Safety
    /// `F` must be an `unsafe extern "C" fn` of the signature that the library documents for `symbol`.
    pub unsafe fn symbol<F: Copy>(&self, symbol: &'static str) -> Result<F, CudaError> {
        const { assert!(size_of::<F>() == size_of::<*const ()>()) };
        // SAFETY: the caller names the type; the handle is never closed, so the copy stays valid.
        let found = unsafe { self.handle.get::<F>(symbol) };
        let missing = |_| CudaError::NoSymbol { library: self.library, path: self.path.clone(), symbol };
        found.map(|found| *found).map_err(missing)
    }
}

fn find(library: Library) -> Result<Opened, CudaError> {
    let (mut looked_in, mut refused) = (Vec::new(), Vec::new());
    for place in places::all(&FIRST.lock().unwrap()) {
        looked_in.push(place.to_string());
        for file in place.files(library.names()) {
            match open(library, &file) {
                Ok(opened) => return Ok(opened),
                Err(Some(reason)) => refused.push(Refused { file: file.display().to_string(), reason }),
                Err(None) => {}
            }
        }
    }
    looked_in.dedup();
    Err(CudaError::Missing { library, looked_in, refused })
}

/// `file` is a path, or a bare name for the system's loader; an error without reason is a name that the
/// loader does not know.
fn open(library: Library, file: &Path) -> Result<Opened, Option<String>> {
    // SAFETY: this runs the initialisers of a library that the user, or the system's packages, put there
    // under NVIDIA's name for it; it is never closed once it is chosen.
    let handle = unsafe { libloading::Library::new(file) };
    let handle = handle.map_err(|error| {
        let bare = file.components().count() == 1;
        let error = innermost(&error);
        (!bare || !error.contains("No such file")).then_some(error)
    })?;
    let path = file_of(&handle, library).unwrap_or_else(|| file.to_owned());
    if path.iter().any(|part| part == "stubs") {
        return Err(Some("it is a stub, made for linking programs only".into()));
    }
    Ok(Opened { library, path, handle })
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// A function that every version of the library has.
fn landmark(library: Library) -> &'static str {
    match library {
        Library::Driver => "cuInit",
        Library::Nvrtc => "nvrtcVersion",
        Library::CublasLt => "cublasLtGetVersion",
        Library::Nccl => "ncclGetVersion",
    }
}

/// The file that a library was loaded from.
fn file_of(handle: &libloading::Library, library: Library) -> Option<PathBuf> {
    // SAFETY: only the address is taken.
    let symbol = unsafe { handle.get::<*mut c_void>(landmark(library)) }.ok()?;
    // SAFETY: the handle is open, so the address is that of something in it.
    file_at(unsafe { symbol.try_as_raw_ptr() }?)
}

/// The file that holds the code at `address`.
pub(super) fn file_at(address: *const c_void) -> Option<PathBuf> {
    let mut found = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr takes any address and fills the struct, or says 0.
    if unsafe { libc::dladdr(address, found.as_mut_ptr()) } == 0 {
        return None;
    }
    // SAFETY: it was zeroed before, which is a valid value, and filled.
    let name = unsafe { found.assume_init() }.dli_fname;
    if name.is_null() {
        return None;
    }
    // SAFETY: dladdr gives the loader's own string, which lives as long as the library is open.
    let name = unsafe { CStr::from_ptr(name) };
    Some(PathBuf::from(name.to_str().ok()?))
}
