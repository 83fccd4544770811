//! Which libraries this machine has, in which version: what `flotilla doctor` tells.

use super::driver;
use super::error::{CudaError, Version};
use super::library::{Library, Opened};
use super::nccl::Nccl;
use super::nvrtc::Nvrtc;
use std::path::PathBuf;

/// A library that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub path: PathBuf,
    pub version: Version,
}

/// Opens it and asks for its version; the driver is started, the others need none.
pub fn found(library: Library) -> Result<Found, CudaError> {
    match library {
        Library::Driver => {
            driver::driver_facts().map(|facts| Found { path: facts.path, version: facts.cuda })
        }
        Library::Nvrtc => {
            Nvrtc::open().map(|nvrtc| Found { path: nvrtc.path().into(), version: nvrtc.version() })
        }
        Library::Nccl => Nccl::open().map(|nccl| Found { path: nccl.path().into(), version: nccl.version() }),
        Library::CublasLt => cublas_lt(),
    }
}

fn cublas_lt() -> Result<Found, CudaError> {
    let opened = Opened::open(Library::CublasLt)?;
    // SAFETY: the signature is that of cublasLt.h; the function only reads a constant.
    let code = unsafe { opened.symbol::<unsafe extern "C" fn() -> usize>("cublasLtGetVersion")?() } as u32;
    // 120901 is 12.9.1.
    let version = Version { major: code / 10_000, minor: code / 100 % 100, patch: code % 100 };
    Ok(Found { path: opened.path().to_owned(), version })
}
