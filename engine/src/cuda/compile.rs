//! From a `.cu` file to kernels that can be launched: NVRTC compiles it for the card at hand, with the
//! model's shapes as macros; what comes out is kept on disk ([`cache`]), so that the next start takes none
//! of the time.

use super::cache::{self, Key};
use super::card::Card;
use super::driver;
use super::error::CudaError;
use super::nvrtc::{Failure, Nvrtc, Output, Request};
use super::resources::{self, Resources};
use cudarc::driver::{CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What a kernel may include; there are no other headers.
const HEADERS: [(&str, &str); 2] = [
    ("intrinsics.cuh", include_str!("../backend/cuda/intrinsics.cuh")),
    ("wgmma.cuh", include_str!("../backend/cuda/wgmma.cuh")),
];

/// One .cu file with the shapes that it is compiled for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file's name, for messages: `norm.cu`.
    pub name: &'static str,
    pub text: &'static str,
    pub defines: Vec<(&'static str, i64)>,
}

/// A program that is loaded on a card.
#[derive(Clone, Debug)]
pub struct Module {
    name: &'static str,
    module: Arc<CudaModule>,
}

impl Module {
    /// The kernel of this name, which is `extern "C"` in the source.
    pub fn kernel(&self, name: &str) -> Result<CudaFunction, CudaError> {
        let function = self.module.load_function(name);
        // Asking for a figure loads it now. Drivers load kernels when they are first launched, and may then
        // wait for all that runs in the context: for ever, if that is a kernel that waits for this one.
        let loaded = function.and_then(|function| function.num_regs().map(|_| function));
        loaded.map_err(|error| {
            let CudaError::Driver { reason, .. } = CudaError::from(error) else { unreachable!() };
            CudaError::NoKernel { name: self.name, kernel: name.into(), reason }
        })
    }
}

impl Source {
    /// The program for one architecture, such as (8, 6), from NVRTC itself: no card is needed, and the
    /// cache is not asked.
    pub fn cubin(&self, nvrtc: &Nvrtc, architecture: (u32, u32)) -> Result<Vec<u8>, CudaError> {
        let arch = name_of(architecture);
        self.compile(nvrtc, &arch, &self.options(&arch)).map(|output| output.cubin)
    }

    /// What each of its kernels takes on one architecture.
    pub fn resources(&self, nvrtc: &Nvrtc, architecture: (u32, u32)) -> Result<Vec<Resources>, CudaError> {
        let arch = name_of(architecture);
        let mut options = self.options(&arch);
        options.push("--ptxas-options=-v".into());
        self.compile(nvrtc, &arch, &options).map(|output| resources::parse(&output.log))
    }

    fn compile(&self, nvrtc: &Nvrtc, arch: &str, options: &[String]) -> Result<Output, CudaError> {
        let request = Request { name: self.name, text: self.text, headers: &HEADERS, options };
        nvrtc.compile(&request).map_err(|failure| match failure {
            Failure::Other(error) => error,
            Failure::Source(log) => {
                CudaError::Compile { name: self.name, arch: arch.into(), log: self.with_lines(&log) }
            }
        })
    }

    fn options(&self, arch: &str) -> Vec<String> {
        let fixed = [format!("--gpu-architecture={arch}"), "-std=c++17".into()];
        let defines = self.defines.iter().map(|(name, value)| format!("-D{name}={value}"));
        fixed.into_iter().chain(defines).collect()
    }

    /// The log, each line that speaks of one of the source followed by that one.
    fn with_lines(&self, log: &str) -> String {
        let mut text = String::new();
        for line in log.lines() {
            text += line;
            text.push('\n');
            if let Some(number) = line_number(self.name, line)
                && let Some(quoted) = self.text.lines().nth(number - 1)
            {
                text += &format!("  {number} | {quoted}\n");
            }
        }
        text.truncate(text.trim_end().len());
        text
    }
}

/// Hopper's with all that only it has: warpgroup products are not in `sm_90`.
fn name_of((major, minor): (u32, u32)) -> String {
    let own = if (major, minor) == (9, 0) { "a" } else { "" };
    format!("sm_{major}{minor}{own}")
}

/// `norm.cu(12): error: …` is NVRTC's way, `norm.cu:12:5: error: …` that of other compilers.
fn line_number(name: &str, line: &str) -> Option<usize> {
    let rest = line.strip_prefix(name)?;
    let rest = rest.strip_prefix('(').or_else(|| rest.strip_prefix(':'))?;
    let end = rest.find(|letter: char| !letter.is_ascii_digit())?;
    rest[..end].parse().ok().filter(|number| *number > 0)
}

/// Keys that are being compiled: who wants the same waits, and finds it in the cache.
static IN_WORK: Mutex<BTreeMap<Key, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());

pub(super) fn module(card: &Card, source: &Source) -> Result<Module, CudaError> {
    let nvrtc = Nvrtc::open()?;
    let driver = driver::driver_facts()?.cuda;
    if nvrtc.version().major > driver.major {
        let (path, version) = (nvrtc.path().to_owned(), nvrtc.version());
        return Err(CudaError::CompilerTooNew { path, version, driver });
    }
    let architecture = nvrtc.architecture(card.facts().capability)?;
    let arch = name_of(architecture);
    let key = cache::key(&nvrtc, driver, &HEADERS, source.name, source.text, &source.options(&arch));

    let turn = IN_WORK.lock().unwrap().entry(key).or_default().clone();
    let _turn = turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(cubin) = cache::load(&key, source.name) {
        match load(card, source, cubin) {
            Ok(module) => return Ok(module),
            Err(error) => tracing::warn!("{}: {error}; compiling it again", source.name),
        }
    }
    let cubin = source.cubin(&nvrtc, architecture)?;
    cache::store(&key, source.name, &cubin);
    load(card, source, cubin)
}

fn load(card: &Card, source: &Source, cubin: Vec<u8>) -> Result<Module, CudaError> {
    let module = card.stream().context().load_module(Ptx::from_binary(cubin));
    let module = module.map_err(CudaError::doing(format!("load {}", source.name)))?;
    Ok(Module { name: source.name, module })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_quoted_with_the_lines_of_the_source() {
        let source = Source { name: "a.cu", text: "int x;\nint y = z;\n", defines: vec![] };
        let nvrtc = source.with_lines("a.cu(2): error: identifier \"z\" is undefined\n\n1 error detected");
        assert!(
            nvrtc.starts_with("a.cu(2): error: identifier \"z\" is undefined\n  2 | int y = z;\n"),
            "{nvrtc}"
        );
        let other = source.with_lines("a.cu:2:9: error: 'z' was not declared");
        assert_eq!(other, "a.cu:2:9: error: 'z' was not declared\n  2 | int y = z;");
        assert_eq!(source.with_lines("a.cu(9): error: past the end"), "a.cu(9): error: past the end");
    }

    #[test]
    fn shapes_are_options() {
        let source = Source { name: "a.cu", text: "", defines: vec![("HIDDEN", 2880), ("LOW", -1)] };
        let options = source.options("sm_86");
        assert_eq!(options, ["--gpu-architecture=sm_86", "-std=c++17", "-DHIDDEN=2880", "-DLOW=-1"]);
    }
}
