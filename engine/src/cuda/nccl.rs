//! NCCL's functions, by a table of our own: cudarc never finds `libnccl.so.2`, and its `Comm` can only
//! wait. The types are cudarc's, but for the result: a later NCCL may give a number that this one does not
//! know. What groups do with it is not here.

use super::error::{CudaError, Version};
use super::library::{Library, Opened};
use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr;

pub use cudarc::nccl::sys;
/// A stream of CUDA's, as NCCL's header names it.
pub use cudarc::nccl::sys::cudaStream_t;

/// What a function of NCCL's gives back.
pub type Code = c_int;
pub const SUCCESS: Code = 0;
/// Of a communicator that does not block: ask `comm_get_async_error` again.
pub const IN_PROGRESS: Code = 7;

/// Communicators that do not block, with configuration: NCCL 2.14 has them, 2.18 all that is used of them.
const OLDEST: Version = Version { major: 2, minor: 18, patch: 0 };

/// NCCL_CONFIG_UNDEF_INT: whatever is NCCL's own choice.
const UNSET: c_int = c_int::MIN;
/// NCCL_CONFIG_INITIALIZER's.
const CONFIG_MAGIC: c_uint = 0xcafe_beef;
/// The version whose `ncclConfig_t` cudarc has been asked for; other versions read as much of it as they know.
const CONFIG_VERSION: c_uint = 22700;

/// The library, open. The functions are those of nccl.h, with its names.
#[derive(Clone, Copy, Debug)]
pub struct Nccl {
    opened: &'static Opened,
    version: Version,
    pub get_unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> Code,
    pub comm_init_rank_config:
        unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t) -> Code,
    pub comm_finalize: unsafe extern "C" fn(ncclComm_t) -> Code,
    pub comm_destroy: unsafe extern "C" fn(ncclComm_t) -> Code,
    pub comm_abort: unsafe extern "C" fn(ncclComm_t) -> Code,
    pub comm_get_async_error: unsafe extern "C" fn(ncclComm_t, *mut Code) -> Code,
    pub comm_count: unsafe extern "C" fn(ncclComm_t, *mut c_int) -> Code,
    pub comm_user_rank: unsafe extern "C" fn(ncclComm_t, *mut c_int) -> Code,
    /// from, to, count, type, operation, communicator, stream
    pub all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        ncclRedOp_t,
        ncclComm_t,
        cudaStream_t,
    ) -> Code,
    /// from, to, count of each rank, type, communicator, stream
    pub all_gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        ncclComm_t,
        cudaStream_t,
    ) -> Code,
    /// from, count, type, peer, communicator, stream
    pub send:
        unsafe extern "C" fn(*const c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> Code,
    /// to, count, type, peer, communicator, stream
    pub recv:
        unsafe extern "C" fn(*mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> Code,
    pub group_start: unsafe extern "C" fn() -> Code,
    pub group_end: unsafe extern "C" fn() -> Code,
    error_string: unsafe extern "C" fn(Code) -> *const c_char,
    last_error: unsafe extern "C" fn(ncclComm_t) -> *const c_char,
}

impl Nccl {
    pub fn open() -> Result<Nccl, CudaError> {
        let opened = Opened::open(Library::Nccl)?;
        // SAFETY: the signature is that of nccl.h, as below.
        let version = unsafe { version(opened)? };
        if version < OLDEST {
            let (library, path) = (Library::Nccl, opened.path().to_owned());
            return Err(CudaError::TooOld { library, path, found: version, needed: OLDEST });
        }
        // SAFETY: the signatures are those of nccl.h; ncclResult_t has the size of an int.
        let nccl = unsafe {
            Nccl {
                opened,
                version,
                get_unique_id: opened.symbol("ncclGetUniqueId")?,
                comm_init_rank_config: opened.symbol("ncclCommInitRankConfig")?,
                comm_finalize: opened.symbol("ncclCommFinalize")?,
                comm_destroy: opened.symbol("ncclCommDestroy")?,
                comm_abort: opened.symbol("ncclCommAbort")?,
                comm_get_async_error: opened.symbol("ncclCommGetAsyncError")?,
                comm_count: opened.symbol("ncclCommCount")?,
                comm_user_rank: opened.symbol("ncclCommUserRank")?,
                all_reduce: opened.symbol("ncclAllReduce")?,
                all_gather: opened.symbol("ncclAllGather")?,
                send: opened.symbol("ncclSend")?,
                recv: opened.symbol("ncclRecv")?,
                group_start: opened.symbol("ncclGroupStart")?,
                group_end: opened.symbol("ncclGroupEnd")?,
                error_string: opened.symbol("ncclGetErrorString")?,
                last_error: opened.symbol("ncclGetLastError")?,
            }
        };
        Ok(nccl)
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn path(&self) -> &Path {
        self.opened.path()
    }

    /// NCCL's words for a code, and what it last complained of.
    pub fn words(&self, code: Code) -> String {
        // SAFETY: NCCL gives constant strings for any code, and its last complaint (of this process) for
        // no communicator; either may be null or empty.
        unsafe {
            let code_words = text((self.error_string)(code)).unwrap_or_else(|| format!("error {code}"));
            match text((self.last_error)(ptr::null_mut())).filter(|last| !last.trim().is_empty()) {
                Some(last) => format!("{code_words}: {}", last.trim()),
                None => code_words,
            }
        }
    }
}

/// A configuration that leaves all to NCCL, except whether its calls wait.
pub fn config(blocking: bool) -> ncclConfig_t {
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: CONFIG_MAGIC,
        version: CONFIG_VERSION,
        blocking: blocking.into(),
        cgaClusterSize: UNSET,
        minCTAs: UNSET,
        maxCTAs: UNSET,
        netName: ptr::null(),
        splitShare: UNSET,
        trafficClass: UNSET,
        commName: ptr::null(),
        collnetEnable: UNSET,
        CTAPolicy: UNSET,
        shrinkShare: UNSET,
        nvlsCTAs: UNSET,
    }
}

/// # Safety
/// `opened` must be NCCL.
unsafe fn version(opened: &Opened) -> Result<Version, CudaError> {
    let mut code: c_int = 0;
    // SAFETY: the signature is that of nccl.h; the pointer is to an int of ours.
    unsafe {
        let version: unsafe extern "C" fn(*mut c_int) -> Code = opened.symbol("ncclGetVersion")?;
        version(&mut code);
    }
    let code = code.max(0) as u32;
    // 22703 is 2.27.3; before 2.9 it was 2804 for 2.8.4.
    let (major, rest) =
        if code >= 10_000 { (code / 10_000, code % 10_000) } else { (code / 1000, code % 1000) };
    Ok(Version { major, minor: rest / 100, patch: rest % 100 })
}

/// # Safety
/// `words` must be null or a string that ends with zero.
unsafe fn text(words: *const c_char) -> Option<String> {
    // SAFETY: the caller says so.
    (!words.is_null()).then(|| unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned())
}
