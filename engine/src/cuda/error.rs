//! Why a card cannot be used. Each error says what was wanted, where it was looked for, and on a line of
//! its own how to mend it; none of them is a panic, whatever is missing.

use super::library::Library;
use cudarc::driver::DriverError;
use flotilla_shared::units::Bytes;
use std::fmt;
use std::path::PathBuf;
use thiserror::Error;

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CudaError {
    /// No file of any of the library's names was found, or none that could be opened.
    #[error("{library} ({}) is not here: {}\nhint: {}", library.names().join(", "), looked(looked_in, refused), library.how_to_get_it())]
    Missing { library: Library, looked_in: Vec<String>, refused: Vec<Refused> },

    /// The library is older than anything that this program can speak to.
    #[error("{library} at {} has no {symbol}: it is too old, or it is not what its name says\nhint: {}", path.display(), library.how_to_get_it())]
    NoSymbol { library: Library, path: PathBuf, symbol: &'static str },

    #[error(
        "the driver at {} was chosen, but the system's loader hands out another libcuda{}\n\
         hint: take CUDA's `stubs` folder and other drivers' folders out of LD_LIBRARY_PATH",
        path.display(), at(instead)
    )]
    Shadowed { path: PathBuf, instead: Option<PathBuf> },

    #[error(
        "the driver at {} is a stub, made for linking programs only\n\
         hint: take CUDA's `stubs` folder out of LD_LIBRARY_PATH and FLOTILLA_CUDA_PATH; {}",
        path.display(), Library::Driver.how_to_get_it()
    )]
    Stub { path: PathBuf },

    #[error(
        "{library} at {} is of CUDA {found}, expected at least {needed}\nhint: {}",
        path.display(), library.how_to_get_it()
    )]
    TooOld { library: Library, path: PathBuf, found: Version, needed: Version },

    #[error("the driver at {} does not start: {reason}\nhint: {hint}", path.display())]
    DriverDown { path: PathBuf, reason: String, hint: &'static str },

    #[error("the driver is here, but shows no card{}", hidden_by(visible))]
    NoCard { visible: Option<String> },

    #[error("there is no card {ordinal}: {}{}", cards(*count), hidden_by(visible))]
    NoSuchCard { ordinal: usize, count: usize, visible: Option<String> },

    #[error(
        "card {ordinal} ({name}) has compute capability {}.{}, expected at least 7.5\n\
         hint: Turing (RTX 20, T4) is the oldest generation that is supported", capability.0, capability.1
    )]
    CardTooOld { ordinal: usize, name: String, capability: (u32, u32) },

    #[error(
        "card {ordinal} has no room for {}: {} free of {}\n\
         hint: is another program using the card (nvidia-smi tells), or is this rank's share too large for it",
        Bytes(*wanted_bytes), Bytes(*free_bytes), Bytes(*memory_bytes)
    )]
    OutOfMemory { ordinal: usize, wanted_bytes: u64, free_bytes: u64, memory_bytes: u64 },

    #[error("a step of {asked} tokens is more than a card takes, which is {max}\nhint: lower --step-tokens")]
    TooManyRows { asked: u32, max: usize },

    /// The driver refused something. After some of these the card's context is unusable.
    #[error("the driver cannot {doing}: {reason}")]
    Driver { doing: String, reason: String },

    #[error("NVRTC at {} cannot {doing}: {reason}", path.display())]
    Compiler { path: PathBuf, doing: &'static str, reason: String },

    #[error("cuBLASLt at {} cannot {doing}: {reason}", path.display())]
    Cublas { path: PathBuf, doing: &'static str, reason: String },

    #[error(
        "NVRTC {version} at {} makes programs for CUDA {version}, the driver is of CUDA {driver}\n\
         hint: install a newer driver, or `pip install nvidia-cuda-nvrtc-cu12` and name its folder in FLOTILLA_CUDA_PATH",
        path.display()
    )]
    CompilerTooNew { path: PathBuf, version: Version, driver: Version },

    #[error(
        "NVRTC {version} at {} makes no programs for compute capability {}.{}\nhint: {}",
        path.display(), capability.0, capability.1, Library::Nvrtc.how_to_get_it()
    )]
    CompilerTooOld { path: PathBuf, version: Version, capability: (u32, u32) },

    /// A mistake in a kernel. The log is NVRTC's, with the lines that it speaks of.
    #[error("{name} does not compile for {arch}:\n{log}")]
    Compile { name: &'static str, arch: String, log: String },

    #[error("{name} has no kernel `{kernel}`: {reason}")]
    NoKernel { name: &'static str, kernel: String, reason: String },

    /// The arithmetic of a card, or its memory, is not what it should be.
    #[error(
        "card {ordinal}: {what} gave {found}, expected {expected}\nhint: the card or its memory is faulty"
    )]
    Wrong { ordinal: usize, what: &'static str, found: String, expected: String },
}

/// A file that has the right name and cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub file: String,
    pub reason: String,
}

/// Of CUDA, of NVRTC, of NCCL: major, minor, patch (where there is one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.patch > 0 { write!(f, ".{}", self.patch) } else { Ok(()) }
    }
}

impl CudaError {
    /// A library of the right name is there, and was not taken.
    pub fn is_refused(&self) -> bool {
        matches!(self, CudaError::Missing { refused, .. } if !refused.is_empty())
    }

    /// For `map_err`: what was being done, as in "the driver cannot …".
    pub fn doing(doing: impl Into<String>) -> impl FnOnce(DriverError) -> CudaError {
        let doing = doing.into();
        move |error| CudaError::Driver { doing, reason: words(error) }
    }
}

/// Where nobody said what was being done.
impl From<DriverError> for CudaError {
    fn from(error: DriverError) -> CudaError {
        CudaError::Driver { doing: "do what it was asked".into(), reason: words(error) }
    }
}

/// The driver's name and words for an error: a `DriverError` exists only where the driver does.
fn words(error: DriverError) -> String {
    match (error.error_name(), error.error_string()) {
        (Ok(name), Ok(words)) => format!("{} ({})", words.to_string_lossy(), name.to_string_lossy()),
        _ => format!("error {}", error.0 as u32),
    }
}

fn looked(folders: &[String], refused: &[Refused]) -> String {
    let mut text = format!("looked in {}", folders.join(", "));
    for Refused { file, reason } in refused {
        text += &format!("; {file} cannot be used: {reason}");
    }
    text
}

fn at(path: &Option<PathBuf>) -> String {
    path.as_ref().map_or(String::new(), |path| format!(" at {}", path.display()))
}

fn cards(count: usize) -> String {
    match count {
        1 => "the driver shows one card, 0".into(),
        _ => format!("the driver shows {count} cards, 0 to {}", count - 1),
    }
}

fn hidden_by(visible: &Option<String>) -> String {
    match visible {
        Some(value) => format!("\nhint: CUDA_VISIBLE_DEVICES is set to \"{value}\", which hides cards"),
        None => {
            "\nhint: `nvidia-smi` lists the cards of this machine; in a container, they must be handed in \
                 (docker: --gpus all)"
                .into()
        }
    }
}
