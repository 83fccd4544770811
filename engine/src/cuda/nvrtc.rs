//! NVRTC, by a table of our own: cudarc's knows only libraries of certain names and gives PTX only, and
//! what is wanted is a program for one kind of card (a cubin) by whatever NVRTC there is.

use super::error::{CudaError, Version};
use super::library::{Library, Opened};
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;
use std::ptr;

type Program = *mut std::ffi::c_void;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Bytes = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

const SUCCESS: c_int = 0;
/// NVRTC_ERROR_COMPILATION: the log says what is wrong.
const COMPILATION: c_int = 6;
const OLDEST: Version = Version { major: 12, minor: 0, patch: 0 };

/// The compiler, ready.
#[derive(Clone, Copy, Debug)]
pub struct Nvrtc {
    opened: &'static Opened,
    version: Version,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    log_size: Size,
    log: Bytes,
    cubin_size: Size,
    cubin: Bytes,
    words: unsafe extern "C" fn(c_int) -> *const c_char,
}

/// What to compile, for whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub name: &'a str,
    pub text: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    pub options: &'a [String],
}

/// A program, and what the compiler had to say.
#[derive(Clone, Debug)]
pub(super) struct Output {
    pub cubin: Vec<u8>,
    pub log: String,
}

/// Why nothing came out.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The source is wrong; the compiler's log.
    Source(String),
    Other(CudaError),
}

impl From<CudaError> for Failure {
    fn from(error: CudaError) -> Failure {
        Failure::Other(error)
    }
}

impl Nvrtc {
    pub fn open() -> Result<Nvrtc, CudaError> {
        let opened = Opened::open(Library::Nvrtc)?;
        // SAFETY: the signatures are those of nvrtc.h, where nvrtcResult and int have the same size.
        let nvrtc = unsafe {
            Nvrtc {
                opened,
                version: version(opened)?,
                create: opened.symbol("nvrtcCreateProgram")?,
                compile: opened.symbol("nvrtcCompileProgram")?,
                destroy: opened.symbol("nvrtcDestroyProgram")?,
                log_size: opened.symbol("nvrtcGetProgramLogSize")?,
                log: opened.symbol("nvrtcGetProgramLog")?,
                cubin_size: opened.symbol("nvrtcGetCUBINSize")?,
                cubin: opened.symbol("nvrtcGetCUBIN")?,
                words: opened.symbol("nvrtcGetErrorString")?,
            }
        };
        if nvrtc.version < OLDEST {
            let (library, path) = (Library::Nvrtc, opened.path().to_owned());
            return Err(CudaError::TooOld { library, path, found: nvrtc.version, needed: OLDEST });
        }
        Ok(nvrtc)
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn path(&self) -> &Path {
        self.opened.path()
    }

    /// The architecture to compile for: a card's own, or the nearest older one of the same generation,
    /// whose programs it runs as well.
    pub fn architecture(&self, capability: (u32, u32)) -> Result<(u32, u32), CudaError> {
        let Some(supported) = self.architectures() else { return Ok(capability) };
        let usable =
            supported.into_iter().filter(|(major, minor)| *major == capability.0 && *minor <= capability.1);
        usable.max().ok_or_else(|| CudaError::CompilerTooOld {
            path: self.path().to_owned(),
            version: self.version,
            capability,
        })
    }

    /// All that it compiles for, if it says.
    fn architectures(&self) -> Option<Vec<(u32, u32)>> {
        if !self.opened.has("nvrtcGetSupportedArchs") {
            return None;
        }
        let mut count = 0;
        // SAFETY: the signatures are those of nvrtc.h; as many ints are written as the first call said.
        let found = unsafe {
            let counts =
                self.opened.symbol::<unsafe extern "C" fn(*mut c_int) -> c_int>("nvrtcGetNumSupportedArchs");
            if counts.ok()?(&mut count) != SUCCESS {
                return None;
            }
            let mut found = vec![0 as c_int; count.max(0) as usize];
            let list =
                self.opened.symbol::<unsafe extern "C" fn(*mut c_int) -> c_int>("nvrtcGetSupportedArchs");
            (list.ok()?(found.as_mut_ptr()) == SUCCESS).then_some(found)?
        };
        Some(found.into_iter().map(|code| (code as u32 / 10, code as u32 % 10)).collect())
    }

    pub(super) fn compile(&self, request: &Request) -> Result<Output, Failure> {
        let program = Running::new(self, request)?;
        program.compile(request.options)?;
        let cubin = program.read("hand out the program", self.cubin_size, self.cubin)?;
        if cubin.is_empty() {
            return Err(self.failed("hand out the program", "it is empty".into()).into());
        }
        Ok(Output { cubin, log: program.log() })
    }

    fn check(&self, doing: &'static str, code: c_int) -> Result<(), CudaError> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: NVRTC gives a constant string for any number.
        let words = unsafe { (self.words)(code) };
        let words = if words.is_null() {
            format!("error {code}")
        } else {
            // SAFETY: not null, and constant.
            unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned()
        };
        Err(self.failed(doing, words))
    }

    fn failed(&self, doing: &'static str, reason: String) -> CudaError {
        CudaError::Compiler { path: self.path().to_owned(), doing, reason }
    }
}

/// # Safety
/// `opened` must be NVRTC.
unsafe fn version(opened: &Opened) -> Result<Version, CudaError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the signature is that of nvrtc.h; both pointers are to ints of ours.
    unsafe {
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = opened.symbol("nvrtcVersion")?;
        version(&mut major, &mut minor);
    }
    Ok(Version { major: major.max(0) as u32, minor: minor.max(0) as u32, patch: 0 })
}

/// A program of NVRTC's, destroyed when it is no longer needed.
struct Running<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl<'a> Running<'a> {
    fn new(nvrtc: &'a Nvrtc, request: &Request) -> Result<Running<'a>, CudaError> {
        let text = |text: &str| {
            CString::new(text)
                .map_err(|_| nvrtc.failed("read the source", "there is a zero byte in it".into()))
        };
        let headers = request.headers.iter().map(|(name, content)| Ok((text(name)?, text(content)?)));
        let headers: Vec<(CString, CString)> = headers.collect::<Result<_, CudaError>>()?;
        let names: Vec<*const c_char> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
        let contents: Vec<*const c_char> = headers.iter().map(|(_, content)| content.as_ptr()).collect();
        let (name, source) = (text(request.name)?, text(request.text)?);
        let mut program = ptr::null_mut();
        // SAFETY: all strings end with zero and outlive the call, which copies them.
        let code = unsafe {
            (nvrtc.create)(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                contents.as_ptr(),
                names.as_ptr(),
            )
        };
        nvrtc.check("take the source", code)?;
        Ok(Running { nvrtc, program })
    }

    fn compile(&self, options: &[String]) -> Result<(), Failure> {
        let options: Vec<CString> =
            options.iter().filter_map(|option| CString::new(&**option).ok()).collect();
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is alive, the strings outlive the call.
        match unsafe { (self.nvrtc.compile)(self.program, options.len() as c_int, options.as_ptr()) } {
            COMPILATION => Err(Failure::Source(self.log())),
            SUCCESS => Ok(()),
            // A wrong option, such as an architecture: the log may say which.
            code => {
                let error = self.nvrtc.check("compile", code).expect_err("not a success");
                let log = self.log();
                Err(match error {
                    CudaError::Compiler { path, doing, reason } if !log.is_empty() => {
                        CudaError::Compiler { path, doing, reason: format!("{reason}: {log}") }
                    }
                    error => error,
                }
                .into())
            }
        }
    }

    fn log(&self) -> String {
        let bytes = self.read("hand out its log", self.nvrtc.log_size, self.nvrtc.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').trim().to_owned()
    }

    fn read(&self, doing: &'static str, size: Size, bytes: Bytes) -> Result<Vec<u8>, CudaError> {
        let mut len = 0;
        // SAFETY: the program is alive; the size is written to an integer of ours.
        self.nvrtc.check(doing, unsafe { size(self.program, &mut len) })?;
        let mut output = vec![0_u8; len];
        // SAFETY: as many bytes are written as it said.
        self.nvrtc.check(doing, unsafe { bytes(self.program, output.as_mut_ptr().cast()) })?;
        Ok(output)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // SAFETY: it was created by this library, and nobody uses it after this.
        unsafe { (self.nvrtc.destroy)(&mut self.program) };
    }
}
